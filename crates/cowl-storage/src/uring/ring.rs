//! Whole transfers out of the requests a ring offers: short counts and `EINTR` are met with another
//! one.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use async_lock::{RwLock, RwLockReadGuardArc};
use compio::BufResult;
use compio::buf::IntoInner;
use compio::driver::op;
use compio::runtime::submit;
use rustix::io::Errno;

use super::queue::{self, Queued};
use crate::IoBuffer;
use crate::file::OpenFile;
use crate::sys::{Direction, Transfer, forget_here};

/// Bytes of one request. The kernel cuts at 2 GiB anyway, and its count has 32 bits.
const REQUEST_MAX: usize = 1 << 30;

/// The most buffers the kernel takes in one request.
const IOV_MAX: usize = 1024;

/// What a request keeps until the kernel is done: the open file, the sign that a change is under
/// way, and the gate where it changes an `O_DIRECT` file.
#[derive(Clone)]
pub(super) struct Target {
    file: Arc<OpenFile>,
    _flight: Option<Arc<RwLockReadGuardArc<()>>>,
    _gate: Option<Arc<RwLockReadGuardArc<()>>>,
}

impl Target {
    /// For requests that change nothing.
    pub(super) fn reading(file: &Arc<OpenFile>) -> Self {
        Self { file: Arc::clone(file), _flight: None, _gate: None }
    }

    /// For aligned writes; waits for an unaligned one.
    pub(super) async fn writing(file: &Arc<OpenFile>, flights: &Arc<RwLock<()>>) -> Self {
        let flight = Arc::new(flights.read_arc().await);
        let gate = match file.gate() {
            Some(gate) => Some(Arc::new(gate.read_arc().await)),
            None => None,
        };
        Self { file: Arc::clone(file), _flight: Some(flight), _gate: gate }
    }

    fn alignment(&self) -> usize {
        self.file.capabilities().io_alignment as usize
    }
}

impl AsFd for Target {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.fd()
    }
}

/// Refuses offsets that no file has. A request would take the largest one for "wherever the file
/// stands".
fn check_offset(at: u64) -> io::Result<()> {
    match i64::try_from(at) {
        Ok(_) => Ok(()),
        Err(_) => Err(Errno::INVAL.into()),
    }
}

/// A read that one request can serve: aligned, not empty, and not too long.
pub(super) struct Whole(Transfer<Target>);

/// What one request left to be done, and why.
pub(super) struct Partly(io::Result<usize>, Transfer<Target>);

impl Whole {
    /// A read of `file` at `at`, or the buffer of one that is of another kind.
    #[inline]
    pub(super) fn new(file: &Arc<OpenFile>, at: u64, buffer: IoBuffer) -> Result<Self, IoBuffer> {
        let length = buffer.len();
        let is_one = (1..=REQUEST_MAX).contains(&length) && check_offset(at).is_ok();
        if !is_one || !file.is_aligned(at, &buffer) {
            return Err(buffer);
        }
        let target = Target::reading(file);
        Ok(Self(Transfer::new(target, Direction::Read, at, buffer, 0..length)))
    }

    /// Begins with it if it is one of many, or gives it back.
    #[inline]
    pub(super) fn start(self) -> Result<Reading, Self> {
        queue::start(self.0).map(Reading).map_err(Self)
    }

    /// Runs it by the ring of the runtime.
    pub(super) async fn run(self) -> Result<IoBuffer, Partly> {
        let (result, request) = queue::by_runtime(self.0).await;
        Self::outcome(result, request)
    }

    /// The buffer is full, as a rule.
    #[inline(always)]
    fn outcome(result: io::Result<usize>, request: Transfer<Target>) -> Result<IoBuffer, Partly> {
        match result {
            Ok(count) if count == request.range.end => Ok(request.buffer),
            _ => Err(Partly(result, request)),
        }
    }
}

/// A [`Whole`] under way.
pub(super) struct Reading(Queued);

impl Future for Reading {
    type Output = Result<IoBuffer, Partly>;

    #[inline]
    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_with(context, Whole::outcome)
    }
}

impl Partly {
    /// As [`read`], from where the request left off.
    #[cold]
    pub(super) async fn go_on(self) -> (io::Result<usize>, IoBuffer) {
        let Self(result, Transfer { file: target, mut buffer, offset, is_registered, .. }) = self;
        let done = match result {
            Ok(count) => count,
            Err(error) => {
                let is_unknown = is_registered && is_unknown_memory(&error);
                if is_unknown || error.kind() == io::ErrorKind::Interrupted {
                    return read(target, offset, buffer, 0).await;
                }
                return (Err(error), buffer);
            }
        };
        if done == 0 || !done.is_multiple_of(target.alignment()) {
            buffer[done..].fill(0);
            return (Ok(done), buffer);
        }
        let (result, buffer) = read(target, offset + done as u64, buffer, done).await;
        (result.map(|more| done + more), buffer)
    }
}

/// A ring that was made by somebody else does not know the memory of its thread.
fn is_unknown_memory(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::FAULT)
}

