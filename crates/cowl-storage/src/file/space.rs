//! Space of a file: zeros, holes, reservations, and what is a hole already.
//!
//! Only Linux calls that never shrink the file are used, so they may run beside writes that extend
//! it.
//! `FALLOC_FL_*` work on block devices too and keep the page cache of the device in step, which
//! `BLKZEROOUT` and `BLKDISCARD` do not.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use cowl_format::ByteCount;
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::Errno;

use super::{FileKind, OpenFile};
use crate::{Allocation, HostExtent, IoBuffer, ZeroMode};

/// Zeros written at once where the host offers nothing better.
const ZEROS_MAX: usize = 1 << 20;

/// File systems that punch holes in every file, so that a discarded range reads as zeros: `f_type`
/// of
/// `statfs(2)`. Others may be able to and are asked, but nothing is promised about them.
const PUNCHING: [u64; 8] = [
    0xef53,      // ext2, ext3, ext4
    0x5846_5342, // XFS
    0x9123_683e, // btrfs
    0x0102_1994, // tmpfs
    0xf2f5_2010, // F2FS
    0xca45_1a4e, // bcachefs
    0x2fc1_2fc1, // ZFS
    0x0116_1970, // GFS2
];

/// Which calls this file has refused: each is asked once.
#[derive(Default)]
pub(super) struct Refused {
    punch: AtomicBool,
    zero_range: AtomicBool,
    pub(super) read_cached: AtomicBool,
}

/// Whether the file system is known to punch holes.
pub(super) fn punches(fd: BorrowedFd<'_>) -> bool {
    // The type of `f_type` differs between targets; the magic numbers fit 32 bits.
    #[allow(clippy::cast_sign_loss, clippy::unnecessary_cast)]
    rustix::fs::fstatfs(fd)
        .is_ok_and(|facts| PUNCHING.contains(&(facts.f_type as u64 & 0xffff_ffff)))
}

impl OpenFile {
    /// Makes a range read as zeros and reach the end of the file.
    pub(crate) fn zero(&self, at: u64, length: u64, mode: ZeroMode) -> Result<(), Errno> {
        let end = end_of(at, length)?;
        if length == 0 {
            return Ok(());
        }
        match self.kind {
            FileKind::Regular => self.zero_file(at, length, end, mode),
            FileKind::BlockDevice => self.zero_device(at, length, mode),
            FileKind::Character => self.write_zeros(at, length),
        }
    }

    fn zero_file(&self, at: u64, length: u64, end: u64, mode: ZeroMode) -> Result<(), Errno> {
        if mode == ZeroMode::MayUnmap && self.punch(at, length)? {
            return self.extend_to(end);
        }
        if self.zero_range(at, length)? {
            return Ok(());
        }
        self.write_zeros(at, length)
    }

    fn zero_device(&self, at: u64, length: u64, mode: ZeroMode) -> Result<(), Errno> {
        let unit = u64::from(self.device_block);
        let start = at.next_multiple_of(unit);
        let end = (at + length) / unit * unit;
        if end <= start {
            return self.write_zeros(at, length);
        }
        self.write_zeros(at, start - at)?;
        self.write_zeros(end, at + length - end)?;
        let zeroed = (mode == ZeroMode::MayUnmap && self.punch(start, end - start)?)
            || self.zero_range(start, end - start)?;
        if zeroed { Ok(()) } else { self.write_zeros(start, end - start) }
    }

    /// Gives a range back. A device keeps what it cannot turn into zeros.
    pub(crate) fn discard(&self, at: u64, length: u64) -> Result<(), Errno> {
        let end = end_of(at, length)?;
        match self.kind {
            FileKind::Regular => {
                let end = end.min(self.length()?);
                if at < end && !self.punch(at, end - at)? && self.can_discard {
                    // Promised to read as zeros, so it has to.
                    self.write_zeros(at, end - at)?;
                }
            }
            FileKind::BlockDevice => {
                let unit = u64::from(self.device_block);
                let start = at.next_multiple_of(unit);
                let end = end.min(self.length()?) / unit * unit;
                if start < end {
                    self.punch(start, end - start)?;
                }
            }
            FileKind::Character => {}
        }
        Ok(())
    }

    /// Gives a range blocks.
    pub(crate) fn allocate(&self, at: u64, length: u64, how: Allocation) -> Result<(), Errno> {
        match how {
            Allocation::Reserve => self.reserve(at, length),
            Allocation::WriteZeros => self.write_zeros(at, length),
        }
    }

