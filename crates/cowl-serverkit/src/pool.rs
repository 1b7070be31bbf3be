//! Buffers that one thread uses again.

use std::cell::RefCell;

use cowl_storage::IoBuffer;

/// Buffers have powers of two of bytes, this many at least.
const LENGTH_MIN: usize = 4096;

/// What a buffer takes besides its bytes: they begin at a page.
const ALIGNING: usize = 4096;

/// Free buffers of one thread. Buffers have a few sizes, however many lengths are asked for: what
/// is kept for one serves the next.
pub struct Pool {
    length_max: usize,
    bytes_max: usize,
    free: RefCell<Free>,
}

struct Free {
    /// Of 4096 bytes, of 8192, and so on.
    by_size: Vec<Vec<IoBuffer>>,
    bytes: usize,
}

/// Which list holds buffers of `capacity` bytes, a power of two.
fn size_of(capacity: usize) -> usize {
    (capacity / LENGTH_MIN).ilog2() as usize
}

impl Pool {
    /// Keeps buffers of up to `length_max` bytes, and up to `bytes_max` bytes of them.
    #[must_use]
    pub fn new(length_max: usize, bytes_max: usize) -> Self {
        let length_max = length_max.next_power_of_two().max(LENGTH_MIN);
        let sizes = 1 + size_of(length_max);
        let by_size = (0..sizes).map(|_| Vec::new()).collect();
        Self { length_max, bytes_max, free: RefCell::new(Free { by_size, bytes: 0 }) }
    }

    /// Bytes of memory that a buffer of `length` bytes takes.
    #[must_use]
    pub fn cost(&self, length: usize) -> usize {
        self.capacity(length) + ALIGNING
    }

    /// What is too long to be kept has its own length.
    fn capacity(&self, length: usize) -> usize {
        if length <= self.length_max { length.next_power_of_two().max(LENGTH_MIN) } else { length }
    }

    /// A buffer of `length` bytes with any content: whoever takes it fills all of it.
    pub fn take(&self, length: usize) -> IoBuffer {
        let capacity = self.capacity(length);
        let mut free = self.free.borrow_mut();
        let is_kept = capacity <= self.length_max;
        let list = free.by_size.get_mut(size_of(capacity)).filter(|_| is_kept);
        let pooled = list.and_then(Vec::pop);
        if pooled.is_some() {
            free.bytes -= capacity + ALIGNING;
        }
        let mut buffer = pooled.unwrap_or_else(|| IoBuffer::for_requests(capacity));
        buffer.truncate(length);
        buffer
    }

    /// Takes a buffer back. One that is too long, or that this pool did not give, is freed.
    pub fn put(&self, mut buffer: IoBuffer) {
        buffer.restore();
        let capacity = buffer.len();
        let mut free = self.free.borrow_mut();
        let is_one_of_ours = LENGTH_MIN <= capacity && capacity.is_power_of_two();
        if !is_one_of_ours || self.bytes_max < free.bytes + capacity + ALIGNING {
            return;
        }
        if let Some(list) = free.by_size.get_mut(size_of(capacity)) {
            list.push(buffer);
            free.bytes += capacity + ALIGNING;
        }
    }
}

#[cfg(test)]
mod tests {
    use cowl_storage::IoBuffer;

    use super::{ALIGNING, Pool};

    #[test]
    fn a_pool_gives_what_is_asked_for_and_stays_within_its_bytes() {
        let pool = Pool::new(1 << 20, 24 << 20);
        let buffers: Vec<_> = (1..=1000).map(|length| pool.take(length * 100)).collect();
        for (buffer, length) in buffers.iter().zip(1..) {
            assert_eq!(buffer.len(), length * 100);
        }
        for buffer in buffers {
            pool.put(buffer);
        }
        let free = pool.free.borrow();
        assert!(0 < free.bytes && free.bytes <= 24 << 20);
        let cost = |buffer: &IoBuffer| buffer.len() + ALIGNING;
        let counted: usize = free.by_size.iter().flatten().map(cost).sum();
        assert_eq!(free.bytes, counted);
    }

    #[test]
    fn one_buffer_serves_many_lengths() {
        let pool = Pool::new(64 << 10, 1 << 20);
        for length in (1..=4096).chain([0]) {
            let buffer = pool.take(length);
            assert_eq!(buffer.len(), length);
            pool.put(buffer);
        }
        let buffer = pool.take(5000);
        assert_eq!(buffer.capacity(), 8192);
        pool.put(buffer);
        assert_eq!(pool.free.borrow().bytes, pool.cost(1) + pool.cost(8192));
    }

    #[test]
    fn buffers_that_are_too_large_or_strange_are_let_go() {
        let pool = Pool::new(1 << 20, 24 << 20);
        let buffer = pool.take(5 << 20);
        assert_eq!((buffer.len(), buffer.capacity()), (5 << 20, 5 << 20));
        assert_eq!(pool.cost(5 << 20), (5 << 20) + 4096);
        pool.put(buffer);
        pool.put(IoBuffer::zeroed(0));
        pool.put(IoBuffer::zeroed(700));
        assert_eq!(pool.free.borrow().bytes, 0);
    }
}
