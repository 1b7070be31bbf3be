//! A file of the simulated host, as the engine sees it.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use cowl_format::{ByteCount, HostOffset};
use cowl_storage::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, Operation, Purpose,
    Storage, StorageError, ZeroMode,
};

use crate::SimWorld;
use crate::effect::{self, Effect};
use crate::world::{Outcome, Request};

/// One file of a [`SimWorld`].
#[derive(Clone)]
pub struct SimStorage {
    world: SimWorld,
    file: usize,
    name: PathBuf,
    read_only: bool,
}

/// An I/O: issued when it is first polled, not cancelled when it is dropped.
struct SimIo<'a> {
    world: &'a SimWorld,
    request: Option<Request>,
    number: Option<u64>,
}

impl Future for SimIo<'_> {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        let mut host = self.world.host();
        let number = match (self.number, self.request.take()) {
            (Some(number), _) => number,
            (None, request) => {
                let request = request.expect("issued once");
                let number = host.submit(request);
                self.number = Some(number);
                number
            }
        };
        match host.collect(number, context.waker()) {
            Some(outcome) => {
                self.number = None;
                Poll::Ready(outcome)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for SimIo<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            self.world.host().abandon(number);
        }
    }
}

/// Waits until I/Os are gone.
struct Settle<'a> {
    world: &'a SimWorld,
    numbers: Vec<u64>,
}

impl Future for Settle<'_> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let orphans = self.world.host().orphans();
        if !self.numbers.iter().any(|number| orphans.contains(number)) {
            return Poll::Ready(());
        }
        // Whoever steps the host steps us too: asking again each time needs no list of waiters.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl SimWorld {
    /// File number `file`, counted from 0 in the order they were given.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn storage(&self, file: usize) -> SimStorage {
        let host = self.host();
        let state = &host.files[file];
        let (name, read_only) = (PathBuf::from(&state.name), state.read_only);
        drop(host);
        SimStorage { world: self.clone(), file, name, read_only }
    }
}

impl SimStorage {
    fn request(&self, operation: Operation, purpose: Purpose, at: u64, length: u64) -> Request {
        Request {
            file: self.file,
            operation,
            purpose: Some(purpose),
            at,
            length,
            buffers: Vec::new(),
            effects: Vec::new(),
        }
    }

    fn issue(&self, request: Request) -> SimIo<'_> {
        SimIo { world: &self.world, request: Some(request), number: None }
    }

    fn write_request(&self, at: HostOffset, buffers: Vec<IoBuffer>, purpose: Purpose) -> Request {
        let bytes: Arc<[u8]> = buffers.iter().flat_map(|buffer| buffer.iter().copied()).collect();
        let length = bytes.len() as u64;
        let effects = if length == 0 { Vec::new() } else { effect::of_write(at.get(), &bytes) };
        let request = self.request(Operation::Write, purpose, at.get(), length);
        Request { buffers, effects, ..request }
    }

    fn read_request(&self, at: HostOffset, buffers: Vec<IoBuffer>, purpose: Purpose) -> Request {
        let length = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        Request { buffers, ..self.request(Operation::Read, purpose, at.get(), length) }
    }

    async fn change(
        &self,
        operation: Operation,
        purpose: Purpose,
        (at, length): (u64, u64),
        effects: Vec<Effect>,
    ) -> Result<(), StorageError> {
        let request = Request { effects, ..self.request(operation, purpose, at, length) };
        let outcome = self.issue(request).await;
        outcome.result.map_err(|e| self.error(operation, Some(purpose), at, length, e))?;
        Ok(())
    }

    fn error(
        &self,
        operation: Operation,
        purpose: Option<Purpose>,
        at: u64,
        length: u64,
        errno: i32,
    ) -> StorageError {
        let range = Some((HostOffset::new(at), ByteCount::new(length)));
        let source = std::io::Error::from_raw_os_error(errno);
        StorageError::new(&self.name, operation, purpose, range, source)
    }

    /// Whether this call of a `try_` method answers; by chance.
    fn answers_inline(&self, at: HostOffset, length: usize) -> bool {
        let options = self.world.options();
        let alignment = u64::from(options.io_alignment);
        let aligned =
            at.get().is_multiple_of(alignment) && (length as u64).is_multiple_of(alignment);
        if options.calm {
            return aligned;
        }
        aligned && 0 < options.inline_percent && {
            let percent = options.inline_percent;
            self.world.host().random.chance(percent)
        }
    }

    /// Ends a request within the call.
    fn run_inline(&self, request: Request) -> Outcome {
        let mut host = self.world.host();
        let number = host.submit(request);
        host.complete_inline(number)
    }

    fn is_hole(&self, block: u64) -> bool {
        let size = u64::from(self.world.options().block_size);
        let host = self.world.host();
        let content = &host.files[self.file].content;
        let start = usize::try_from(block * size).unwrap_or(usize::MAX).min(content.len());
        let end = usize::try_from((block + 1) * size).unwrap_or(usize::MAX).min(content.len());
        content[start..end].iter().all(|byte| *byte == 0)
    }

    fn length_now(&self) -> u64 {
        self.world.host().files[self.file].content.len() as u64
    }
}

