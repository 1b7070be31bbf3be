//! Memory that an I/O owns while it runs.
//!
//! A kernel that completes requests later writes into memory after the call returned, so the
//! request has to own that memory: a dropped future must not free it. [`IoBuffer`] is that memory,
//! aligned well enough for O_DIRECT: memory of its own, a page that the thread's ring knows, or a
//! claimed piece of a [`SharedMemory`](crate::SharedMemory).

use crate::sys::{Claim, RegisteredPage};

/// Owned bytes whose first one lies at a multiple of [`IoBuffer::ALIGNMENT`], or bytes of a
/// [`SharedMemory`](crate::SharedMemory), at a multiple of its alignment.
///
/// Moving the buffer does not move its bytes. It is one pointer, since a request hands it on from
/// future to future: five words on that way cost as much as finding out where to read.
pub struct IoBuffer(Box<Content>);

struct Content {
    memory: Memory,
    length: usize,
}

enum Memory {
    /// Over-allocated by one alignment unit; `start` is the first aligned byte. This costs at most
    /// one page and needs no unsafe code.
    Owned {
        bytes: Vec<u8>,
        start: usize,
    },
    Registered(RegisteredPage),
    Shared(Claim),
}

impl IoBuffer {
    /// Memory alignment of every buffer, in bytes: enough for O_DIRECT on any block device.
    pub const ALIGNMENT: usize = 4096;

    /// A buffer of `length` zero bytes.
    #[must_use]
    pub fn zeroed(length: usize) -> Self {
        // `vec![0; n]` takes zero pages from the allocator and does not touch them.
        let bytes = vec![0; length + Self::ALIGNMENT - 1];
        let start = bytes.as_ptr().align_offset(Self::ALIGNMENT);
        assert!(start < Self::ALIGNMENT);
        Self::new(Memory::Owned { bytes, start }, length)
    }

    /// The same for one request after the other: in memory that the ring of the calling thread
    /// knows where it has such memory left, which requests of up to 4 KiB around the page cache
    /// gain by. There is little of it: not for what is kept.
    #[must_use]
    pub fn for_requests(length: usize) -> Self {
        match RegisteredPage::take(length) {
            Some(mut page) => {
                page.bytes_mut().fill(0);
                Self::new(Memory::Registered(page), length)
            }
            None => Self::zeroed(length),
        }
    }

    pub(crate) fn shared(claim: Claim) -> Self {
        let length = claim.len();
        Self::new(Memory::Shared(claim), length)
    }

    fn new(memory: Memory, length: usize) -> Self {
        Self(Box::new(Content { memory, length }))
    }

    /// Whether the ring of the calling thread knows the memory.
    pub(crate) fn is_registered_here(&self) -> bool {
        matches!(&self.0.memory, Memory::Registered(page) if page.is_known_here())
    }

    /// Whether another process may change the bytes at any time: who decides something by them and
    /// uses them again copies them first.
    #[must_use]
    pub fn is_shared(&self) -> bool {
        matches!(self.0.memory, Memory::Shared(_))
    }

    /// A buffer holding a copy of `bytes`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.copy_from_slice(bytes);
        buffer
    }

    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.length
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.length == 0
    }

    /// Shortens the buffer to its first `length` bytes. The memory behind them is kept.
    pub fn truncate(&mut self, length: usize) {
        assert!(length <= self.0.length, "truncate only shortens");
        self.0.length = length;
    }

    /// Takes back what [`truncate`](Self::truncate) cut off, with the bytes it had.
    pub fn restore(&mut self) {
        self.0.length = self.capacity();
    }

    /// Number of bytes it was made with.
    #[must_use]
    pub fn capacity(&self) -> usize {
        match &self.0.memory {
            Memory::Owned { bytes, .. } => bytes.len() - (Self::ALIGNMENT - 1),
            Memory::Registered(page) => page.len(),
            Memory::Shared(claim) => claim.len(),
        }
    }
}

impl core::ops::Deref for IoBuffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        let Content { memory, length } = &*self.0;
        match memory {
            Memory::Owned { bytes, start } => &bytes[*start..*start + *length],
            Memory::Registered(page) => &page.bytes()[..*length],
            Memory::Shared(claim) => &claim.bytes()[..*length],
        }
    }
}

impl core::ops::DerefMut for IoBuffer {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let Content { memory, length } = &mut *self.0;
        match memory {
            Memory::Owned { bytes, start } => &mut bytes[*start..*start + *length],
            Memory::Registered(page) => &mut page.bytes_mut()[..*length],
            Memory::Shared(claim) => &mut claim.bytes_mut()[..*length],
        }
    }
}

impl AsRef<[u8]> for IoBuffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for IoBuffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl core::fmt::Debug for IoBuffer {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "IoBuffer({} bytes)", self.0.length)
    }
}

#[cfg(test)]
mod tests {
    use super::IoBuffer;

    #[test]
    fn every_buffer_is_aligned_and_zero() {
        for length in [0, 1, 511, 512, 4096, 1 << 20] {
            let buffer = IoBuffer::zeroed(length);
            assert_eq!(buffer.as_ptr() as usize % IoBuffer::ALIGNMENT, 0);
            assert_eq!(buffer.len(), length);
            assert!(buffer.iter().all(|&byte| byte == 0));
        }
    }

    #[test]
    fn moving_a_buffer_keeps_its_bytes_in_place() {
        let buffer = IoBuffer::from_slice(b"here");
        let before = buffer.as_ptr();
        let moved = Box::new(buffer);
        assert_eq!(moved.as_ptr(), before);
        assert_eq!(&moved[..], b"here");
    }

    #[test]
    fn what_truncate_cut_off_comes_back() {
        let mut buffer = IoBuffer::from_slice(b"whole");
        buffer.truncate(2);
        assert_eq!((&buffer[..], buffer.capacity()), (&b"wh"[..], 5));
        buffer.restore();
        assert_eq!(&buffer[..], b"whole");
    }
}
