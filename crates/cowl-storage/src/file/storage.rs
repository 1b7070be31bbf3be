//! [`FileStorage`]: the bare operations of an open file as [`Storage`], each error with its facts.

use std::fmt;
use std::path::Path;

use cowl_format::{ByteCount, HostOffset};
use rustix::io::Errno;

use super::{FileKind, FileOptions, OpenFile, barrier};
use crate::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, LockMode, Operation,
    Purpose, Storage, StorageError, ZeroMode,
};

/// A file or block device, driven inline.
pub struct FileStorage {
    file: OpenFile,
}

impl FileStorage {
    /// Opens `path`.
    pub fn open(path: impl AsRef<Path>, options: FileOptions) -> Result<Self, StorageError> {
        Ok(Self { file: OpenFile::open(path.as_ref(), options)? })
    }

    /// Exchanges the image lock for another, or keeps it where that one cannot be had.
    pub fn change_lock(&self, wanted: LockMode) -> Result<(), StorageError> {
        self.file.change_lock(wanted)
    }

    /// Lets the host copy a range from another file, without moving it through this process; shares
    /// the blocks where the file system can. Returns `false`, with nothing promised about the
    /// range, when the host cannot or the other file ends within the range.
    pub fn copy_range(
        &self,
        from: &Self,
        from_at: HostOffset,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<bool, StorageError> {
        let (mut source, mut target) = (from_at.get(), at.get());
        let mut rest = length.as_usize();
        while 0 < rest {
            let copied = rustix::fs::copy_file_range(
                from.file.fd(),
                Some(&mut source),
                self.file.fd(),
                Some(&mut target),
                rest,
            );
            match copied {
                Ok(0) => return Ok(false),
                Ok(count) => rest -= count,
                Err(Errno::INTR) => {}
                Err(Errno::NOSYS | Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP) => {
                    return Ok(false);
                }
                Err(errno) => {
                    return Err(self.range_error(Operation::Write, purpose, (at, length))(errno));
                }
            }
        }
        self.wrote(at, length.as_usize(), true);
        Ok(true)
    }

    pub(crate) fn into_open_file(self) -> OpenFile {
        self.file
    }

    #[cold]
    fn error(
        &self,
        operation: Operation,
        purpose: Purpose,
        at: HostOffset,
        length: usize,
        errno: Errno,
    ) -> StorageError {
        let range = (at, ByteCount::from_usize(length));
        StorageError::new(self.name(), operation, Some(purpose), Some(range), errno.into())
    }

    fn range_error(
        &self,
        operation: Operation,
        purpose: Purpose,
        range: (HostOffset, ByteCount),
    ) -> impl FnOnce(Errno) -> StorageError {
        let path = self.name();
        move |errno| StorageError::new(path, operation, Some(purpose), Some(range), errno.into())
    }

    fn query_error(&self, errno: Errno) -> StorageError {
        StorageError::new(self.name(), Operation::Query, None, None, errno.into())
    }

    /// The calling thread is the one that waits in this driver, for everything.
    #[inline]
    fn wrote(&self, at: HostOffset, length: usize, is_done: bool) {
        if is_done && let Some(range) = self.file.wrote(at.get(), length) {
            self.file.start_writeback(&range);
        }
    }

    fn barrier_now(&self) -> Result<(), Errno> {
        if self.file.kind() == FileKind::Character {
            return Ok(());
        }
        let arrival = self.file.barriers.arrive();
        match self.file.barriers.turn_blocking(arrival)? {
            Some(turn) => {
                let result = barrier::fdatasync(self.file.fd());
                turn.finish(result.and_then(|()| self.file.writeback_outcome_blocking()))
            }
            None => Ok(()),
        }
    }
}

impl fmt::Debug for FileStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FileStorage").field(&self.name()).finish()
    }
}

impl crate::Blocking for FileStorage {}

impl Storage for FileStorage {
    fn capabilities(&self) -> Capabilities {
        self.file.capabilities()
    }

    fn name(&self) -> &Path {
        self.file.path()
    }

    fn identity(&self) -> Option<FileIdentity> {
        Some(self.file.identity())
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        self.file.length().map(ByteCount::new).map_err(|errno| self.query_error(errno))
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        self.file.allocated().map(ByteCount::new).map_err(|errno| self.query_error(errno))
    }

    async fn read(
        &self,
        at: HostOffset,
        mut buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        let result = match self.file.read_now(at.get(), &mut buffer) {
            Ok(count) => Ok(ByteCount::from_usize(count)),
            Err(errno) => Err(self.error(Operation::Read, purpose, at, buffer.len(), errno)),
        };
        (result, buffer)
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        mut buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        let result = match self.file.read_vectored_now(at.get(), &mut buffers) {
            Ok(count) => Ok(ByteCount::from_usize(count)),
            Err(errno) => {
                Err(self.error(Operation::Read, purpose, at, total_length(&buffers), errno))
            }
        };
        (result, buffers)
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        let result = self.file.write_now(at.get(), &buffer);
        let length = buffer.len();
        self.wrote(at, length, result.is_ok());
        (result.map_err(|e| self.error(Operation::Write, purpose, at, length, e)), buffer)
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        let result = self.file.write_vectored_now(at.get(), &buffers);
        let length = total_length(&buffers);
        self.wrote(at, length, result.is_ok());
        (result.map_err(|e| self.error(Operation::Write, purpose, at, length, e)), buffers)
    }

    #[inline]
    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        if !self.file.is_aligned(at.get(), buffer) {
            return None;
        }
        Some(match self.file.read_aligned(at.get(), buffer) {
            Ok(count) => Ok(ByteCount::from_usize(count)),
            Err(errno) => Err(self.error(Operation::Read, purpose, at, buffer.len(), errno)),
        })
    }

    #[inline]
    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        if !self.file.is_aligned(at.get(), bytes) {
            return None;
        }
        let result = self.file.write_now(at.get(), bytes);
        self.wrote(at, bytes.len(), result.is_ok());
        Some(result.map_err(|e| self.error(Operation::Write, purpose, at, bytes.len(), e)))
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        self.file.zero(at.get(), length.get(), mode).map_err(self.range_error(
            Operation::Zero,
            purpose,
            (at, length),
        ))
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        self.file.discard(at.get(), length.get()).map_err(self.range_error(
            Operation::Discard,
            purpose,
            (at, length),
        ))
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        self.file.allocate(at.get(), length.get(), how).map_err(self.range_error(
            Operation::Allocate,
            purpose,
            (at, length),
        ))
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        self.file.set_length(length.get()).map_err(self.range_error(
            Operation::SetLength,
            purpose,
            (HostOffset::ZERO, length),
        ))
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        self.file.extent(at.get(), length_max.get()).map_err(|errno| {
            let range = Some((at, length_max));
            StorageError::new(self.name(), Operation::Query, None, range, errno.into())
        })
    }

    async fn barrier(&self, purpose: Purpose) -> Result<(), StorageError> {
        self.barrier_now().map_err(|errno| {
            StorageError::new(self.name(), Operation::Barrier, Some(purpose), None, errno.into())
        })
    }

    /// Nothing is ever left to wait for: I/O ends within its call.
    async fn settle(&self) {}
}

fn total_length(buffers: &[IoBuffer]) -> usize {
    buffers.iter().map(|buffer| buffer.len()).sum()
}