impl Storage for SimStorage {
    fn capabilities(&self) -> Capabilities {
        let options = self.world.options();
        Capabilities {
            io_alignment: options.io_alignment,
            // Where memory lies differs from run to run, so nothing may depend on it.
            memory_alignment: 1,
            block_size: options.block_size,
            read_only: self.read_only,
            inline: 0 < options.inline_percent,
            can_discard: options.can_discard,
            knows_holes: options.knows_holes,
        }
    }

    fn name(&self) -> &Path {
        &self.name
    }

    fn identity(&self) -> Option<FileIdentity> {
        Some(FileIdentity { device: 1, inode: self.file as u64 })
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        Ok(ByteCount::new(self.length_now()))
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        let size = u64::from(self.world.options().block_size);
        let blocks = self.length_now().div_ceil(size);
        let used = (0..blocks).filter(|block| !self.is_hole(*block)).count() as u64;
        Ok(ByteCount::new(used * size))
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
        let request = self.read_request(at, buffers, purpose);
        let length = request.length;
        let Outcome { result, buffers } = self.issue(request).await;
        let failed = |e| self.error(Operation::Read, Some(purpose), at.get(), length, e);
        (result.map(ByteCount::new).map_err(failed), buffers)
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
        let request = self.write_request(at, buffers, purpose);
        let length = request.length;
        let Outcome { result, buffers } = self.issue(request).await;
        let failed = |e| self.error(Operation::Write, Some(purpose), at.get(), length, e);
        (result.map(|_| ()).map_err(failed), buffers)
    }

    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        if !self.answers_inline(at, buffer.len()) {
            return None;
        }
        let length = buffer.len() as u64;
        let own = vec![IoBuffer::zeroed(buffer.len())];
        let outcome = self.run_inline(self.read_request(at, own, purpose));
        buffer.copy_from_slice(&outcome.buffers[0]);
        let failed = |e| self.error(Operation::Read, Some(purpose), at.get(), length, e);
        Some(outcome.result.map(ByteCount::new).map_err(failed))
    }

    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        if !self.answers_inline(at, bytes.len()) {
            return None;
        }
        let length = bytes.len() as u64;
        let own = vec![IoBuffer::from_slice(bytes)];
        let outcome = self.run_inline(self.write_request(at, own, purpose));
        let failed = |e| self.error(Operation::Write, Some(purpose), at.get(), length, e);
        Some(outcome.result.map(|_| ()).map_err(failed))
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        _mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let (at, length) = (at.get(), length.get());
        let effects = if length == 0 { Vec::new() } else { effect::of_zero(at, length) };
        self.change(Operation::Zero, purpose, (at, length), effects).await
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let (at, length) = (at.get(), length.get());
        let effects = match self.world.options().can_discard {
            true => effect::of_discard(at, length),
            false => Vec::new(),
        };
        self.change(Operation::Discard, purpose, (at, length), effects).await
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let (at, length) = (at.get(), length.get());
        let effects = match how {
            _ if length == 0 => Vec::new(),
            Allocation::Reserve => vec![Effect::Extend { end: at + length }],
            Allocation::WriteZeros => effect::of_zero(at, length),
        };
        self.change(Operation::Allocate, purpose, (at, length), effects).await
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        let length = length.get();
        let effects = vec![Effect::Length { length }];
        self.change(Operation::SetLength, purpose, (0, length), effects).await
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        let (start, length) = (at.get(), self.length_now());
        if length <= start || length_max == ByteCount::ZERO {
            return Ok(None);
        }
        let limit = length.min(start.saturating_add(length_max.get()));
        if !self.world.options().knows_holes {
            return Ok(Some(HostExtent { length: ByteCount::new(limit - start), hole: false }));
        }
        let size = u64::from(self.world.options().block_size);
        let hole = self.is_hole(start / size);
        let mut block = start / size + 1;
        while block * size < limit && self.is_hole(block) == hole {
            block += 1;
        }
        let end = limit.min(block * size);
        Ok(Some(HostExtent { length: ByteCount::new(end - start), hole }))
    }

    async fn barrier(&self, purpose: Purpose) -> Result<(), StorageError> {
        self.change(Operation::Barrier, purpose, (0, 0), Vec::new()).await
    }

    async fn settle(&self) {
        let numbers = self.world.host().orphans();
        Settle { world: &self.world, numbers }.await;
    }
}

impl std::fmt::Debug for SimStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SimStorage({})", self.name.display())
    }
}

/// Decompression that runs when the simulation says so.
#[derive(Clone)]
pub struct SimOffload {
    world: SimWorld,
}

impl SimOffload {
    /// Jobs become steps of `world`.
    #[must_use]
    pub fn new(world: &SimWorld) -> Self {
        Self { world: world.clone() }
    }
}

impl cowl_qcow2::Offload for SimOffload {
    fn submit(&self, job: cowl_qcow2::OffloadJob) {
        self.world.submit_job(job);
    }
}