/// Moves a part of `buffer`, in memory that the ring knows where it is such memory.
async fn transfer(
    target: Target,
    direction: Direction,
    offset: u64,
    (buffer, range): (IoBuffer, Range<usize>),
) -> (io::Result<usize>, Target, IoBuffer) {
    let request = Transfer::new(target, direction, offset, buffer, range);
    let (mut result, mut request) = queue::run(request).await;
    if request.is_registered && result.as_ref().is_err_and(is_unknown_memory) {
        forget_here();
        request.is_registered = false;
        (result, request) = queue::run(request).await;
    }
    (result, request.file, request.buffer)
}

/// Fills `buffer` from byte `skip` on, from `at`; zeros from the end of the file on. Returns how
/// many bytes came from the file.
pub(super) async fn read(
    mut target: Target,
    at: u64,
    mut buffer: IoBuffer,
    skip: usize,
) -> (io::Result<usize>, IoBuffer) {
    if let Err(error) = check_offset(at) {
        return (Err(error), buffer);
    }
    let mut done = skip;
    while done < buffer.len() {
        let end = buffer.len().min(done + REQUEST_MAX);
        let offset = at + (done - skip) as u64;
        let result;
        (result, target, buffer) =
            transfer(target, Direction::Read, offset, (buffer, done..end)).await;
        match result {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (Err(error), buffer),
        }
        // With O_DIRECT: the end of the file, and going on would be misaligned.
        if !(done - skip).is_multiple_of(target.alignment()) {
            break;
        }
    }
    buffer[done..].fill(0);
    (Ok(done - skip), buffer)
}

/// Writes `buffer` from byte `skip` on, at `at`.
pub(super) async fn write(
    mut target: Target,
    at: u64,
    mut buffer: IoBuffer,
    skip: usize,
) -> (io::Result<()>, IoBuffer) {
    if let Err(error) = check_offset(at) {
        return (Err(error), buffer);
    }
    let mut done = skip;
    while done < buffer.len() {
        let end = buffer.len().min(done + REQUEST_MAX);
        let offset = at + (done - skip) as u64;
        let result;
        (result, target, buffer) =
            transfer(target, Direction::Write, offset, (buffer, done..end)).await;
        match result {
            // A device that takes nothing and names no reason is full.
            Ok(0) => return (Err(Errno::NOSPC.into()), buffer),
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (Err(error), buffer),
        }
    }
    (Ok(()), buffer)
}

/// Fills `buffers` one after another, in one request where the kernel serves it whole.
pub(super) async fn read_vectored(
    target: Target,
    at: u64,
    mut buffers: Vec<IoBuffer>,
) -> (io::Result<usize>, Vec<IoBuffer>) {
    if let Err(error) = check_offset(at) {
        return (Err(error), buffers);
    }
    let mut first = 0;
    if 1 < buffers.len() && buffers.len() <= IOV_MAX {
        let request = op::ReadVectoredAt::new(target.clone(), at, buffers);
        let BufResult(result, request) = submit(request).await;
        buffers = request.into_inner();
        match result {
            Ok(count) => first = count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (Err(error), buffers),
        }
    }
    // The rest, if any, buffer by buffer; at the end of the file that is one request more.
    let mut real = first;
    let mut start = 0;
    let mut ended = !first.is_multiple_of(target.alignment());
    for buffer in &mut buffers {
        let end = start + buffer.len();
        let skip = first.saturating_sub(start).min(buffer.len());
        if ended {
            buffer[skip..].fill(0);
        } else if skip < buffer.len() {
            let taken = std::mem::replace(buffer, IoBuffer::zeroed(0));
            let (result, taken) =
                read(target.clone(), at + (start + skip) as u64, taken, skip).await;
            *buffer = taken;
            match result {
                Ok(count) => {
                    real += count;
                    ended = count < buffer.len() - skip;
                }
                Err(error) => return (Err(error), buffers),
            }
        }
        start = end;
    }
    (Ok(real), buffers)
}

/// Writes `buffers` one after another, in one request where the kernel takes it whole.
pub(super) async fn write_vectored(
    target: Target,
    at: u64,
    mut buffers: Vec<IoBuffer>,
) -> (io::Result<()>, Vec<IoBuffer>) {
    if let Err(error) = check_offset(at) {
        return (Err(error), buffers);
    }
    let mut first = 0;
    if 1 < buffers.len() && buffers.len() <= IOV_MAX {
        let request = op::WriteVectoredAt::new(target.clone(), at, buffers);
        let BufResult(result, request) = submit(request).await;
        buffers = request.into_inner();
        match result {
            Ok(count) => first = count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (Err(error), buffers),
        }
    }
    let mut start = 0;
    for buffer in &mut buffers {
        let end = start + buffer.len();
        let skip = first.saturating_sub(start).min(buffer.len());
        if skip < buffer.len() {
            let taken = std::mem::replace(buffer, IoBuffer::zeroed(0));
            let (result, taken) =
                write(target.clone(), at + (start + skip) as u64, taken, skip).await;
            *buffer = taken;
            if let Err(error) = result {
                return (Err(error), buffers);
            }
        }
        start = end;
    }
    (Ok(()), buffers)
}

/// Makes everything written durable.
pub(super) async fn fdatasync(target: Target) -> Result<(), Errno> {
    loop {
        let BufResult(result, _) = submit(op::Sync::new(target.clone(), true)).await;
        match result {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(Errno::from_io_error(&error).unwrap_or(Errno::IO));
            }
        }
    }
}
