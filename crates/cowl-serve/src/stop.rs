//! The wish that the daemon ends, from any thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::Event;

/// Ends a daemon. Clones end the same one.
#[derive(Clone, Debug, Default)]
pub struct Stop {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    requested: AtomicBool,
    event: Event,
}

impl Stop {
    /// Lets the daemon end: it accepts nothing any more, answers what it has, makes everything
    /// durable and closes its disks.
    pub fn request(&self) {
        self.shared.requested.store(true, Ordering::SeqCst);
        self.shared.event.notify(usize::MAX);
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.shared.requested.load(Ordering::SeqCst)
    }

    /// Returns when the end is asked for.
    pub(crate) async fn requested(&self) {
        while !self.is_requested() {
            let heard = self.shared.event.listen();
            if !self.is_requested() {
                heard.await;
            }
        }
    }
}
