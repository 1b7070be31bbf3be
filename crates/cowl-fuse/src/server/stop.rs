//! The end, heard by every thread.

use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::Event;

/// Something that is said once.
#[derive(Debug, Default)]
pub(super) struct Stop {
    requested: AtomicBool,
    event: Event,
}

impl Stop {
    pub(super) fn request(&self) {
        self.requested.store(true, Ordering::SeqCst);
        self.event.notify(usize::MAX);
    }

    pub(super) fn is_requested(&self) -> bool {
        self.requested.load(Ordering::SeqCst)
    }

    /// Returns once it is requested.
    pub(super) async fn requested(&self) {
        while !self.is_requested() {
            let heard = self.event.listen();
            if !self.is_requested() {
                heard.await;
            }
        }
    }
}
