//! Memory that another process changes too, lent to I/O piece by piece.
//!
//! ```text
//!   SharedMemory   |....|####|....|....|##..|     # claimed: one bit for each 512 bytes
//!                        ^^^^           ^^
//!                        an IoBuffer    another one; no third can lie over either
//! ```
//!
//! What holds about a claimed buffer, and what does not:
//!   - inside this process nobody else reads or writes its bytes through this mapping: claims
//!     exclude each other, and there is no other way to the bytes,
//!   - the mapping stays as long as any buffer of it,
//!   - the other process may change the bytes at any time, so two reads of one byte may differ.
//!     Any value is a valid byte, so nothing here can go wrong; but whoever decides something by
//!     the bytes and then uses them again has to copy them first,
//!   - the file must not be cut while it is mapped: touching a page behind its end raises SIGBUS.
//!     Sealed memory files cannot be cut. The kernel itself answers EFAULT there.
//!
//! Rust has no words for memory that another process writes; as for every mapping of a file, the
//! argument is that the compiler cannot see the mapping's other side and that bytes have no invalid
//! values.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use crate::IoBuffer;

/// Bytes that one bit of the claims stands for: the smallest request of a disk.
const CLAIM_UNIT: usize = 512;

/// Bytes that one word of the claims stands for.
const WORD_SPAN: usize = CLAIM_UNIT * 64;

/// A part of a file that is mapped here and in another process, such as the memory of a guest.
pub struct SharedMemory {
    start: NonNull<u8>,
    length: usize,
    /// A set bit: an [`IoBuffer`] has these bytes.
    claims: Box<[AtomicU64]>,
}

// SAFETY: the address belongs to the mapping, which any thread may use and unmap.
unsafe impl Send for SharedMemory {}
// SAFETY: bytes are reached through claims only, and these exclude each other by atomic bits.
unsafe impl Sync for SharedMemory {}

impl SharedMemory {
    /// Buffers start and end at multiples of this.
    pub const ALIGNMENT: usize = CLAIM_UNIT;

    /// Maps `length` bytes of `file` from `offset` on, to be read and written by both sides.
    ///
    /// `EINVAL` where the file is shorter or the offset is not a multiple of the page size.
    pub fn map(file: BorrowedFd<'_>, offset: u64, length: usize) -> io::Result<Arc<Self>> {
        let end = u64::try_from(length).ok().and_then(|length| offset.checked_add(length));
        let size = u64::try_from(rustix::fs::fstat(file)?.st_size).unwrap_or(0);
        if length == 0 || end.is_none_or(|end| size < end) {
            return Err(Errno::INVAL.into());
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: without MAP_FIXED the kernel chooses a place where nothing is mapped.
        let start = unsafe {
            rustix::mm::mmap(std::ptr::null_mut(), length, protection, flags, file, offset)
        }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
        let claims = bytemuck::zeroed_slice_box(length.div_ceil(WORD_SPAN));
        Ok(Arc::new(Self { start, length, claims }))
    }

    /// Number of bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.length
    }

    /// The bytes at `offset` as a buffer that is these bytes: nothing is copied.
    ///
    /// `None` where the range is empty, not aligned to [`Self::ALIGNMENT`], not wholly inside, or
    /// where a byte of it belongs to another buffer at the moment. The caller copies instead.
    #[must_use]
    pub fn claim(self: &Arc<Self>, offset: usize, length: usize) -> Option<IoBuffer> {
        let end = offset.checked_add(length)?;
        if length == 0 || !(offset | length).is_multiple_of(CLAIM_UNIT) || self.length < end {
            return None;
        }
        let mut place = offset;
        while place < end {
            let mask = mask_of(place, end);
            let before = self.claims[place / WORD_SPAN].fetch_or(mask, Ordering::Acquire);
            if before & mask != 0 {
                // What others have stays theirs.
                self.claims[place / WORD_SPAN].fetch_and(!(mask & !before), Ordering::Release);
                self.release(offset, place);
                return None;
            }
            place = next_word(place);
        }
        Some(IoBuffer::shared(Claim { memory: Arc::clone(self), offset, length }))
    }

    fn release(&self, start: usize, end: usize) {
        let mut place = start;
        while place < end {
            let mask = mask_of(place, end);
            self.claims[place / WORD_SPAN].fetch_and(!mask, Ordering::Release);
            place = next_word(place);
        }
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `map` made; every claim holds an Arc of it, so none is
        // left.
        let outcome = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
        debug_assert!(outcome.is_ok());
    }
}

impl std::fmt::Debug for SharedMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SharedMemory({} bytes)", self.length)
    }
}

/// The bits of the word around `place` from `place` on, up to `end` or the end of the word.
fn mask_of(place: usize, end: usize) -> u64 {
    let first = place % WORD_SPAN / CLAIM_UNIT;
    let count = (end.min(next_word(place)) - place) / CLAIM_UNIT;
    let bits = if count == 64 { u64::MAX } else { (1 << count) - 1 };
    bits << first
}

