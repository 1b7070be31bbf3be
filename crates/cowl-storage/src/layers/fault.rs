//! Storage that fails where it is told to: for tests of everything that can go wrong below.
//!
//! A barrier that was made to fail stays failed, as [`Storage::barrier`] promises of every driver.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cowl_format::{ByteCount, HostOffset};

use crate::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, Operation, Purpose,
    Storage, StorageError, ZeroMode,
};

/// What happens to an I/O that a rule selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEffect {
    /// Nothing is done.
    Fail {
        /// The error it fails with.
        errno: i32,
    },
    /// All of it is done, and an error is reported all the same: the outcome the caller cannot
    /// know.
    FailAfterwards {
        /// The error it fails with.
        errno: i32,
    },
    /// A write stores its first bytes only, then fails. Other operations just fail.
    Tear {
        /// How many bytes are stored.
        length: ByteCount,
        /// The error it fails with.
        errno: i32,
    },
    /// A read finds the end of the file early: zeros from there on, and a lower count. Other
    /// operations pass.
    Shorten {
        /// How many bytes are real.
        length: ByteCount,
    },
}

/// Selects I/Os and says what happens to them. Without further conditions it selects all, for ever.
#[derive(Clone, Copy, Debug)]
pub struct FaultRule {
    effect: FaultEffect,
    operation: Option<Operation>,
    purpose: Option<Purpose>,
    touching: Option<(HostOffset, ByteCount)>,
    skip: u64,
    times: u64,
}

impl FaultRule {
    /// Selects every I/O.
    #[must_use]
    pub const fn new(effect: FaultEffect) -> Self {
        Self { effect, operation: None, purpose: None, touching: None, skip: 0, times: u64::MAX }
    }

    /// Every I/O fails with `errno` and does nothing.
    #[must_use]
    pub const fn fail(errno: i32) -> Self {
        Self::new(FaultEffect::Fail { errno })
    }

    /// Only this operation.
    #[must_use]
    pub const fn operation(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// Only I/O for this purpose.
    #[must_use]
    pub const fn purpose(mut self, purpose: Purpose) -> Self {
        self.purpose = Some(purpose);
        self
    }

    /// Only I/O that touches a byte of this range.
    #[must_use]
    pub const fn touching(mut self, at: HostOffset, length: ByteCount) -> Self {
        self.touching = Some((at, length));
        self
    }

    /// Lets the first `count` of those pass.
    #[must_use]
    pub const fn after(mut self, count: u64) -> Self {
        self.skip = count;
        self
    }

    /// Acts on `count` of them and is spent.
    #[must_use]
    pub const fn times(mut self, count: u64) -> Self {
        self.times = count;
        self
    }

    fn selects(&self, io: &Io) -> bool {
        self.operation.is_none_or(|operation| operation == io.operation)
            && self.purpose.is_none_or(|purpose| Some(purpose) == io.purpose)
            && self.touching.is_none_or(|range| io.touches(range))
    }
}

/// The I/O that rules look at.
struct Io {
    operation: Operation,
    purpose: Option<Purpose>,
    range: Option<(HostOffset, ByteCount)>,
}

impl Io {
    fn touches(&self, (at, length): (HostOffset, ByteCount)) -> bool {
        let Some((own_at, own_length)) = self.range else {
            return false;
        };
        let end = |at: HostOffset, length: ByteCount| at.get().saturating_add(length.get());
        at.get() < end(own_at, own_length) && own_at.get() < end(at, length)
    }
}

/// Passes everything through but what its rules select.
#[derive(Debug)]
pub struct FaultStorage<S> {
    inner: S,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<FaultRule>,
    /// How often a rule has acted.
    hits: u64,
    barrier_failed: Option<i32>,
}

impl<S: Storage> FaultStorage<S> {
    /// Over `inner`, without a rule.
    #[must_use]
    pub fn new(inner: S) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// Adds a rule. Of several that select an I/O the first one added acts.
    pub fn add(&self, rule: FaultRule) {
        self.state().rules.push(rule);
    }

    /// Drops all rules. A failed barrier stays failed.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// How often a rule has acted: a test that injects nothing proves nothing.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.state().hits
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(&self, io: &Io) -> Option<FaultEffect> {
        let mut state = self.state();
        let mut decided = None;
        for rule in state.rules.iter_mut().filter(|rule| rule.selects(io)) {
            if 0 < rule.skip {
                rule.skip -= 1;
            } else if 0 < rule.times {
                rule.times -= 1;
                decided = Some(rule.effect);
                break;
            }
        }
        state.hits += u64::from(decided.is_some());
        decided
    }

    fn error(&self, io: &Io, errno: i32) -> StorageError {
        let source = std::io::Error::from_raw_os_error(errno);
        StorageError::new(self.name(), io.operation, io.purpose, io.range, source)
    }

    /// An operation without bytes: done, refused, or done and denied.
    async fn meddle<T>(
        &self,
        io: Io,
        run: impl Future<Output = Result<T, StorageError>>,
    ) -> Result<T, StorageError> {
        match self.decide(&io) {
            None | Some(FaultEffect::Shorten { .. }) => run.await,
            Some(FaultEffect::Fail { errno } | FaultEffect::Tear { errno, .. }) => {
                Err(self.error(&io, errno))
            }
            Some(FaultEffect::FailAfterwards { errno }) => {
                run.await?;
                Err(self.error(&io, errno))
            }
        }
    }
}

/// Cuts what was read to `length` bytes over all buffers and returns what is left of `count`.
fn shorten<'a>(
    buffers: impl Iterator<Item = &'a mut [u8]>,
    length: ByteCount,
    count: ByteCount,
) -> ByteCount {
    let mut left = length.as_usize();
    for bytes in buffers {
        let kept = left.min(bytes.len());
        bytes[kept..].fill(0);
        left -= kept;
    }
    count.min(length)
}

