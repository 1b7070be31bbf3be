//! [`UringStorage`]: which way each operation takes, and its errors.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use cowl_format::{ByteCount, HostOffset};
use rustix::io::Errno;

use super::background::Background;
use super::ring::{self, Target};
use crate::file::{FileKind, OpenFile, join};
use crate::{
    Allocation, Capabilities, FileIdentity, FileOptions, FileStorage, HostExtent, IoBuffer,
    IoResult, LockMode, Operation, Purpose, Storage, StorageError, ZeroMode,
};

/// A file or block device, driven by io_uring.
///
/// Its futures run inside a compio runtime, and panic outside one.
pub struct UringStorage {
    file: Arc<OpenFile>,
    /// Held for reading by every change that is under way, whether anybody waits for it or not.
    flights: Arc<async_lock::RwLock<()>>,
    writeback: Background,
}

impl UringStorage {
    /// Opens `path`. This needs no runtime yet.
    pub fn open(path: impl AsRef<Path>, options: FileOptions) -> Result<Self, StorageError> {
        Ok(FileStorage::open(path, options)?.into())
    }

    /// Exchanges the image lock for another, or keeps it where that one cannot be had.
    pub fn change_lock(&self, wanted: LockMode) -> Result<(), StorageError> {
        self.file.change_lock(wanted)
    }

    #[cold]
    fn error(
        &self,
        operation: Operation,
        purpose: Option<Purpose>,
        range: Option<(HostOffset, ByteCount)>,
        source: io::Error,
    ) -> StorageError {
        StorageError::new(self.name(), operation, purpose, range, source)
    }

    /// Runs `work` on a worker thread of the runtime.
    async fn offload<T: Send + 'static>(
        &self,
        work: impl FnOnce(&OpenFile) -> T + Send + 'static,
    ) -> io::Result<T> {
        let file = Arc::clone(&self.file);
        let worker = compio::runtime::spawn_blocking(move || work(&file));
        // The worker panicked or the runtime is going away: the outcome is unknown.
        worker.await.map_err(|_| Errno::IO.into())
    }

    /// As [`Self::offload`], for a change of a range.
    async fn change(
        &self,
        operation: Operation,
        purpose: Purpose,
        range: (HostOffset, ByteCount),
        work: impl FnOnce(&OpenFile) -> Result<(), Errno> + Send + 'static,
    ) -> Result<(), StorageError> {
        let flight = self.flights.read_arc().await;
        let work = move |file: &OpenFile| {
            let _until_done = flight;
            work(file)
        };
        let result = match self.offload(work).await {
            Ok(result) => result.map_err(io::Error::from),
            Err(error) => Err(error),
        };
        result.map_err(|source| self.error(operation, Some(purpose), Some(range), source))
    }

    async fn read_any(&self, at: u64, buffer: IoBuffer) -> (io::Result<usize>, IoBuffer) {
        let target = Target::reading(&self.file);
        if self.file.is_aligned(at, &buffer) {
            return ring::read(target, at, buffer, 0).await;
        }
        self.read_unaligned(target, at, buffer).await
    }

    /// Reads the blocks around the range and copies the range out of them.
    async fn read_unaligned(
        &self,
        target: Target,
        at: u64,
        mut buffer: IoBuffer,
    ) -> (io::Result<usize>, IoBuffer) {
        let unit = u64::from(self.file.capabilities().io_alignment);
        let start = at / unit * unit;
        let length = ByteCount::from_usize(buffer.len()).get();
        let end = at.checked_add(length).and_then(|end| end.checked_next_multiple_of(unit));
        let Some(end) = end else {
            return (Err(Errno::INVAL.into()), buffer);
        };
        let skip = ByteCount::new(at - start).as_usize();
        let around = IoBuffer::zeroed(ByteCount::new(end - start).as_usize());
        let (result, around) = ring::read(target, start, around, 0).await;
        let result = result.map(|count| {
            let wanted = buffer.len();
            buffer.copy_from_slice(&around[skip..skip + wanted]);
            count.saturating_sub(skip).min(wanted)
        });
        (result, buffer)
    }

    async fn write_any(&self, at: u64, buffer: IoBuffer) -> (io::Result<()>, IoBuffer) {
        let length = buffer.len();
        let outcome = self.write_any_untold(at, buffer).await;
        self.wrote(at, length, outcome.0.is_ok());
        outcome
    }

    /// To be told of each write that is done.
    #[inline]
    fn wrote(&self, at: u64, length: usize, is_done: bool) {
        if is_done && let Some(range) = self.file.wrote(at, length) {
            self.writeback.start(&self.file, range);
        }
    }

    async fn write_any_untold(&self, at: u64, buffer: IoBuffer) -> (io::Result<()>, IoBuffer) {
        if self.file.takes_at_once(at, buffer.len()) {
            return (self.file.write_now(at, &buffer).map_err(io::Error::from), buffer);
        }
        if self.file.is_aligned(at, &buffer) {
            let target = Target::writing(&self.file, &self.flights).await;
            return ring::write(target, at, buffer, 0).await;
        }
        let length = buffer.len();
        let flight = self.flights.read_arc().await;
        let work = move |file: &OpenFile| {
            let _until_done = flight;
            (file.write_now(at, &buffer), buffer)
        };
        match self.offload(work).await {
            Ok((result, buffer)) => (result.map_err(io::Error::from), buffer),
            // The buffer is lost with the worker; the caller gets one of the same length.
            Err(error) => (Err(error), IoBuffer::zeroed(length)),
        }
    }

    /// Runs or joins a barrier.
    async fn barrier_any(&self) -> Result<(), Errno> {
        if self.file.kind() == FileKind::Character {
            return Ok(());
        }
        let arrival = self.file.barriers.arrive();
        while let Some(turn) = self.file.barriers.turn(arrival).await? {
            // On its own: if this future is dropped, the outcome has to be recorded all the same.
            let (target, file) = (Target::reading(&self.file), Arc::clone(&self.file));
            let task = async move {
                turn.finish(match ring::fdatasync(target).await {
                    Ok(()) => file.writeback_outcome().await,
                    failed => failed,
                })
            };
            compio::runtime::spawn(task).detach();
        }
        Ok(())
    }
}

