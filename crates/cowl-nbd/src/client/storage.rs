//! [`NbdStorage`]: an export as a [`Storage`].

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use cowl_format::{ByteCount, HostOffset};
use cowl_storage::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, Operation, Purpose,
    Storage, StorageError, ZeroMode,
};
use rustix::io::Errno;

use super::line::{Finished, Line, Order};
use super::uri::NbdUri;
use crate::protocol::asking::{Declined, Offer};
use crate::protocol::request::Request;
use crate::protocol::wire::{command, command_flag, state, transmission_flag};

/// Bytes of one request without payload: every server takes them, whatever its headers.
const RANGE_MAX: u64 = 1 << 30;

/// Why there is no connection to an export.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The server cannot be reached, or went away.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The server does not want to, or cannot be understood.
    #[error(transparent)]
    Declined(#[from] Declined),
    /// The server takes whole blocks only.
    #[error("the server takes only blocks of {block} bytes, which this client does not make up")]
    BlocksOnly {
        /// Their length.
        block: u32,
    },
}

/// An export of an NBD server. Its length is fixed; requests past the end fail.
///
/// Its futures are `Send` and run on any executor.
pub struct NbdStorage {
    line: Line,
    offer: Offer,
    name: PathBuf,
    /// A barrier that failed fails for ever.
    failed_barrier: Mutex<Option<i32>>,
}

impl NbdStorage {
    /// Connects; `name` is what messages call it. Waits for the server meanwhile.
    pub fn connect(uri: &NbdUri, name: &Path) -> Result<Self, ConnectError> {
        let (line, offer) = Line::open(uri.connect()?, &uri.export)?;
        match offer.block_sizes[0] {
            1 => {
                let failed_barrier = Mutex::default();
                Ok(Self { line, offer, name: name.to_owned(), failed_barrier })
            }
            block => Err(ConnectError::BlocksOnly { block }),
        }
    }

    fn has(&self, flag: u16) -> bool {
        self.offer.flags & flag != 0
    }

    /// Bytes of `length` at `at` that lie within the export.
    fn within(&self, at: HostOffset, length: u64) -> u64 {
        self.offer.size.saturating_sub(at.get()).min(length)
    }

    /// Reads or writes part of `buffer`, piece by piece where it is long.
    async fn transfer(
        &self,
        command: u16,
        at: HostOffset,
        mut buffer: IoBuffer,
        part: Range<usize>,
    ) -> (io::Result<()>, IoBuffer) {
        let piece_max = ByteCount::new(u64::from(self.offer.block_sizes[2])).as_usize();
        let mut done = part.start;
        while done < part.end {
            let piece = done..part.end.min(done + piece_max);
            let offset = at.get() + (done - part.start) as u64;
            done = piece.end;
            let flags = match command {
                command::WRITE if self.is_extended() => command_flag::PAYLOAD_LEN,
                _ => 0,
            };
            let length = piece.len() as u64;
            let request = Request { flags, command, cookie: 0, offset, length };
            let finished = self.line.run(Order { request, buffer, part: piece }).await;
            buffer = finished.buffer;
            if finished.outcome.is_err() {
                return (finished.outcome, buffer);
            }
        }
        (Ok(()), buffer)
    }

    fn is_extended(&self) -> bool {
        self.offer.headers == crate::protocol::request::Headers::Extended
    }

    /// A request without payload.
    async fn command(&self, command: u16, flags: u16, offset: u64, length: u64) -> Finished {
        let request = Request { flags, command, cookie: 0, offset, length };
        self.line.run(Order { request, buffer: IoBuffer::zeroed(0), part: 0..0 }).await
    }

    async fn read_any(
        &self,
        at: HostOffset,
        mut buffer: IoBuffer,
    ) -> (io::Result<usize>, IoBuffer) {
        let real = self.within(at, buffer.len() as u64);
        let real = ByteCount::new(real).as_usize();
        buffer[real..].fill(0);
        let (outcome, buffer) = self.transfer(command::READ, at, buffer, 0..real).await;
        (outcome.map(|()| real), buffer)
    }

    async fn write_any(&self, at: HostOffset, buffer: IoBuffer) -> (io::Result<()>, IoBuffer) {
        let length = buffer.len();
        if self.within(at, length as u64) < length as u64 {
            return (Err(Errno::NOSPC.into()), buffer);
        }
        self.transfer(command::WRITE, at, buffer, 0..length).await
    }

    async fn zero_any(&self, at: HostOffset, length: u64, mode: ZeroMode) -> io::Result<()> {
        if self.within(at, length) < length {
            return Err(Errno::NOSPC.into());
        }
        let flags = match mode {
            ZeroMode::MayUnmap => 0,
            ZeroMode::KeepAllocated => command_flag::NO_HOLE,
        };
        let mut done = 0;
        while done < length {
            let start = at.get() + done;
            if self.has(transmission_flag::SEND_WRITE_ZEROES) {
                let piece = RANGE_MAX.min(length - done);
                self.command(command::WRITE_ZEROES, flags, start, piece).await.outcome?;
                done += piece;
            } else {
                let piece = u64::from(self.offer.block_sizes[2]).min(1 << 20).min(length - done);
                let zeros = IoBuffer::zeroed(ByteCount::new(piece).as_usize());
                self.write_any(HostOffset::new(start), zeros).await.0?;
                done += piece;
            }
        }
        Ok(())
    }

