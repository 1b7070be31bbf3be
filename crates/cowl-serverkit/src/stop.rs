//! The wish that something ends, heard by every thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_listener::Event;

/// A wish that is expressed once and never taken back. Clones are the same wish.
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
    /// Lets whoever listens end: what that means is the listener's to say.
    pub fn request(&self) {
        self.shared.requested.store(true, Ordering::SeqCst);
        self.shared.event.notify(usize::MAX);
    }

    /// Whether the end was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.shared.requested.load(Ordering::SeqCst)
    }

    /// Returns once the end is asked for. Dropping it before that is fine.
    pub async fn requested(&self) {
        while !self.is_requested() {
            let heard = self.shared.event.listen();
            if !self.is_requested() {
                heard.await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Stop;

    #[test]
    fn every_listener_hears_of_it() {
        let stop = Stop::default();
        let listeners = [stop.clone(), stop.clone()]
            .map(|stop| std::thread::spawn(move || pollster::block_on(stop.requested())));
        assert!(!stop.is_requested());
        stop.request();
        for listener in listeners {
            listener.join().unwrap();
        }
        // Late listeners, too.
        pollster::block_on(stop.requested());
        assert!(stop.is_requested());
    }
}
