//! An open host file and what was learnt about it at open: shared by the drivers that read and
//! write it.
//!
//! Functions here are the bare operations and return the bare errno; the drivers add what, where
//! and why.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use async_lock::{RwLock, RwLockReadGuard};
use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;

use super::around::Around;
use super::direct::Direct;
use super::opening::{FileKind, is_emptied, kind_of, open_fd, refuse_special};
use super::space::{self, Refused};
use super::writeback::Early;
use super::{Access, Barriers, Caching, Existence, FileKinds, FileOptions, Writeback, transfer};
use crate::{Capabilities, FileIdentity, IoBuffer, LockMode, Operation, StorageError, lock};

/// An open file.
pub(crate) struct OpenFile {
    pub(super) fd: OwnedFd,
    pub(super) path: PathBuf,
    pub(super) kind: FileKind,
    pub(super) identity: FileIdentity,
    pub(super) capabilities: Capabilities,
    /// Logical block of a block device; 1 for others.
    pub(super) device_block: u32,
    /// Whether a discarded range is promised to read as zeros.
    pub(super) can_discard: bool,
    /// `None` through the page cache.
    pub(super) direct: Option<Direct>,
    /// The way of large writes; `None` where there is only one way.
    around: Option<Box<Around>>,
    pub(super) refused: Refused,
    /// `None` where the host alone decides when to write back.
    early: Option<Box<Early>>,
    /// What is locked now.
    lock: Mutex<LockMode>,
    pub(crate) barriers: Barriers,
}

/// A page of the page cache, in bytes.
const PAGE: u64 = 4096;

/// Most bytes that are copied to the page cache by a thread that has other work: a cluster as most
/// images have them, some tens of microseconds.
const AT_ONCE_MAX: usize = 64 << 10;

impl OpenFile {
    /// Opens, checks the kind, takes the lock, and only then empties the file if that was asked
    /// for.
    pub(crate) fn open(path: &Path, options: FileOptions) -> Result<Self, StorageError> {
        let fail = |operation: Operation| {
            move |errno: Errno| StorageError::new(path, operation, None, None, errno.into())
        };
        let fd = open_fd(path, options).map_err(fail(Operation::Open))?;
        if options.kinds == FileKinds::RegularOnly {
            refuse_special(&fd)
                .map_err(|error| StorageError::new(path, Operation::Open, None, None, error))?;
        }
        let file = Self::learn(fd, path, options).map_err(fail(Operation::Open))?;
        file.change_lock(options.lock)?;
        if options.existence == Existence::CreateOrEmpty && file.kind == FileKind::Regular {
            file.set_length(0).map_err(fail(Operation::SetLength))?;
        }
        Ok(file)
    }

    fn learn(fd: OwnedFd, path: &Path, options: FileOptions) -> Result<Self, Errno> {
        let facts = rustix::fs::fstat(&fd)?;
        let kind = kind_of(FileType::from_raw_mode(facts.st_mode))?;
        let is_block_device = kind == FileKind::BlockDevice;
        let device_block = match is_block_device {
            true => rustix::fs::ioctl_blksszget(&fd)?,
            false => 1,
        };
        let direct = match options.caching {
            Caching::PageCache | Caching::LargeWritesDirect => None,
            Caching::Direct => Some(Direct::discover(fd.as_fd(), is_block_device)),
        };
        let read_only = options.access == Access::ReadOnly;
        let is_cached = kind == FileKind::Regular && direct.is_none() && !read_only;
        let around = match options.caching {
            Caching::LargeWritesDirect if is_cached => Around::open(fd.as_fd()).map(Box::new),
            _ => None,
        };
        let length = u64::try_from(facts.st_size).unwrap_or(0);
        let early = (is_cached && options.writeback == Writeback::Early)
            .then(|| Box::new(Early::new(if is_emptied(options) { 0 } else { length })));
        let can_discard = kind == FileKind::Regular && !read_only && space::punches(fd.as_fd());
        let capabilities = Capabilities {
            io_alignment: direct.as_ref().map_or(1, |direct| direct.io_alignment),
            memory_alignment: direct.as_ref().map_or(1, |direct| direct.memory_alignment),
            block_size: u32::try_from(facts.st_blksize).unwrap_or(4096),
            read_only,
            inline: true,
            can_discard,
            knows_holes: kind == FileKind::Regular,
        };
        Ok(Self {
            identity: FileIdentity { device: facts.st_dev, inode: facts.st_ino },
            path: path.to_owned(),
            fd,
            kind,
            capabilities,
            device_block,
            can_discard,
            direct,
            around,
            refused: Refused::default(),
            early,
            lock: Mutex::new(LockMode::None),
            barriers: Barriers::default(),
        })
    }

