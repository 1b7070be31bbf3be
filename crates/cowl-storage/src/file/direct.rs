//! `O_DIRECT`: which alignment the file wants, and requests that do not meet it.
//!
//! An unaligned write reads the blocks around it, changes them and writes them back. Whatever else
//! changes one of these blocks meanwhile would be lost, also where the two requests share no byte.
//! So such a write holds the gate alone, and every other change of the file holds it together with
//! others.
//!
//! Nothing here writes to the file to find out its alignment.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use async_lock::RwLock;
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::transfer;
use crate::IoBuffer;

/// Largest alignment that is tried, and the one assumed where nothing tells: no device asks for
/// more.
const ALIGNMENT_MAX: u32 = 4096;

/// What every file and device takes, of offsets and of memory.
pub(super) const ALIGNMENT_SAFE: (u32, u32) = (ALIGNMENT_MAX, ALIGNMENT_MAX);

/// Smallest alignment of a device.
const ALIGNMENT_MIN: u32 = 512;

/// Memory used at once by an unaligned request: large enough for the device to be busy.
const BOUNCE_MAX: usize = 1 << 20;

/// What a file opened with `O_DIRECT` needs.
pub(crate) struct Direct {
    /// Offsets and lengths are multiples of this.
    pub(crate) io_alignment: u32,
    /// Memory starts at a multiple of this.
    pub(crate) memory_alignment: u32,
    /// Held alone by read-modify-write, shared by every other change.
    pub(crate) gate: Arc<RwLock<()>>,
}

impl Direct {
    /// Finds the alignment of `fd`, which is open with `O_DIRECT`.
    pub(crate) fn discover(fd: BorrowedFd<'_>, is_block_device: bool) -> Self {
        let (io_alignment, memory_alignment) =
            alignment_told(fd).unwrap_or_else(|| probe(fd, is_block_device));
        Self { io_alignment, memory_alignment, gate: Arc::default() }
    }

    /// Reads any range into any memory.
    pub(crate) fn read_unaligned(
        &self,
        fd: BorrowedFd<'_>,
        at: u64,
        bytes: &mut [u8],
    ) -> Result<usize, Errno> {
        let mut windows = self.windows(at, bytes.len())?;
        let mut bounce = IoBuffer::zeroed(windows.length_max());
        let mut real = 0;
        while let Some(window) = windows.next() {
            let block = &mut bounce[..window.length];
            let count = transfer::read(fd, window.start, block, self.io_alignment)?;
            let part = window.skip..window.skip + window.wanted;
            real += count.clamp(part.start, part.end) - part.start;
            bytes[window.done..window.done + window.wanted].copy_from_slice(&block[part]);
        }
        Ok(real)
    }

    /// Writes any range from any memory. The caller holds the gate alone.
    pub(crate) fn write_unaligned(
        &self,
        fd: BorrowedFd<'_>,
        at: u64,
        bytes: &[u8],
        is_block_device: bool,
    ) -> Result<(), Errno> {
        let length_before = match is_block_device {
            true => u64::MAX,
            false => u64::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0),
        };
        let mut windows = self.windows(at, bytes.len())?;
        let mut bounce = IoBuffer::zeroed(windows.length_max());
        while let Some(window) = windows.next() {
            let block = &mut bounce[..window.length];
            self.read_edges(fd, &window, block)?;
            block[window.skip..window.skip + window.wanted]
                .copy_from_slice(&bytes[window.done..window.done + window.wanted]);
            transfer::write(fd, window.start, block)?;
            // Whole blocks were written; the file ends where the caller or the old content ended.
            let length_wanted = length_before.max(window.start + window.end_wanted());
            if length_wanted < window.start + window.length as u64 {
                rustix::fs::ftruncate(fd, length_wanted)?;
            }
        }
        Ok(())
    }

    /// Reads the first and the last block of a window where the write covers them only in part.
    fn read_edges(
        &self,
        fd: BorrowedFd<'_>,
        window: &Window,
        block: &mut [u8],
    ) -> Result<(), Errno> {
        let unit = self.io_alignment as usize;
        let last = window.length - unit;
        let head_partial = window.skip != 0;
        let tail_partial = window.skip + window.wanted != window.length;
        if head_partial || (tail_partial && last == 0) {
            transfer::read(fd, window.start, &mut block[..unit], self.io_alignment)?;
        }
        if tail_partial && last != 0 {
            let at = window.start + last as u64;
            transfer::read(fd, at, &mut block[last..], self.io_alignment)?;
        }
        Ok(())
    }

    fn windows(&self, at: u64, length: usize) -> Result<Windows, Errno> {
        let end = at.checked_add(length as u64).ok_or(Errno::FBIG)?;
        if end > i64::MAX as u64 - u64::from(ALIGNMENT_MAX) {
            return Err(Errno::FBIG);
        }
        Ok(Windows { at, length, done: 0, unit: self.io_alignment as usize })
    }
}

/// An aligned part of an unaligned request.
struct Window {
    /// Aligned offset in the file.
    start: u64,
    /// Aligned length.
    length: usize,
    /// Bytes of the window before the requested ones.
    skip: usize,
    /// Requested bytes.
    wanted: usize,
    /// Requested bytes before this window.
    done: usize,
}

impl Window {
    fn end_wanted(&self) -> u64 {
        (self.skip + self.wanted) as u64
    }
}

/// Cuts a request into windows of at most [`BOUNCE_MAX`] bytes.
struct Windows {
    at: u64,
    length: usize,
    done: usize,
    unit: usize,
}

impl Windows {
    fn length_max(&self) -> usize {
        (self.length + 2 * self.unit).next_multiple_of(self.unit).min(BOUNCE_MAX)
    }

    fn next(&mut self) -> Option<Window> {
        if self.done == self.length {
            return None;
        }
        let at = self.at + self.done as u64;
        let unit = self.unit as u64;
        let start = at / unit * unit;
        // Smaller than one unit, so it fits.
        let skip = usize::try_from(at - start).ok()?;
        let wanted = (self.length - self.done).min(BOUNCE_MAX - skip);
        let length = (skip + wanted).next_multiple_of(self.unit);
        let window = Window { start, length, skip, wanted, done: self.done };
        self.done += wanted;
        Some(window)
    }
}

/// What the kernel says (Linux 6.1 and later): alignment of offsets and of memory.
pub(super) fn alignment_told(fd: BorrowedFd<'_>) -> Option<(u32, u32)> {
    let facts = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok()?;
    let told = StatxFlags::from_bits_retain(facts.stx_mask).contains(StatxFlags::DIOALIGN);
    let io = facts.stx_dio_offset_align;
    let memory = facts.stx_dio_mem_align;
    let usable = |unit: u32| unit.is_power_of_two() && unit <= ALIGNMENT_MAX;
    (told && usable(io) && usable(memory)).then_some((io, memory))
}

/// The logical block of a device, or the smallest read that a file takes.
fn probe(fd: BorrowedFd<'_>, is_block_device: bool) -> (u32, u32) {
    if is_block_device && let Ok(size) = rustix::fs::ioctl_blksszget(fd) {
        return (size, size);
    }
    let mut buffer = IoBuffer::zeroed(ALIGNMENT_MAX as usize);
    let mut unit = ALIGNMENT_MIN;
    while unit < ALIGNMENT_MAX {
        // Reading nothing at the end of the file proves nothing: some file systems check no
        // alignment there.
        match rustix::io::pread(fd, &mut buffer[..unit as usize], 0) {
            Ok(count) if 0 < count => return (unit, unit),
            Ok(_) => break,
            Err(_) => unit *= 2,
        }
    }
    ALIGNMENT_SAFE
}