fn next_word(place: usize) -> usize {
    (place / WORD_SPAN + 1) * WORD_SPAN
}

/// Bytes of a mapping that one buffer has to itself.
pub(crate) struct Claim {
    memory: Arc<SharedMemory>,
    offset: usize,
    length: usize,
}

impl Claim {
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: `claim` checked that the range lies inside.
        let start = unsafe { self.memory.start.as_ptr().add(self.offset) };
        // SAFETY: the bytes are mapped while `memory` is held; no other claim covers them, and this
        // borrow of the claim excludes `bytes_mut`. See the head of the file for the other process.
        unsafe { std::slice::from_raw_parts(start, self.length) }
    }

    #[inline]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: `claim` checked that the range lies inside.
        let start = unsafe { self.memory.start.as_ptr().add(self.offset) };
        // SAFETY: as in `bytes`, and the claim is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(start, self.length) }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.memory.release(self.offset, self.offset + self.length);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::SharedMemory;

    fn memory(length: usize) -> (std::fs::File, Arc<SharedMemory>) {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(length as u64).expect("a length");
        let memory = SharedMemory::map(file.as_fd(), 0, length).expect("a mapping");
        (file, memory)
    }

    #[test]
    fn a_claimed_buffer_is_the_shared_bytes() {
        let (file, memory) = memory(1 << 20);
        file.write_all_at(b"from there", 4096).expect("write");
        let mut buffer = memory.claim(4096, 512).expect("a claim");
        assert_eq!(&buffer[..10], b"from there");
        assert!(buffer.is_shared());
        buffer[..9].copy_from_slice(b"from here");
        let mut seen = [0; 10];
        file.read_exact_at(&mut seen, 4096).expect("read");
        assert_eq!(&seen, b"from heree");
    }

    #[test]
    fn claims_exclude_each_other_until_they_are_dropped() {
        let (_file, memory) = memory(1 << 20);
        let first = memory.claim(512 * 60, 512 * 200).expect("a claim");
        for (offset, length) in [(0, 1 << 20), (512 * 60, 512), (512 * 259, 512), (0, 512 * 61)] {
            assert!(memory.claim(offset, length).is_none(), "{offset} {length}");
        }
        let before = memory.claim(0, 512 * 60).expect("what lies before is free");
        let after = memory.claim(512 * 260, 512).expect("what lies behind is free");
        drop((first, before, after));
        assert_eq!(memory.claim(0, 1 << 20).expect("all is free").len(), 1 << 20);
    }

    #[test]
    fn a_shortened_buffer_gives_all_of_its_claim_back() {
        let (_file, memory) = memory(1 << 20);
        let mut buffer = memory.claim(0, 8192).expect("a claim");
        buffer.truncate(512);
        assert_eq!(buffer.len(), 512);
        drop(buffer);
        assert!(memory.claim(0, 8192).is_some());
    }

    #[test]
    fn ranges_outside_or_between_units_are_not_lent() {
        let (_file, memory) = memory(1 << 20);
        let ranges = [(0, 0), (1, 512), (0, 511), (1 << 20, 512), (512, 1 << 20)];
        for (offset, length) in ranges {
            assert!(memory.claim(offset, length).is_none(), "{offset} {length}");
        }
        assert!(memory.claim(usize::MAX - 511, 512).is_none());
        assert!(memory.claim(0, 1 << 20).is_some());
    }

    #[test]
    fn a_file_that_is_too_short_is_not_mapped() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(4096).expect("a length");
        for (offset, length) in [(0, 8192), (4096, 4096), (u64::MAX, 4096), (0, 0)] {
            assert!(SharedMemory::map(file.as_fd(), offset, length).is_err());
        }
    }

    #[test]
    fn threads_never_hold_one_byte_twice() {
        let (_file, memory) = memory(1 << 20);
        let work = |seed: usize| {
            let memory = Arc::clone(&memory);
            move || {
                let mut had = 0;
                for step in 0..20_000_usize {
                    let offset = (step * 7 + seed * 13) % 300 * 512;
                    let length = (step % 90 + 1) * 512;
                    let Some(mut buffer) = memory.claim(offset, length) else { continue };
                    let mark = u8::try_from(seed).expect("few threads");
                    buffer.fill(mark);
                    std::hint::spin_loop();
                    assert!(buffer.iter().all(|&byte| byte == mark));
                    had += 1;
                }
                had
            }
        };
        let threads: Vec<_> = (1..4).map(|seed| std::thread::spawn(work(seed))).collect();
        for thread in threads {
            assert!(0 < thread.join().expect("no thread panics"));
        }
        assert!(memory.claim(0, 1 << 20).is_some());
    }
}