    /// Exchanges the image lock for another, or keeps it where that one cannot be had.
    pub(crate) fn change_lock(&self, wanted: LockMode) -> Result<(), StorageError> {
        // Everybody may write to /dev/null at once.
        if self.kind == FileKind::Character {
            return Ok(());
        }
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        lock::change(self.fd(), &self.path, self.identity, *held, wanted)?;
        *held = wanted;
        Ok(())
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn identity(&self) -> FileIdentity {
        self.identity
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    pub(crate) fn kind(&self) -> FileKind {
        self.kind
    }

    /// Whether large writes have a way of their own.
    #[cfg(test)]
    pub(super) fn has_second_way(&self) -> bool {
        self.around.is_some()
    }

    /// Closes the way of large writes.
    pub(crate) fn with_one_way(mut self) -> Self {
        self.around = None;
        self
    }

    /// Whether offset, length and memory of a request need no bounce.
    #[inline]
    pub(crate) fn is_aligned(&self, at: u64, bytes: &[u8]) -> bool {
        // Both are powers of two; through the page cache both are 1 and everything is aligned.
        let io = u64::from(self.capabilities.io_alignment) - 1;
        let memory = self.capabilities.memory_alignment as usize - 1;
        (at | bytes.len() as u64) & io == 0 && bytes.as_ptr().addr() & memory == 0
    }

    /// Fills `bytes` from `at`, through a bounce where needed.
    pub(crate) fn read_now(&self, at: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        match &self.direct {
            Some(direct) if !self.is_aligned(at, bytes) => {
                direct.read_unaligned(self.fd(), at, bytes)
            }
            _ => self.read_aligned(at, bytes),
        }
    }

    /// Fills `bytes` from `at`: nothing but `pread`.
    #[inline]
    pub(crate) fn read_aligned(&self, at: u64, bytes: &mut [u8]) -> Result<usize, Errno> {
        transfer::read(self.fd(), at, bytes, self.capabilities.io_alignment)
    }

    /// Fills `bytes` from `at` if that needs no waiting.
    #[inline]
    pub(crate) fn read_cached(&self, at: u64, bytes: &mut [u8]) -> Option<Result<usize, Errno>> {
        if self.direct.is_some() || self.refused.read_cached.load(Ordering::Relaxed) {
            return None;
        }
        match transfer::read_cached(self.fd(), at, bytes) {
            Some(Err(Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS)) => {
                self.refused.read_cached.store(true, Ordering::Relaxed);
                None
            }
            result => result,
        }
    }

    /// Whether the page cache takes `length` bytes at `at` as they are: whole pages, which it need
    /// not read first, and not so many that others wait for the copying.
    pub(crate) fn takes_at_once(&self, at: u64, length: usize) -> bool {
        let is_whole = (at | length as u64) & (PAGE - 1) == 0;
        self.direct.is_none() && is_whole && length <= AT_ONCE_MAX && self.kind == FileKind::Regular
    }

    /// Writes `bytes` at `at`, through a bounce where needed.
    pub(crate) fn write_now(&self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        let Some(direct) = &self.direct else {
            return match &self.around {
                Some(around) => around.write(self.fd(), at, bytes),
                None => transfer::write(self.fd(), at, bytes),
            };
        };
        if self.is_aligned(at, bytes) {
            let _shared = direct.gate.read_blocking();
            return transfer::write(self.fd(), at, bytes);
        }
        let _alone = direct.gate.write_blocking();
        direct.write_unaligned(self.fd(), at, bytes, self.kind == FileKind::BlockDevice)
    }

    /// To be told of each write that is done. Returns a range to be handed to
    /// [`start_writeback`](Self::start_writeback), by whoever may wait a little.
    #[inline]
    pub(crate) fn wrote(&self, at: u64, length: usize) -> Option<Range<u64>> {
        self.early.as_ref()?.wrote(at, length as u64)
    }

    /// Lets the host begin to write a range to the disk.
    pub(crate) fn start_writeback(&self, range: &Range<u64>) {
        if let Some(early) = &self.early {
            early.start(self.fd(), range);
        }
    }

    /// Returns when no [`start_writeback`](Self::start_writeback) is under way: with an error if
    /// one has lost something, of which a barrier may have seen nothing any more.
    pub(crate) async fn writeback_outcome(&self) -> Result<(), Errno> {
        match &self.early {
            Some(early) => early.outcome().await,
            None => Ok(()),
        }
    }

    /// As [`Self::writeback_outcome`], on the calling thread.
    pub(crate) fn writeback_outcome_blocking(&self) -> Result<(), Errno> {
        self.early.as_ref().map_or(Ok(()), |early| early.outcome_blocking())
    }

    /// Fills `buffers` from `at`, through a bounce where needed.
    pub(crate) fn read_vectored_now(
        &self,
        at: u64,
        buffers: &mut [IoBuffer],
    ) -> Result<usize, Errno> {
        if self.direct.is_none() || self.are_aligned(at, buffers) {
            let alignment = self.capabilities.io_alignment;
            return transfer::read_vectored(self.fd(), at, buffers, alignment);
        }
        let mut joined = IoBuffer::zeroed(buffers.iter().map(|buffer| buffer.len()).sum());
        let count = self.read_now(at, &mut joined)?;
        let mut rest = &joined[..];
        for buffer in buffers {
            let (part, after) = rest.split_at(buffer.len());
            buffer.copy_from_slice(part);
            rest = after;
        }
        Ok(count)
    }

    /// Writes `buffers` at `at`, through a bounce where needed.
    pub(crate) fn write_vectored_now(&self, at: u64, buffers: &[IoBuffer]) -> Result<(), Errno> {
        let Some(direct) = &self.direct else {
            return transfer::write_vectored(self.fd(), at, buffers);
        };
        if self.are_aligned(at, buffers) {
            let _shared = direct.gate.read_blocking();
            return transfer::write_vectored(self.fd(), at, buffers);
        }
        self.write_now(at, &join(buffers))
    }

    /// To be held while the file changes other than by a write.
    pub(super) fn share_gate(&self) -> Option<RwLockReadGuard<'_, ()>> {
        self.direct.as_ref().map(|direct| direct.gate.read_blocking())
    }

    /// Held by whoever changes an `O_DIRECT` file: see `direct.rs`.
    pub(crate) fn gate(&self) -> Option<&Arc<RwLock<()>>> {
        self.direct.as_ref().map(|direct| &direct.gate)
    }

    pub(crate) fn are_aligned(&self, at: u64, buffers: &[IoBuffer]) -> bool {
        buffers.iter().all(|buffer| self.is_aligned(at, buffer))
    }

    /// Length of a file, capacity of a device.
    pub(crate) fn length(&self) -> Result<u64, Errno> {
        match self.kind {
            FileKind::BlockDevice => rustix::fs::seek(&self.fd, SeekFrom::End(0)),
            FileKind::Regular | FileKind::Character => {
                Ok(u64::try_from(rustix::fs::fstat(&self.fd)?.st_size).unwrap_or(0))
            }
        }
    }

    /// Bytes of the blocks the host keeps for the file.
    pub(crate) fn allocated(&self) -> Result<u64, Errno> {
        match self.kind {
            FileKind::Regular => {
                let blocks = u64::try_from(rustix::fs::fstat(&self.fd)?.st_blocks).unwrap_or(0);
                Ok(blocks.saturating_mul(512))
            }
            FileKind::BlockDevice | FileKind::Character => self.length(),
        }
    }

    pub(crate) fn set_length(&self, length: u64) -> Result<(), Errno> {
        let _shared = self.share_gate();
        loop {
            match rustix::fs::ftruncate(&self.fd, length) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

impl Drop for OpenFile {
    /// Gives up the lock. No change is under way any more: each of them keeps the file.
    fn drop(&mut self) {
        // What cannot be given up ends with the open file.
        self.change_lock(LockMode::None).ok();
    }
}

/// One buffer with the bytes of all.
pub(crate) fn join(buffers: &[IoBuffer]) -> IoBuffer {
    let mut joined = IoBuffer::zeroed(buffers.iter().map(|buffer| buffer.len()).sum());
    let mut rest = &mut joined[..];
    for buffer in buffers {
        let (part, after) = rest.split_at_mut(buffer.len());
        part.copy_from_slice(buffer);
        rest = after;
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::OpenFile;
    use crate::FileOptions;

    #[test]
    fn a_closed_file_is_unlocked_although_the_kernel_still_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        for options in [FileOptions::create(), FileOptions::read_write()] {
            let file = OpenFile::open(&path, options).unwrap();
            // As a request of a ring does, from its end until the kernel has tidied up.
            let _kept = file.fd.try_clone().unwrap();
            OpenFile::open(&path, FileOptions::read_write()).map(drop).unwrap_err();
            drop(file);
            OpenFile::open(&path, FileOptions::read_write()).map(drop).unwrap();
        }
    }
}
