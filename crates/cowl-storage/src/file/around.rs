//! Large writes around the page cache, into a file that everybody else sees through it.
//!
//! Copying megabytes into the page cache costs the copy, a page of memory for each page, and the
//! wait for all of it at the barrier. A large write that goes to the disk at once costs none of
//! these, but small ones would wait for the disk each time. So the file is open twice: large
//! aligned writes take the second way, with `O_DIRECT`; everything else takes the first.
//!
//! Linux keeps the two in step: a direct write first writes back what is dirty below it, and drops
//! what the page cache has of its range. Two writes that share no block do not meet at all. A
//! barrier on the file covers both, since it is one file.
//!
//! The second way is only ever a faster one: what it does not take goes through the page cache.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::direct;

/// From here on the disk is as fast as the page cache with the barrier at the end, or faster:
/// measured with two threads, 16 KiB half as fast, 64 KiB about the same
/// (`docs/decisions/0011-large-writes-around-the-page-cache.md`).
const LARGE: usize = 256 << 10;

/// The second way to a file.
pub(super) struct Around {
    fd: OwnedFd,
    io_mask: u64,
    memory_mask: usize,
    /// The file has refused a write that met its alignment.
    refused: AtomicBool,
}

impl Around {
    /// Opens the file of `fd` once more; `None` where the host cannot.
    pub(super) fn open(fd: BorrowedFd<'_>) -> Option<Self> {
        // By its number: the name may mean another file by now.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NOCTTY;
        let around = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let (io, memory) = direct::alignment_told(fd).unwrap_or(direct::ALIGNMENT_SAFE);
        Some(Self {
            fd: around,
            io_mask: u64::from(io) - 1,
            memory_mask: memory as usize - 1,
            refused: AtomicBool::new(false),
        })
    }

    /// Writes all of `bytes` at `at`; `None` where they have to go through the page cache, some of
    /// them perhaps for the second time.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) -> Option<Result<(), Errno>> {
        if !self.takes(at, bytes) {
            return None;
        }
        match rustix::io::pwrite(&self.fd, bytes, at) {
            Ok(count) => (count == bytes.len()).then_some(Ok(())),
            Err(Errno::INTR | Errno::AGAIN) => None,
            Err(Errno::INVAL) => {
                self.refused.store(true, Ordering::Relaxed);
                None
            }
            Err(errno) => Some(Err(errno)),
        }
    }

    fn takes(&self, at: u64, bytes: &[u8]) -> bool {
        LARGE <= bytes.len()
            && (at | bytes.len() as u64) & self.io_mask == 0
            && bytes.as_ptr().addr() & self.memory_mask == 0
            && !self.refused.load(Ordering::Relaxed)
    }
}