    async fn extent_any(&self, at: u64, length: u64) -> io::Result<HostExtent> {
        let length = length.min(RANGE_MAX);
        let flags = command_flag::REQ_ONE;
        let finished = self.command(command::BLOCK_STATUS, flags, at, length).await;
        finished.outcome?;
        let &(told, flags) = finished.descriptors.first().ok_or(Errno::IO)?;
        let hole = flags & u64::from(state::ZERO) != 0;
        Ok(HostExtent { length: ByteCount::new(told.min(length)), hole })
    }

    fn latched(&self) -> std::sync::MutexGuard<'_, Option<i32>> {
        self.failed_barrier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn error(
        &self,
        operation: Operation,
        purpose: Option<Purpose>,
        range: Option<(HostOffset, ByteCount)>,
    ) -> impl FnOnce(io::Error) -> StorageError {
        move |source| StorageError::new(&self.name, operation, purpose, range, source)
    }
}

impl std::fmt::Debug for NbdStorage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NbdStorage").field(&self.name).finish()
    }
}

impl Storage for NbdStorage {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            io_alignment: 1,
            memory_alignment: 1,
            block_size: self.offer.block_sizes[1].clamp(512, 64 << 10),
            read_only: self.has(transmission_flag::READ_ONLY),
            inline: false,
            // TRIM promises nothing about what is read afterwards; zeroing does.
            can_discard: self.has(transmission_flag::SEND_WRITE_ZEROES),
            knows_holes: self.offer.tells_holes,
        }
    }

    fn name(&self) -> &Path {
        &self.name
    }

    fn identity(&self) -> Option<FileIdentity> {
        None
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        Ok(ByteCount::new(self.offer.size))
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        Ok(ByteCount::new(self.offer.size))
    }

    async fn read(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        let range = (at, ByteCount::from_usize(buffer.len()));
        let (outcome, buffer) = self.read_any(at, buffer).await;
        let outcome = outcome.map(ByteCount::from_usize);
        (outcome.map_err(self.error(Operation::Read, Some(purpose), Some(range))), buffer)
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        let mut next = at;
        let mut real = ByteCount::ZERO;
        let mut failed = Ok(());
        let mut filled = Vec::with_capacity(buffers.len());
        for buffer in buffers {
            let length = ByteCount::from_usize(buffer.len());
            let (outcome, buffer) = match failed {
                Ok(()) => self.read(next, buffer, purpose).await,
                Err(_) => (Ok(ByteCount::ZERO), buffer),
            };
            filled.push(buffer);
            next = next + length;
            match outcome {
                Ok(count) => real = real + count,
                Err(error) => failed = Err(error),
            }
        }
        (failed.map(|()| real), filled)
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        let range = (at, ByteCount::from_usize(buffer.len()));
        let (outcome, buffer) = self.write_any(at, buffer).await;
        (outcome.map_err(self.error(Operation::Write, Some(purpose), Some(range))), buffer)
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        let mut next = at;
        let mut failed = Ok(());
        let mut written = Vec::with_capacity(buffers.len());
        for buffer in buffers {
            let length = ByteCount::from_usize(buffer.len());
            let (outcome, buffer) = match failed {
                Ok(()) => self.write(next, buffer, purpose).await,
                Err(_) => (Ok(()), buffer),
            };
            written.push(buffer);
            next = next + length;
            failed = failed.and(outcome);
        }
        (failed, written)
    }

    fn try_read(
        &self,
        _at: HostOffset,
        _buffer: &mut [u8],
        _purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        None
    }

    fn try_write(
        &self,
        _at: HostOffset,
        _bytes: &[u8],
        _purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        None
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let outcome = self.zero_any(at, length.get(), mode).await;
        outcome.map_err(self.error(Operation::Zero, Some(purpose), Some((at, length))))
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        if !self.has(transmission_flag::SEND_WRITE_ZEROES) {
            return Ok(());
        }
        let length_within = self.within(at, length.get());
        let outcome = self.zero_any(at, length_within, ZeroMode::MayUnmap).await;
        outcome.map_err(self.error(Operation::Discard, Some(purpose), Some((at, length))))
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let outcome = match how {
            Allocation::WriteZeros => {
                self.zero_any(at, length.get(), ZeroMode::KeepAllocated).await
            }
            // The protocol cannot reserve.
            Allocation::Reserve if self.within(at, length.get()) == length.get() => Ok(()),
            Allocation::Reserve => Err(Errno::NOSPC.into()),
        };
        outcome.map_err(self.error(Operation::Allocate, Some(purpose), Some((at, length))))
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        let outcome = match length.get() == self.offer.size {
            true => Ok(()),
            false => Err(Errno::OPNOTSUPP.into()),
        };
        outcome.map_err(self.error(Operation::SetLength, Some(purpose), None))
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        let length = self.within(at, length_max.get());
        if length == 0 {
            return Ok(None);
        }
        if !self.offer.tells_holes {
            return Ok(Some(HostExtent { length: ByteCount::new(length), hole: false }));
        }
        let outcome = self.extent_any(at.get(), length).await;
        outcome.map(Some).map_err(self.error(Operation::Query, None, Some((at, length_max))))
    }

    async fn barrier(&self, purpose: Purpose) -> Result<(), StorageError> {
        let latched = *self.latched();
        let outcome = match latched {
            Some(error) => Err(io::Error::from_raw_os_error(error)),
            None if !self.has(transmission_flag::SEND_FLUSH) => Ok(()),
            None => self.command(command::FLUSH, 0, 0, 0).await.outcome,
        };
        if let Err(error) = &outcome {
            *self.latched() = Some(error.raw_os_error().unwrap_or(Errno::IO.raw_os_error()));
        }
        outcome.map_err(self.error(Operation::Barrier, Some(purpose), None))
    }

    async fn settle(&self) {
        self.line.settle().await;
    }
}
