//! Memory for what has to be copied: as much as a queue may use, and no more.
//!
//! A guest chooses how much it asks for; without a bound it would choose how much memory the server
//! takes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use cowl_storage::IoBuffer;
use event_listener::Event;

/// Bytes that are copied at a time; a longer request goes piece by piece.
pub(crate) const PIECE_MAX: usize = 512 << 10;

/// Bytes of one queue that are being copied at a time: enough to keep any device busy.
const USED_MAX: usize = 8 << 20;

/// Bytes that are kept for the next request.
const KEPT_MAX: usize = 2 << 20;

/// The buffers of one queue.
#[derive(Default)]
pub(crate) struct Bounce {
    used: Cell<usize>,
    given_back: Event,
    free: RefCell<Free>,
}

#[derive(Default)]
struct Free {
    by_length: BTreeMap<usize, Vec<IoBuffer>>,
    bytes: usize,
}

impl Bounce {
    /// A buffer with any content; waits while others have too much.
    pub(crate) async fn take(&self, length: usize) -> IoBuffer {
        assert!(length <= PIECE_MAX);
        while USED_MAX < self.used.get() + length {
            // Nobody else runs between the look and the listening: the queue has one thread.
            self.given_back.listen().await;
        }
        self.used.set(self.used.get() + length);
        let mut free = self.free.borrow_mut();
        match free.by_length.get_mut(&length).and_then(Vec::pop) {
            Some(buffer) => {
                free.bytes -= length;
                buffer
            }
            None => IoBuffer::for_requests(length),
        }
    }

    /// Gives back what was taken.
    pub(crate) fn put(&self, buffer: IoBuffer) {
        let length = buffer.len();
        self.used.set(self.used.get() - length);
        let mut free = self.free.borrow_mut();
        if KEPT_MAX < free.bytes + length {
            // Lengths that nobody asks for any more would stay for ever.
            *free = Free::default();
        }
        free.bytes += length;
        free.by_length.entry(length).or_default().push(buffer);
        self.given_back.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::{Bounce, KEPT_MAX, PIECE_MAX, USED_MAX};

    #[test]
    fn a_queue_waits_for_its_own_buffers_and_keeps_few() {
        let bounce = Bounce::default();
        let take = || bounce.take(PIECE_MAX).now_or_never();
        let mut taken: Vec<_> = std::iter::from_fn(take).collect();
        assert_eq!(taken.len(), USED_MAX / PIECE_MAX);
        bounce.put(taken.pop().expect("one of many"));
        assert!(take().is_some());
        assert!(take().is_none());
        // The one that `take` gave above was dropped without being given back.
        taken.into_iter().for_each(|buffer| bounce.put(buffer));
        assert!(bounce.free.borrow().bytes <= KEPT_MAX);
    }
}
