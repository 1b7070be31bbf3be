//! The only unsafe code of the crate: what the ring runtime has to be promised about buffers,
//! memory that another process shares (`shared`) or that a ring knows (`registered`), the entries
//! of reads and writes (`transfer`) and a ring for them (`transfer_ring`), and one system call that
//! no safe crate has.
//!
//! The runtime hands memory of an [`IoBuffer`] to the kernel and moves the buffer itself into the
//! request until the kernel is done. That is sound because moving the buffer does not move its
//! bytes, they are initialized from the start, and nobody else can reach a buffer that was moved
//! away.
#![allow(unsafe_code)]

mod registered;
mod shared;
mod transfer;
mod transfer_ring;

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use compio::buf::{IoBuf, IoBufMut, SetLen};
use rustix::io::Errno;

pub use self::shared::SharedMemory;

pub(crate) use self::registered::{RegisteredPage, forget_here, register_also, register_here};
pub(crate) use self::shared::Claim;
pub(crate) use self::transfer::{Direction, Transfer};
#[cfg(test)]
pub(crate) use self::transfer_ring::faults;
pub(crate) use self::transfer_ring::{TRANSFERS_MAX, TransferRing};

use crate::IoBuffer;

impl IoBuf for IoBuffer {
    fn as_init(&self) -> &[u8] {
        self
    }
}

impl IoBufMut for IoBuffer {
    fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
        // Initialized bytes pass as uninitialized ones: the runtime only ever stores real bytes
        // there.
        <[u8] as IoBufMut>::as_uninit(self)
    }
}

impl SetLen for IoBuffer {
    // SAFETY: there is nothing to keep: all bytes are initialized, so any length up to the whole is
    // true, and the length of the buffer is the caller's and does not follow what was read.
    unsafe fn set_len(&mut self, len: usize) {
        assert!(len <= self.len());
    }
}

/// Lets the host begin to write back dirty pages of a file. Waits for none of them, but for room in
/// the queue of the device.
pub(crate) fn start_writeback(fd: BorrowedFd<'_>, at: i64, length: i64) -> Result<(), Errno> {
    let flags = libc::SYNC_FILE_RANGE_WRITE;
    // SAFETY: the call takes numbers only, and the file is open for as long as it is borrowed.
    match unsafe { libc::sync_file_range(fd.as_raw_fd(), at, length, flags) } {
        0 => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}
