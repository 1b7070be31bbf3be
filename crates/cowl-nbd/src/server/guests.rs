//! How many clients there are, and when the last one goes.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use event_listener::Event;

/// The clients of a server.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    present: AtomicUsize,
    ever: AtomicU64,
    /// Whether somebody took an export. Who only looks whether the server is there, or asks what it
    /// has, is no client that could be the last one.
    served: AtomicBool,
    left: Event,
}

impl Guests {
    pub(crate) fn enter(&self) {
        self.present.fetch_add(1, Ordering::SeqCst);
        self.ever.fetch_add(1, Ordering::SeqCst);
    }

    /// One of them took an export.
    pub(crate) fn served(&self) {
        self.served.store(true, Ordering::SeqCst);
    }

    pub(crate) fn leave(&self) {
        self.present.fetch_sub(1, Ordering::SeqCst);
        self.left.notify(usize::MAX);
    }

    pub(crate) fn present(&self) -> usize {
        self.present.load(Ordering::SeqCst)
    }

    pub(crate) fn ever(&self) -> u64 {
        self.ever.load(Ordering::SeqCst)
    }

    /// Returns when somebody was served and nobody is left.
    pub(crate) async fn all_gone(&self) {
        let is_over = || self.served.load(Ordering::SeqCst) && self.present() == 0;
        while !is_over() {
            let left = self.left.listen();
            if !is_over() {
                left.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::FutureExt;

    use super::Guests;

    #[test]
    fn all_are_gone_after_the_last_one_and_not_before_the_first() {
        let guests = Guests::default();
        let mut gone = pin!(guests.all_gone());
        assert_eq!(gone.as_mut().now_or_never(), None);
        guests.enter();
        guests.leave();
        assert_eq!(gone.as_mut().now_or_never(), None);
        guests.enter();
        guests.enter();
        guests.served();
        guests.leave();
        assert_eq!(gone.as_mut().now_or_never(), None);
        guests.leave();
        assert_eq!(gone.now_or_never(), Some(()));
        assert_eq!((guests.present(), guests.ever()), (0, 3));
    }
}