impl<S: Storage> Storage for FaultStorage<S> {
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
        let io = Io { operation: Operation::Query, purpose: None, range: None };
        self.meddle(io, self.inner.len()).await
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        let io = Io { operation: Operation::Query, purpose: None, range: None };
        self.meddle(io, self.inner.allocated()).await
    }

    async fn read(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        let (result, mut buffers) = self.read_vectored(at, vec![buffer], purpose).await;
        (result, buffers.pop().expect("one buffer went in"))
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        let range = Some((at, super::total_length(&buffers)));
        let io = Io { operation: Operation::Read, purpose: Some(purpose), range };
        let effect = self.decide(&io);
        if let Some(FaultEffect::Fail { errno } | FaultEffect::Tear { errno, .. }) = effect {
            return (Err(self.error(&io, errno)), buffers);
        }
        let (result, mut buffers) = self.inner.read_vectored(at, buffers, purpose).await;
        let result = match (result, effect) {
            (Ok(_), Some(FaultEffect::FailAfterwards { errno })) => Err(self.error(&io, errno)),
            (Ok(count), Some(FaultEffect::Shorten { length })) => {
                Ok(shorten(buffers.iter_mut().map(|buffer| &mut buffer[..]), length, count))
            }
            (result, _) => result,
        };
        (result, buffers)
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        let (result, mut buffers) = self.write_vectored(at, vec![buffer], purpose).await;
        (result, buffers.pop().expect("one buffer went in"))
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        let range = Some((at, super::total_length(&buffers)));
        let io = Io { operation: Operation::Write, purpose: Some(purpose), range };
        match self.decide(&io) {
            None | Some(FaultEffect::Shorten { .. }) => {
                self.inner.write_vectored(at, buffers, purpose).await
            }
            Some(FaultEffect::Fail { errno }) => (Err(self.error(&io, errno)), buffers),
            Some(FaultEffect::FailAfterwards { errno }) => {
                let (result, buffers) = self.inner.write_vectored(at, buffers, purpose).await;
                (result.and(Err(self.error(&io, errno))), buffers)
            }
            Some(FaultEffect::Tear { length, errno }) => {
                let mut stored = crate::file::join(&buffers);
                stored.truncate(stored.len().min(length.as_usize()));
                let (result, _) = self.inner.write(at, stored, purpose).await;
                (result.and(Err(self.error(&io, errno))), buffers)
            }
        }
    }

    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        let count = match self.inner.try_read(at, buffer, purpose)? {
            Ok(count) => count,
            Err(error) => return Some(Err(error)),
        };
        let range = Some((at, ByteCount::from_usize(buffer.len())));
        let io = Io { operation: Operation::Read, purpose: Some(purpose), range };
        Some(match self.decide(&io) {
            None => Ok(count),
            Some(FaultEffect::Shorten { length }) => {
                Ok(shorten(std::iter::once(buffer), length, count))
            }
            Some(
                FaultEffect::Fail { errno }
                | FaultEffect::FailAfterwards { errno }
                | FaultEffect::Tear { errno, .. },
            ) => Err(self.error(&io, errno)),
        })
    }

    /// Not while there are rules: whether the write would be served inline cannot be known without
    /// doing it, so it goes through [`Storage::write`], which every caller has to be able to do
    /// anyway.
    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        if !self.state().rules.is_empty() {
            return None;
        }
        self.inner.try_write(at, bytes, purpose)
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let range = Some((at, length));
        let io = Io { operation: Operation::Zero, purpose: Some(purpose), range };
        self.meddle(io, self.inner.zero(at, length, mode, purpose)).await
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let range = Some((at, length));
        let io = Io { operation: Operation::Discard, purpose: Some(purpose), range };
        self.meddle(io, self.inner.discard(at, length, purpose)).await
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let range = Some((at, length));
        let io = Io { operation: Operation::Allocate, purpose: Some(purpose), range };
        self.meddle(io, self.inner.allocate(at, length, how, purpose)).await
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        let range = Some((HostOffset::ZERO, length));
        let io = Io { operation: Operation::SetLength, purpose: Some(purpose), range };
        self.meddle(io, self.inner.set_len(length, purpose)).await
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        let range = Some((at, length_max));
        let io = Io { operation: Operation::Query, purpose: None, range };
        self.meddle(io, self.inner.extent(at, length_max)).await
    }

    async fn barrier(&self, purpose: Purpose) -> Result<(), StorageError> {
        let io = || Io { operation: Operation::Barrier, purpose: Some(purpose), range: None };
        let failed = self.state().barrier_failed;
        if let Some(errno) = failed {
            return Err(self.error(&io(), errno));
        }
        let result = self.meddle(io(), self.inner.barrier(purpose)).await;
        if let Err(error) = &result {
            self.state().barrier_failed = Some(error.errno());
        }
        result
    }

    async fn settle(&self) {
        self.inner.settle().await;
    }
}
