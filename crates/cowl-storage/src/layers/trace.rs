//! Storage that remembers every I/O: what tests of ordering look at.
//!
//! Issue and completion take their numbers from one counter. So `a` was complete before `b` was
//! issued exactly if `a.finished < b.issued`, which is what "durable before" needs of a write and
//! its barrier.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowl_format::{ByteCount, HostOffset};

use crate::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, Operation, Purpose,
    Storage, StorageError, ZeroMode,
};

/// One I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceRecord {
    /// When it was issued, in steps of the trace.
    pub issued: u64,
    /// When it was complete; `None` while it runs, and for ever if its future was dropped.
    pub finished: Option<u64>,
    /// What was done.
    pub operation: Operation,
    /// What for; queries have no purpose.
    pub purpose: Option<Purpose>,
    /// Which bytes, where that means something. [`Operation::SetLength`] covers everything up to
    /// the new end.
    pub range: Option<(HostOffset, ByteCount)>,
    /// The errno it failed with.
    pub errno: Option<i32>,
}

impl fmt::Display for TraceRecord {
    /// For snapshot tests: `write l2-table 0x40000+4096`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.operation.name())?;
        if let Some(purpose) = self.purpose {
            write!(f, " {purpose}")?;
        }
        if let Some((at, length)) = self.range {
            write!(f, " {at:#x}+{length}")?;
        }
        match (self.errno, self.finished) {
            (Some(errno), _) => write!(f, " failed with errno {errno}"),
            (None, None) => f.write_str(" unfinished"),
            (None, Some(_)) => Ok(()),
        }
    }
}

/// What a [`TraceStorage`] has seen. Copies share it, also after the storage is gone.
#[derive(Clone, Debug, Default)]
pub struct Trace {
    log: Arc<Mutex<Log>>,
}

#[derive(Debug, Default)]
struct Log {
    step: u64,
    /// How many records were taken away before the first one in `records`.
    taken: u64,
    records: Vec<TraceRecord>,
}

/// Where the record of a running I/O is.
struct Ticket(u64);

impl Trace {
    /// Everything since the last [`Self::take`], in order of issue.
    #[must_use]
    pub fn records(&self) -> Vec<TraceRecord> {
        self.log().records.clone()
    }

    /// The same, and forgets it. What runs at this moment is told as unfinished.
    pub fn take(&self) -> Vec<TraceRecord> {
        let mut log = self.log();
        log.taken += log.records.len() as u64;
        std::mem::take(&mut log.records)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn issue(
        &self,
        operation: Operation,
        purpose: Option<Purpose>,
        range: Option<(HostOffset, ByteCount)>,
    ) -> Ticket {
        let mut log = self.log();
        let issued = log.step;
        log.step += 1;
        log.records.push(TraceRecord {
            issued,
            finished: None,
            operation,
            purpose,
            range,
            errno: None,
        });
        Ticket(log.taken + log.records.len() as u64 - 1)
    }

    fn finish<T>(&self, ticket: Ticket, result: &Result<T, StorageError>) {
        let mut log = self.log();
        let finished = log.step;
        log.step += 1;
        // Taken away while it ran: nobody looks at it any more.
        let Some(index) = ticket.0.checked_sub(log.taken) else {
            return;
        };
        let record = &mut log.records[ByteCount::new(index).as_usize()];
        record.finished = Some(finished);
        record.errno = result.as_ref().err().map(StorageError::errno);
    }
}

/// Passes everything through and writes it down.
#[derive(Debug)]
pub struct TraceStorage<S> {
    inner: S,
    trace: Trace,
}

impl<S: Storage> TraceStorage<S> {
    /// Watches `inner`.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self { inner, trace: Trace::default() }
    }

    /// What was seen.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.trace.clone()
    }

    /// The storage below.
    #[must_use]
    pub const fn inner(&self) -> &S {
        &self.inner
    }

    /// Gives the storage below back.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.inner
    }

    async fn watch<T>(
        &self,
        operation: Operation,
        purpose: Option<Purpose>,
        range: Option<(HostOffset, ByteCount)>,
        run: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        let ticket = self.trace.issue(operation, purpose, range);
        let result = run.await;
        self.trace.finish(ticket, &result);
        result
    }

    async fn watch_buffer<T, B>(
        &self,
        operation: Operation,
        purpose: Purpose,
        range: (HostOffset, ByteCount),
        run: impl Future<Output = IoResult<T, B>>,
    ) -> IoResult<T, B> {
        let ticket = self.trace.issue(operation, Some(purpose), Some(range));
        let (result, buffer) = run.await;
        self.trace.finish(ticket, &result);
        (result, buffer)
    }

    /// Notes an I/O that was served inline; one that was not is not an I/O.
    fn note<T>(
        &self,
        operation: Operation,
        purpose: Purpose,
        range: (HostOffset, usize),
        run: impl FnOnce() -> Option<Result<T, StorageError>>,
    ) -> Option<Result<T, StorageError>> {
        let result = run()?;
        let range = (range.0, ByteCount::from_usize(range.1));
        let ticket = self.trace.issue(operation, Some(purpose), Some(range));
        self.trace.finish(ticket, &result);
        Some(result)
    }
}

impl<S: Storage> Storage for TraceStorage<S> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn name(&self) -> &Path {
        self.inner.name()
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.inner.identity()
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        self.watch(Operation::Query, None, None, self.inner.len()).await
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        self.watch(Operation::Query, None, None, self.inner.allocated()).await
    }

    async fn read(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        let range = (at, ByteCount::from_usize(buffer.len()));
        let run = self.inner.read(at, buffer, purpose);
        self.watch_buffer(Operation::Read, purpose, range, run).await
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        let range = (at, super::total_length(&buffers));
        let run = self.inner.read_vectored(at, buffers, purpose);
        self.watch_buffer(Operation::Read, purpose, range, run).await
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        let range = (at, ByteCount::from_usize(buffer.len()));
        let run = self.inner.write(at, buffer, purpose);
        self.watch_buffer(Operation::Write, purpose, range, run).await
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        let range = (at, super::total_length(&buffers));
        let run = self.inner.write_vectored(at, buffers, purpose);
        self.watch_buffer(Operation::Write, purpose, range, run).await
    }

    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        let range = (at, buffer.len());
        self.note(Operation::Read, purpose, range, || self.inner.try_read(at, buffer, purpose))
    }

    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        let range = (at, bytes.len());
        self.note(Operation::Write, purpose, range, || self.inner.try_write(at, bytes, purpose))
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let run = self.inner.zero(at, length, mode, purpose);
        self.watch(Operation::Zero, Some(purpose), Some((at, length)), run).await
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let run = self.inner.discard(at, length, purpose);
        self.watch(Operation::Discard, Some(purpose), Some((at, length)), run).await
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let run = self.inner.allocate(at, length, how, purpose);
        self.watch(Operation::Allocate, Some(purpose), Some((at, length)), run).await
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        let range = (HostOffset::ZERO, length);
        let run = self.inner.set_len(length, purpose);
        self.watch(Operation::SetLength, Some(purpose), Some(range), run).await
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        let run = self.inner.extent(at, length_max);
        self.watch(Operation::Query, None, Some((at, length_max)), run).await
    }

    async fn barrier(&self, purpose: Purpose) -> Result<(), StorageError> {
        let run = self.inner.barrier(purpose);
        self.watch(Operation::Barrier, Some(purpose), None, run).await
    }

    async fn settle(&self) {
        self.inner.settle().await;
    }
}
