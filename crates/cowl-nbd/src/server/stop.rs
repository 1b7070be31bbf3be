//! The wish to stop, heard by every thread.

use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::Event;

/// A wish that is expressed once.
#[derive(Debug, Default)]
pub(crate) struct Stop {
    requested: AtomicBool,
    event: Event,
}

impl Stop {
    pub(crate) fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.event.notify(usize::MAX);
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Returns once it is requested.
    pub(crate) async fn requested(&self) {
        while !self.is_requested() {
            let heard = self.event.listen();
            if !self.is_requested() {
                heard.await;
            }
        }
    }
}
