//! Storage in memory that writes down every change and every barrier, and can be slow.
//!
//! Slow means: each I/O is pending once, and is carried out when it is polled again. One that was
//! dropped meanwhile is carried out later: after a few more I/Os, or when somebody waits for the
//! storage to settle.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use cowl_format::{ByteCount, HostOffset};
use cowl_storage::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, MemoryStorage, Purpose,
    Storage, StorageError, ZeroMode,
};
use pollster::block_on;

/// What a change does.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Write { at: u64, bytes: Vec<u8> },
    Zero { at: u64, length: u64, extends: bool },
    Extend { end: u64 },
    SetLength { length: u64 },
}

/// A change of one file.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) file: usize,
    /// Length of the log when it was issued.
    pub(crate) issued: usize,
    pub(crate) purpose: Purpose,
    pub(crate) kind: Kind,
}

/// Something that has come to its end.
#[derive(Clone, Debug)]
pub(crate) enum Event {
    Change(Change),
    /// Covers everything in the log before `issued`.
    Barrier {
        file: usize,
        issued: usize,
    },
    /// The guest issued a request, or got its answer.
    Mark,
}

#[derive(Default)]
struct State {
    log: Vec<Event>,
    is_slow: bool,
    keeps_discarded: bool,
    /// Dropped I/Os are carried out when this many others have ended.
    patience: usize,
    orphans: Vec<(usize, Arc<MemoryStorage>, Change)>,
}

/// What all files of one experiment share.
#[derive(Clone, Default)]
pub(crate) struct Lab {
    state: Arc<Mutex<State>>,
}

impl Lab {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events there are.
    pub(crate) fn position(&self) -> usize {
        self.state().log.len()
    }

    /// Whether discarded ranges read as zeros; else nothing happens to them.
    pub(crate) fn set_can_discard(&self, can_discard: bool) {
        self.state().keeps_discarded = !can_discard;
    }

    /// Notes that time goes on for the guest; returns the position behind it.
    pub(crate) fn mark(&self) -> usize {
        let mut state = self.state();
        state.log.push(Event::Mark);
        state.log.len()
    }

    pub(crate) fn log(&self) -> Vec<Event> {
        self.state().log.clone()
    }

    /// From now on every I/O is pending once.
    pub(crate) fn be_slow(&self, patience: usize) {
        let mut state = self.state();
        (state.is_slow, state.patience) = (true, patience);
    }

    fn end(&self, event: Event) {
        let mut state = self.state();
        state.log.push(event);
        let now = state.log.len();
        let patience = state.patience;
        let (late, rest) = std::mem::take(&mut state.orphans)
            .into_iter()
            .partition(|(at, _, _)| at + patience < now);
        state.orphans = rest;
        carry_out(&mut state, late);
    }

    fn settle(&self) {
        let mut state = self.state();
        let orphans = std::mem::take(&mut state.orphans);
        carry_out(&mut state, orphans);
    }
}

fn carry_out(state: &mut State, orphans: Vec<(usize, Arc<MemoryStorage>, Change)>) {
    for (_, content, change) in orphans {
        change.kind.apply(&content);
        state.log.push(Event::Change(change));
    }
}

impl Kind {
    /// Does it to a file in memory.
    pub(crate) fn apply(&self, content: &MemoryStorage) {
        let purpose = Purpose::GuestData;
        let extend = |end: u64| {
            if block_on(content.len()).unwrap().get() < end {
                block_on(content.set_len(ByteCount::new(end), purpose)).unwrap();
            }
        };
        match self {
            Self::Write { at, bytes } => {
                content.try_write(HostOffset::new(*at), bytes, purpose).unwrap().unwrap();
            }
            Self::Zero { at, length, extends } => {
                let (at, length) = (HostOffset::new(*at), ByteCount::new(*length));
                block_on(content.discard(at, length, purpose)).unwrap();
                if *extends {
                    extend(at.get() + length.get());
                }
            }
            Self::Extend { end } => extend(*end),
            Self::SetLength { length } => {
                block_on(content.set_len(ByteCount::new(*length), purpose)).unwrap();
            }
        }
    }
}

