//! Which thread watches the device.
//!
//! If all did, each request would wake all of them, for one to get it. So whoever finds nothing to
//! read takes the baton and watches, or sleeps when another has it. A watcher who finds something
//! puts the baton down. He wakes a sleeper only when there is more than he can do at once: then
//! the sleeper reads, too, and the next of them to find nothing watches.
//!
//! Invariant: while no thread watches, at least one is about to read. Putting the baton down wakes
//! nobody because the one who does it reads next, or ends and calls all others.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::Event;

/// The right to watch.
#[derive(Debug, Default)]
pub(super) struct Baton {
    is_taken: AtomicBool,
    call: Event,
}

struct Held<'a>(&'a Baton);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.is_taken.store(false, Ordering::SeqCst);
    }
}

impl Baton {
    /// Waits until it is worth to read: until `readable` says so, or another thread does.
    pub(super) async fn wait(
        &self,
        readable: impl Future<Output = io::Result<()>>,
    ) -> io::Result<()> {
        if !self.is_taken.swap(true, Ordering::SeqCst) {
            let _held = Held(self);
            return readable.await;
        }
        let called = self.call.listen();
        // Put down between the first look and listening: whoever did it may have ended since.
        if self.is_taken.load(Ordering::SeqCst) {
            called.await;
        }
        Ok(())
    }

    /// Wakes one who sleeps, unless one is on his way.
    pub(super) fn call_one(&self) {
        self.call.notify(1);
    }

    pub(super) fn call_all(&self) {
        self.call.notify(usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{Future, pending, ready};
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::Baton;

    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn one_watches_and_the_others_sleep_until_called() {
        let baton = Baton::default();
        let mut watcher = Box::pin(baton.wait(pending()));
        assert!(poll(watcher.as_mut()).is_pending());
        let mut first = pin!(baton.wait(ready(Ok(()))));
        let mut second = pin!(baton.wait(ready(Ok(()))));
        assert!(poll(first.as_mut()).is_pending());
        assert!(poll(second.as_mut()).is_pending());
        baton.call_one();
        assert!(poll(first.as_mut()).is_ready());
        assert!(poll(second.as_mut()).is_pending());
        drop(watcher);
        let mut third = pin!(baton.wait(ready(Ok(()))));
        assert!(poll(third.as_mut()).is_ready());
        baton.call_all();
        assert!(poll(second.as_mut()).is_ready());
    }
}
