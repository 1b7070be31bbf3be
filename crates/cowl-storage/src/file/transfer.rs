//! Whole transfers out of the partial ones the kernel offers.
//!
//! Every function loops over short counts and `EINTR`. `alignment` is what offsets and lengths have
//! to be multiples of: 1 through the page cache, more with `O_DIRECT`, where a count that is no
//! multiple means that the end of the file was met and going on would fail with `EINVAL`.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::BorrowedFd;

use rustix::io::{Errno, ReadWriteFlags};

use crate::IoBuffer;

/// The most buffers the kernel takes in one call.
const IOV_MAX: usize = 1024;

/// Fills `bytes` from `at`; zeros from the end of the file on. Returns how many came from the file.
#[inline]
pub(crate) fn read(
    fd: BorrowedFd<'_>,
    at: u64,
    bytes: &mut [u8],
    alignment: u32,
) -> Result<usize, Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(fd, &mut bytes[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if done % alignment as usize != 0 {
            break;
        }
    }
    bytes[done..].fill(0);
    Ok(done)
}

/// Fills `bytes` from `at` if the page cache has all of them; `None` otherwise, also at the end of
/// the file.
///
/// `EOPNOTSUPP` where the file system cannot tell.
#[inline]
pub(crate) fn read_cached(
    fd: BorrowedFd<'_>,
    at: u64,
    bytes: &mut [u8],
) -> Option<Result<usize, Errno>> {
    // The call takes the largest offset for "wherever the file stands".
    i64::try_from(at).ok()?;
    let length = bytes.len();
    match rustix::io::preadv2(fd, &mut [IoSliceMut::new(bytes)], at, ReadWriteFlags::NOWAIT) {
        Ok(count) => (count == length).then_some(Ok(count)),
        Err(Errno::AGAIN | Errno::INTR) => None,
        Err(errno) => Some(Err(errno)),
    }
}

/// Writes all of `bytes` at `at`.
#[inline]
pub(crate) fn write(fd: BorrowedFd<'_>, at: u64, bytes: &[u8]) -> Result<(), Errno> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pwrite(fd, &bytes[done..], at + done as u64) {
            // A device that takes nothing and names no reason is full.
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// As [`read`], into several buffers one after another.
pub(crate) fn read_vectored(
    fd: BorrowedFd<'_>,
    at: u64,
    buffers: &mut [IoBuffer],
    alignment: u32,
) -> Result<usize, Errno> {
    let mut slices: Vec<_> = buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
    let mut rest = &mut slices[..];
    let mut done = 0;
    IoSliceMut::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let chunk = rest.len().min(IOV_MAX);
        match rustix::io::preadv(fd, &mut rest[..chunk], at + done as u64) {
            Ok(0) => break,
            Ok(count) => {
                done += count;
                IoSliceMut::advance_slices(&mut rest, count);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
        if done % alignment as usize != 0 {
            break;
        }
    }
    for slice in rest {
        slice.fill(0);
    }
    Ok(done)
}

/// As [`write()`], from several buffers one after another.
pub(crate) fn write_vectored(
    fd: BorrowedFd<'_>,
    at: u64,
    buffers: &[IoBuffer],
) -> Result<(), Errno> {
    let mut slices: Vec<_> = buffers.iter().map(|b| IoSlice::new(b)).collect();
    let mut rest = &mut slices[..];
    let mut done = 0;
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        let chunk = rest.len().min(IOV_MAX);
        match rustix::io::pwritev(fd, &rest[..chunk], at + done) {
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => {
                done += count as u64;
                IoSlice::advance_slices(&mut rest, count);
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