/// One file of an experiment.
pub(crate) struct LabStorage {
    content: Arc<MemoryStorage>,
    lab: Lab,
    file: usize,
}

impl LabStorage {
    pub(crate) fn new(content: MemoryStorage, lab: &Lab, file: usize) -> Self {
        Self { content: Arc::new(content), lab: lab.clone(), file }
    }

    /// The content of this moment.
    pub(crate) fn content(&self) -> MemoryStorage {
        self.content.snapshot()
    }

    async fn change(&self, kind: Kind, purpose: Purpose) {
        let issued = self.lab.position();
        let change = Change { file: self.file, issued, purpose, kind };
        let mut flight = Flight { storage: self, change: Some(change), was_polled: false };
        self.wait(|| flight.was_polled = true).await;
        let change = flight.change.take().unwrap();
        change.kind.apply(&self.content);
        self.lab.end(Event::Change(change));
    }

    /// Is pending once, if the lab is slow.
    async fn wait(&self, mut issued: impl FnMut()) {
        let mut was_polled = !self.lab.state().is_slow;
        std::future::poll_fn(|context| {
            if std::mem::replace(&mut was_polled, true) {
                return Poll::Ready(());
            }
            issued();
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

/// An I/O under way.
struct Flight<'a> {
    storage: &'a LabStorage,
    change: Option<Change>,
    was_polled: bool,
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        if let Some(change) = self.change.take().filter(|_| self.was_polled) {
            let content = Arc::clone(&self.storage.content);
            let mut state = self.storage.lab.state();
            let now = state.log.len();
            state.orphans.push((now, content, change));
        }
    }
}

impl Storage for LabStorage {
    fn capabilities(&self) -> Capabilities {
        let can_discard = !self.lab.state().keeps_discarded;
        Capabilities { can_discard, ..self.content.capabilities() }
    }

    fn name(&self) -> &Path {
        self.content.name()
    }

    fn identity(&self) -> Option<FileIdentity> {
        None
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        self.content.len().await
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        self.content.allocated().await
    }

    async fn read(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        self.wait(|| ()).await;
        self.content.read(at, buffer, purpose).await
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        self.wait(|| ()).await;
        self.content.read_vectored(at, buffers, purpose).await
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        let bytes = buffer.to_vec();
        self.change(Kind::Write { at: at.get(), bytes }, purpose).await;
        (Ok(()), buffer)
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        let bytes = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        self.change(Kind::Write { at: at.get(), bytes }, purpose).await;
        (Ok(()), buffers)
    }

    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        if self.lab.state().is_slow {
            return None;
        }
        self.content.try_read(at, buffer, purpose)
    }

    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        if self.lab.state().is_slow {
            return None;
        }
        block_on(self.change(Kind::Write { at: at.get(), bytes: bytes.to_vec() }, purpose));
        Some(Ok(()))
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        _: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let kind = Kind::Zero { at: at.get(), length: length.get(), extends: true };
        self.change(kind, purpose).await;
        Ok(())
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        if self.capabilities().can_discard {
            let kind = Kind::Zero { at: at.get(), length: length.get(), extends: false };
            self.change(kind, purpose).await;
        }
        Ok(())
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        _: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        self.change(Kind::Extend { end: at.get() + length.get() }, purpose).await;
        Ok(())
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        self.change(Kind::SetLength { length: length.get() }, purpose).await;
        Ok(())
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        self.content.extent(at, length_max).await
    }

    async fn barrier(&self, _: Purpose) -> Result<(), StorageError> {
        let issued = self.lab.position();
        self.wait(|| ()).await;
        self.lab.end(Event::Barrier { file: self.file, issued });
        Ok(())
    }

    async fn settle(&self) {
        self.wait(|| ()).await;
        self.lab.settle();
    }
}
