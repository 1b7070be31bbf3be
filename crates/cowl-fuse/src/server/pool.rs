//! Buffers that one thread uses again.

use std::cell::RefCell;

use cowl_storage::IoBuffer;

/// Buffers have powers of two of bytes, this many at least.
const LENGTH_MIN: usize = 4096;

/// And this many sizes of them; what is larger is not kept.
const SIZES: usize = 9;

/// Bytes kept by a thread.
const POOLED_BYTES_MAX: usize = 24 << 20;

/// Free buffers by size.
#[derive(Default)]
pub(super) struct Pool {
    free: RefCell<Free>,
}

#[derive(Default)]
struct Free {
    by_size: [Vec<IoBuffer>; SIZES],
    bytes: usize,
}

/// Which list holds buffers of `capacity` bytes, a power of two.
fn size_of(capacity: usize) -> usize {
    (capacity / LENGTH_MIN).ilog2() as usize
}

impl Pool {
    /// A buffer of `length` bytes with any content: whoever takes it fills all of it.
    pub(super) fn take(&self, length: usize) -> IoBuffer {
        let capacity = length.next_power_of_two().max(LENGTH_MIN);
        let mut free = self.free.borrow_mut();
        let pooled = free.by_size.get_mut(size_of(capacity)).and_then(Vec::pop);
        if pooled.is_some() {
            free.bytes -= capacity;
        }
        let mut buffer = pooled.unwrap_or_else(|| IoBuffer::zeroed(capacity));
        buffer.truncate(length);
        buffer
    }

    pub(super) fn put(&self, mut buffer: IoBuffer) {
        buffer.restore();
        let capacity = buffer.len();
        let mut free = self.free.borrow_mut();
        let is_one_of_ours = LENGTH_MIN <= capacity && capacity.is_power_of_two();
        if !is_one_of_ours || POOLED_BYTES_MAX < free.bytes + capacity {
            return;
        }
        if let Some(list) = free.by_size.get_mut(size_of(capacity)) {
            list.push(buffer);
            free.bytes += capacity;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{POOLED_BYTES_MAX, Pool};

    #[test]
    fn a_pool_gives_what_is_asked_for_and_stays_within_its_bytes() {
        let pool = Pool::default();
        let buffers: Vec<_> = (1..=1000).map(|length| pool.take(length * 100)).collect();
        for (buffer, length) in buffers.iter().zip(1..) {
            assert_eq!(buffer.len(), length * 100);
        }
        for buffer in buffers {
            pool.put(buffer);
        }
        let free = pool.free.borrow();
        assert!(free.bytes <= POOLED_BYTES_MAX);
        let counted: usize = free.by_size.iter().flatten().map(|buffer| buffer.len()).sum();
        assert_eq!(free.bytes, counted);
    }

    #[test]
    fn buffers_that_are_too_large_are_let_go() {
        let pool = Pool::default();
        let buffer = pool.take(5 << 20);
        assert_eq!(buffer.len(), 5 << 20);
        pool.put(buffer);
        assert_eq!(pool.free.borrow().bytes, 0);
    }
}
