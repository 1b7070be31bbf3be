//! How many clients there are, and when the last one goes.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use event_listener::Event;

/// The clients of a server.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    present: AtomicUsize,
    ever: AtomicU64,
    left: Event,
}

impl Guests {
    pub(crate) fn enter(&self) {
        self.present.fetch_add(1, Ordering::SeqCst);
        self.ever.fetch_add(1, Ordering::SeqCst);
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

    /// Returns when somebody came and nobody is left.
    pub(crate) async fn all_gone(&self) {
        let is_over = || self.ever() != 0 && self.present() == 0;
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
        guests.enter();
        guests.leave();
        assert_eq!(gone.as_mut().now_or_never(), None);
        guests.leave();
        assert_eq!(gone.now_or_never(), Some(()));
        assert_eq!((guests.present(), guests.ever()), (0, 2));
    }
}
