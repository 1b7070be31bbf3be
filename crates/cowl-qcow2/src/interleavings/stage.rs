//! Storage for models: every I/O takes a while, and what is durable is remembered.
//!
//! A write has its effect at one moment between its call and its return. What was complete when a
//! barrier began is durable when it returns, and nothing else is: the kindest power cut for a bug.
//! A write that was dropped lands when the storage settles, which is as late as it may.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use cowl_format::{ByteCount, HostOffset};
use cowl_storage::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, MemoryStorage,
    Operation, Purpose, Storage, StorageError, ZeroMode,
};
use shuttle::future::yield_now;

use crate::sync::thread_number;

/// Turns that an I/O leaves to others at most.
const GIVE_WAY_MAX: usize = 300;

/// The storage. Its own locks are never held where another thread may go on.
pub(crate) struct Stage {
    memory: MemoryStorage,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Goes on with each call.
    now: u64,
    /// When each barrier that returned had begun.
    barriers: Vec<u64>,
    /// The file as each of them left it on the medium, the newest last.
    durable: Vec<Arc<MemoryStorage>>,
    /// Dropped writes.
    strays: Vec<(HostOffset, Vec<u8>)>,
    /// The barrier with this number fails, and none after it: the host forgets its errors.
    failing_barrier: Option<u64>,
    barriers_begun: u64,
    /// The only thread whose data moves; others give way.
    hurried: Option<usize>,
    /// The write of this purpose that fails, once.
    failing_write: Option<Purpose>,
}

impl Stage {
    pub(crate) fn new(memory: MemoryStorage) -> Self {
        let durable = vec![Arc::new(memory.snapshot())];
        Self { memory, state: Mutex::new(State { durable, ..State::default() }) }
    }

    pub(crate) fn fail_barrier(&self, number: u64) {
        self.state().failing_barrier = Some(number);
    }

    pub(crate) fn fail_write(&self, purpose: Purpose) {
        self.state().failing_write = Some(purpose);
    }

    /// A moment.
    fn now(&self) -> u64 {
        let mut state = self.state();
        state.now += 1;
        state.now
    }

    /// From now on I/O of data by other threads takes so long that this one gets far ahead.
    pub(crate) fn hurry(&self) {
        self.state().hurried = Some(thread_number());
    }

    /// Everybody is as fast as before.
    pub(crate) fn hurry_no_more(&self) {
        self.state().hurried = None;
    }

    fn gives_way(&self, purpose: Purpose) -> bool {
        let hurried = self.state().hurried;
        purpose == Purpose::GuestData && hurried.is_some_and(|thread| thread != thread_number())
    }

    /// Waits long, but not for ever: who is in a hurry may wait for this very I/O.
    async fn give_way(&self, purpose: Purpose) {
        for _ in 0..GIVE_WAY_MAX {
            yield_now().await;
            if !self.gives_way(purpose) {
                break;
            }
        }
    }

    /// How many barriers have begun.
    pub(crate) fn barriers_begun(&self) -> u64 {
        self.state().barriers_begun
    }

    /// What is on the medium for certain.
    pub(crate) fn durable(&self) -> Arc<MemoryStorage> {
        Arc::clone(self.state().durable.last().unwrap())
    }

    /// All that was ever on the medium.
    pub(crate) fn durable_states(&self) -> Vec<Arc<MemoryStorage>> {
        self.state().durable.clone()
    }

    /// The file as it is.
    pub(crate) fn content(&self) -> MemoryStorage {
        self.memory.snapshot()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(&self, operation: Operation) -> StorageError {
        let eio = std::io::Error::from_raw_os_error(5);
        StorageError::new(Path::new("stage"), operation, None, None, eio)
    }

    /// Every other call does not get done at once.
    fn waits(&self) -> bool {
        self.now().is_multiple_of(2)
    }
}

/// A write on its way.
struct OnItsWay<'a> {
    stage: &'a Stage,
    write: Option<(HostOffset, Vec<u8>)>,
}

impl Drop for OnItsWay<'_> {
    fn drop(&mut self) {
        self.stage.state().strays.extend(self.write.take());
    }
}

impl Storage for Stage {
    fn capabilities(&self) -> Capabilities {
        Capabilities { block_size: 512, ..self.memory.capabilities() }
    }

    fn name(&self) -> &Path {
        Path::new("stage")
    }

    fn identity(&self) -> Option<FileIdentity> {
        None
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        self.memory.len().await
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        self.memory.allocated().await
    }

    async fn read(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        self.give_way(purpose).await;
        let read = self.memory.read(at, buffer, purpose).await;
        yield_now().await;
        read
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        self.give_way(purpose).await;
        let read = self.memory.read_vectored(at, buffers, purpose).await;
        yield_now().await;
        read
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        let mut way = OnItsWay { stage: self, write: Some((at, buffer.to_vec())) };
        self.give_way(purpose).await;
        way.write = None;
        let fails = self.state().failing_write.take_if(|failing| *failing == purpose).is_some();
        if fails {
            return (Err(self.error(Operation::Write)), buffer);
        }
        let written = self.memory.write(at, buffer, purpose).await;
        yield_now().await;
        written
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        let bytes = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect::<Vec<_>>();
        let (result, _) = self.write(at, IoBuffer::from_slice(&bytes), purpose).await;
        (result, buffers)
    }

    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        if self.waits() || self.gives_way(purpose) {
            return None;
        }
        shuttle::thread::yield_now();
        let read = self.memory.try_read(at, buffer, purpose);
        shuttle::thread::yield_now();
        read
    }

    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        if self.waits() || self.gives_way(purpose) || self.state().failing_write.is_some() {
            return None;
        }
        shuttle::thread::yield_now();
        let written = self.memory.try_write(at, bytes, purpose);
        shuttle::thread::yield_now();
        written
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        yield_now().await;
        self.memory.zero(at, length, mode, purpose).await
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        yield_now().await;
        self.memory.discard(at, length, purpose).await
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        yield_now().await;
        self.memory.allocate(at, length, how, purpose).await
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        yield_now().await;
        self.memory.set_len(length, purpose).await
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        self.memory.extent(at, length_max).await
    }

    async fn barrier(&self, _purpose: Purpose) -> Result<(), StorageError> {
        let began = self.now();
        let covered = Arc::new(self.memory.snapshot());
        let fails = {
            let mut state = self.state();
            state.barriers_begun += 1;
            state.failing_barrier.is_some_and(|number| number == state.barriers_begun)
        };
        for _ in 0..3 {
            yield_now().await;
        }
        if fails {
            return Err(self.error(Operation::Barrier));
        }
        let mut state = self.state();
        // An older barrier that returns late takes nothing away.
        if state.barriers.iter().all(|other| *other < began) {
            state.durable.push(covered);
        }
        state.barriers.push(began);
        Ok(())
    }

    async fn settle(&self) {
        yield_now().await;
        let strays = std::mem::take(&mut self.state().strays);
        for (at, bytes) in strays {
            let (result, _) =
                self.memory.write(at, IoBuffer::from_slice(&bytes), Purpose::GuestData).await;
            result.unwrap();
        }
        yield_now().await;
    }
}