    /// Reserves blocks without touching what is stored in them.
    fn reserve(&self, at: u64, length: u64) -> Result<(), Errno> {
        let end = end_of(at, length)?;
        match self.kind {
            _ if length == 0 => Ok(()),
            FileKind::Regular => self.fallocate(FallocateFlags::empty(), at, length),
            FileKind::BlockDevice if end <= self.length()? => Ok(()),
            FileKind::BlockDevice => Err(Errno::NOSPC),
            FileKind::Character => Ok(()),
        }
    }

    /// Writes zeros over a range.
    fn write_zeros(&self, at: u64, length: u64) -> Result<(), Errno> {
        let chunk_max = ZEROS_MAX as u64;
        let zeros = IoBuffer::zeroed(usize::try_from(length.min(chunk_max)).unwrap_or(ZEROS_MAX));
        let mut done = 0;
        while done < length {
            // Up to the next multiple of a chunk, so that all but the first are aligned.
            let room = chunk_max - (at + done) % chunk_max;
            let count = room.min(length - done).min(zeros.len() as u64);
            let bytes = &zeros[..usize::try_from(count).unwrap_or(ZEROS_MAX)];
            self.write_now(at + done, bytes)?;
            done += count;
        }
        Ok(())
    }

    /// The run of data or hole at `at`; `None` at or past the end.
    pub(crate) fn extent(&self, at: u64, length_max: u64) -> Result<Option<HostExtent>, Errno> {
        let length = self.length()?;
        if length <= at || length_max == 0 {
            return Ok(None);
        }
        let (end, hole) = match self.seek_run(at) {
            Ok(run) => run,
            // No data from here on: one hole up to the end.
            Err(Errno::NXIO) => (length, true),
            // The file system or device cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) => (length, false),
            Err(errno) => return Err(errno),
        };
        // The file may have changed between the calls: an end that makes no sense becomes data,
        // which is always a correct answer.
        let (end, hole) = if end <= at { (length, false) } else { (end.min(length), hole) };
        let run = (end - at).min(length_max);
        Ok(Some(HostExtent { length: ByteCount::new(run), hole }))
    }

    fn seek_run(&self, at: u64) -> Result<(u64, bool), Errno> {
        let data = rustix::fs::seek(&self.fd, SeekFrom::Data(at))?;
        if at < data {
            return Ok((data, true));
        }
        Ok((rustix::fs::seek(&self.fd, SeekFrom::Hole(at))?, false))
    }

    /// Makes the file at least `end` long.
    fn extend_to(&self, end: u64) -> Result<(), Errno> {
        if end <= self.length()? {
            return Ok(());
        }
        // Not ftruncate: a write that extended the file further in the meantime would be cut off.
        // One block is the price.
        match self.fallocate(FallocateFlags::empty(), end - 1, 1) {
            Err(Errno::OPNOTSUPP) => self.write_now(end - 1, &[0]),
            result => result,
        }
    }

    fn punch(&self, at: u64, length: u64) -> Result<bool, Errno> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        self.ask_once(&self.refused.punch, flags, at, length)
    }

    fn zero_range(&self, at: u64, length: u64) -> Result<bool, Errno> {
        self.ask_once(&self.refused.zero_range, FallocateFlags::ZERO_RANGE, at, length)
    }

    /// Whether the host did it; `false` when it cannot on this file.
    fn ask_once(
        &self,
        refused: &AtomicBool,
        flags: FallocateFlags,
        at: u64,
        length: u64,
    ) -> Result<bool, Errno> {
        if refused.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match self.fallocate(flags, at, length) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV) => {
                refused.store(true, Ordering::Relaxed);
                Ok(false)
            }
            Err(errno) => Err(errno),
        }
    }

    fn fallocate(&self, flags: FallocateFlags, at: u64, length: u64) -> Result<(), Errno> {
        let _shared = self.share_gate();
        loop {
            match rustix::fs::fallocate(&self.fd, flags, at, length) {
                Err(Errno::INTR) => {}
                result => return result,
            }
        }
    }
}

/// The end of a range that a file can have.
fn end_of(at: u64, length: u64) -> Result<u64, Errno> {
    let end = at.checked_add(length).ok_or(Errno::FBIG)?;
    if i64::try_from(end).is_err() { Err(Errno::FBIG) } else { Ok(end) }
}
