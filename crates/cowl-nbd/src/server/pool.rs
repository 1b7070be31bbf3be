//! Buffers that one thread uses again: most clients ask for the same length over and over.

use std::cell::RefCell;
use std::collections::BTreeMap;

use cowl_storage::IoBuffer;

/// Longer buffers cost little next to their I/O, and would pin memory.
const POOLED_LENGTH_MAX: usize = 64 << 10;

/// Bytes kept by a thread: what a few connections have in flight.
const POOLED_BYTES_MAX: usize = 16 << 20;

/// Free buffers by their length.
#[derive(Default)]
pub(crate) struct Pool {
    free: RefCell<Free>,
}

#[derive(Default)]
struct Free {
    by_length: BTreeMap<usize, Vec<IoBuffer>>,
    bytes: usize,
}

impl Pool {
    /// A buffer of `length` bytes with any content: whoever takes it fills all of it.
    pub(crate) fn take(&self, length: usize) -> IoBuffer {
        let mut free = self.free.borrow_mut();
        match free.by_length.get_mut(&length).and_then(Vec::pop) {
            Some(buffer) => {
                free.bytes -= length;
                buffer
            }
            None => IoBuffer::zeroed(length),
        }
    }

    pub(crate) fn put(&self, buffer: IoBuffer) {
        let length = buffer.len();
        let mut free = self.free.borrow_mut();
        if length == 0 || POOLED_LENGTH_MAX < length {
            return;
        }
        if POOLED_BYTES_MAX < free.bytes + length {
            // Lengths that nobody asks for any more would stay for ever.
            *free = Free::default();
        }
        free.bytes += length;
        free.by_length.entry(length).or_default().push(buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::{POOLED_BYTES_MAX, Pool};

    #[test]
    fn a_pool_stays_within_its_bytes() {
        let pool = Pool::default();
        let buffers: Vec<_> = (1..=1000).map(|length| pool.take(length * 64)).collect();
        for buffer in buffers {
            pool.put(buffer);
        }
        let free = pool.free.borrow();
        assert!(free.bytes <= POOLED_BYTES_MAX);
        let counted: usize = free.by_length.iter().map(|(length, list)| length * list.len()).sum();
        assert_eq!(free.bytes, counted);
    }
}