impl From<FileStorage> for UringStorage {
    fn from(storage: FileStorage) -> Self {
        let file = Arc::new(storage.into_open_file().with_one_way());
        Self { file, flights: Arc::default(), writeback: Background::default() }
    }
}

impl fmt::Debug for UringStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("UringStorage").field(&self.name()).finish()
    }
}

impl Storage for UringStorage {
    fn capabilities(&self) -> Capabilities {
        Capabilities { inline: false, ..self.file.capabilities() }
    }

    fn name(&self) -> &Path {
        self.file.path()
    }

    fn identity(&self) -> Option<FileIdentity> {
        Some(self.file.identity())
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        let length = self.file.length().map(ByteCount::new);
        length.map_err(|errno| self.error(Operation::Query, None, None, errno.into()))
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        let length = self.file.allocated().map(ByteCount::new);
        length.map_err(|errno| self.error(Operation::Query, None, None, errno.into()))
    }

    async fn read(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        let length = buffer.len();
        // One request serves nearly all reads; each future around it costs a hundred instructions.
        let outcome = match ring::Whole::new(&self.file, at.get(), buffer) {
            Ok(whole) => {
                let read = match whole.start() {
                    Ok(reading) => reading.await,
                    Err(whole) => whole.run().await,
                };
                match read {
                    Ok(buffer) => return (Ok(ByteCount::from_usize(length)), buffer),
                    Err(partly) => Box::pin(partly.go_on()).await,
                }
            }
            Err(buffer) => Box::pin(self.read_any(at.get(), buffer)).await,
        };
        let (result, buffer) = outcome;
        let range = (at, ByteCount::from_usize(length));
        let result = result
            .map(ByteCount::from_usize)
            .map_err(|source| self.error(Operation::Read, Some(purpose), Some(range), source));
        (result, buffer)
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        let length = buffers.iter().map(|buffer| buffer.len()).sum();
        let (result, buffers) = if self.file.are_aligned(at.get(), &buffers) {
            ring::read_vectored(Target::reading(&self.file), at.get(), buffers).await
        } else {
            let (result, joined) = self.read_any(at.get(), IoBuffer::zeroed(length)).await;
            (result, split(&joined, buffers))
        };
        let range = (at, ByteCount::from_usize(length));
        let result = result
            .map(ByteCount::from_usize)
            .map_err(|source| self.error(Operation::Read, Some(purpose), Some(range), source));
        (result, buffers)
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        let range = (at, ByteCount::from_usize(buffer.len()));
        let (result, buffer) = self.write_any(at.get(), buffer).await;
        let result = result
            .map_err(|source| self.error(Operation::Write, Some(purpose), Some(range), source));
        (result, buffer)
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        let length = buffers.iter().map(|buffer| buffer.len()).sum();
        let (result, buffers) = if self.file.takes_at_once(at.get(), length) {
            let result = self.file.write_vectored_now(at.get(), &buffers);
            (result.map_err(io::Error::from), buffers)
        } else if self.file.are_aligned(at.get(), &buffers) {
            let target = Target::writing(&self.file, &self.flights).await;
            ring::write_vectored(target, at.get(), buffers).await
        } else {
            (self.write_any_untold(at.get(), join(&buffers)).await.0, buffers)
        };
        self.wrote(at.get(), length, result.is_ok());
        let range = (at, ByteCount::from_usize(length));
        let result = result
            .map_err(|source| self.error(Operation::Write, Some(purpose), Some(range), source));
        (result, buffers)
    }

