//! A read or a write of one range of a file, as an entry of the calling thread's ring.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd};

use compio::driver::{OpCode, OpEntry};
use io_uring::{opcode, squeue, types};

use crate::IoBuffer;

/// Which way the bytes go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the file.
    Read,
    /// To the file.
    Write,
}

/// Moves `buffer[range]` from or to `offset`. The file and the buffer are the kernel's until it is
/// done, and come back then.
pub(crate) struct Transfer<F> {
    pub(crate) file: F,
    pub(crate) buffer: IoBuffer,
    pub(crate) range: Range<usize>,
    pub(crate) offset: u64,
    direction: Direction,
    /// Whether the ring is told that it knows the memory.
    pub(crate) is_registered: bool,
}

impl<F> Transfer<F> {
    /// In memory that the ring knows where `buffer` is such memory.
    #[inline]
    pub(crate) fn new(
        file: F,
        direction: Direction,
        offset: u64,
        buffer: IoBuffer,
        range: Range<usize>,
    ) -> Self {
        let is_registered = buffer.is_registered_here();
        Self { file, buffer, range, offset, direction, is_registered }
    }
}

impl<F: AsFd> Transfer<F> {
    /// What the kernel is told: the address of bytes of `buffer`, which have to stay alive until it
    /// is done.
    #[inline]
    pub(super) fn entry(&mut self) -> squeue::Entry {
        let file = types::Fd(self.file.as_fd().as_raw_fd());
        let bytes = &mut self.buffer[self.range.clone()];
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let start = bytes.as_mut_ptr();
        // A thread's memory is the only one its rings know.
        const MEMORY: u16 = 0;
        match (self.direction, self.is_registered) {
            (Direction::Read, false) => {
                opcode::Read::new(file, start, length).offset(self.offset).build()
            }
            (Direction::Read, true) => {
                opcode::ReadFixed::new(file, start, length, MEMORY).offset(self.offset).build()
            }
            (Direction::Write, false) => {
                opcode::Write::new(file, start, length).offset(self.offset).build()
            }
            (Direction::Write, true) => {
                opcode::WriteFixed::new(file, start, length, MEMORY).offset(self.offset).build()
            }
        }
    }
}

// SAFETY: the entry has the address of bytes of `buffer`, which stay where they are while the
// buffer is owned, wherever it is moved to; the runtime owns the operation until the kernel has
// done it, or until the ring is closed: changes are waited for before that (`settle`), and whoever
// drops a runtime in the middle of reads has none of their buffers any more.
unsafe impl<F: AsFd> OpCode for Transfer<F> {
    type Control = ();

    fn create_entry(&mut self, _: &mut ()) -> OpEntry {
        self.entry().into()
    }
}
