//! The only unsafe code of the crate: what the ring runtime has to be promised about buffers, and
//! memory that another process shares (`shared`).
//!
//! The runtime hands memory of an [`IoBuffer`] to the kernel and moves the buffer itself into the
//! request until the kernel is done. That is sound because moving the buffer does not move its
//! bytes, they are initialized from the start, and nobody else can reach a buffer that was moved
//! away.
#![allow(unsafe_code)]

mod shared;

use std::mem::MaybeUninit;

use compio::buf::{IoBuf, IoBufMut, SetLen};

pub use self::shared::SharedMemory;

pub(crate) use self::shared::Claim;

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