    #[inline]
    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        Some(match self.file.read_cached(at.get(), buffer)? {
            Ok(count) => Ok(ByteCount::from_usize(count)),
            Err(errno) => {
                let range = (at, ByteCount::from_usize(buffer.len()));
                Err(self.error(Operation::Read, Some(purpose), Some(range), errno.into()))
            }
        })
    }

    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        if !self.file.takes_at_once(at.get(), bytes.len()) {
            return None;
        }
        let result = self.file.write_now(at.get(), bytes);
        self.wrote(at.get(), bytes.len(), result.is_ok());
        let range = (at, ByteCount::from_usize(bytes.len()));
        Some(result.map_err(|errno| {
            self.error(Operation::Write, Some(purpose), Some(range), errno.into())
        }))
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let work = move |file: &OpenFile| file.zero(at.get(), length.get(), mode);
        self.change(Operation::Zero, purpose, (at, length), work).await
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let work = move |file: &OpenFile| file.discard(at.get(), length.get());
        self.change(Operation::Discard, purpose, (at, length), work).await
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let work = move |file: &OpenFile| file.allocate(at.get(), length.get(), how);
        self.change(Operation::Allocate, purpose, (at, length), work).await
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        let work = move |file: &OpenFile| file.set_length(length.get());
        self.change(Operation::SetLength, purpose, (HostOffset::ZERO, length), work).await
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        self.file.extent(at.get(), length_max.get()).map_err(|errno| {
            self.error(Operation::Query, None, Some((at, length_max)), errno.into())
        })
    }

    async fn barrier(&self, purpose: Purpose) -> Result<(), StorageError> {
        let result = self.barrier_any().await;
        result.map_err(|errno| self.error(Operation::Barrier, Some(purpose), None, errno.into()))
    }

    async fn settle(&self) {
        // Every change holds this lock for reading until the kernel is done with it.
        drop(self.flights.write().await);
    }
}

/// Copies `joined` into `buffers`, one after another.
fn split(joined: &[u8], mut buffers: Vec<IoBuffer>) -> Vec<IoBuffer> {
    let mut rest = joined;
    for buffer in &mut buffers {
        let (part, after) = rest.split_at(buffer.len());
        buffer.copy_from_slice(part);
        rest = after;
    }
    buffers
}
