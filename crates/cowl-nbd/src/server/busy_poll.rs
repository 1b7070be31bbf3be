//! Looking for the next request for a moment before the thread sleeps.
//!
//! A client that asks one thing after another comes back within microseconds, and to put a
//! processor to sleep and wake it takes longer than that. So a thread that serves one such client
//! looks at its ring for a while. A client that thinks for longer costs a look now and then.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The longest look.
const LOOK_MAX: Duration = Duration::from_micros(70);

/// A wait that a look would have made short: the rest of it is falling asleep and waking up.
const SHORT_WAIT: Duration = Duration::from_micros(120);

/// Waits without a look after one in vain, so that those cost about a microsecond of each.
const PAUSE: u32 = 64;

/// How many connections a thread serves: with more than one, somebody else has something to do.
#[derive(Default)]
pub(crate) struct Company {
    connections: Cell<usize>,
}

/// One connection of a thread.
pub(crate) struct BusyPoll {
    company: Rc<Company>,
    was_short: Cell<bool>,
    pause: Cell<u32>,
}

impl BusyPoll {
    pub(crate) fn new(company: &Rc<Company>) -> Self {
        company.connections.set(company.connections.get() + 1);
        Self { company: Rc::clone(company), was_short: Cell::new(false), pause: Cell::new(0) }
    }

    /// Waits for what the client sends.
    pub(crate) async fn wait<T>(&self, receives: impl Future<Output = T>) -> T {
        let mut receives = pin!(receives);
        let begun = Instant::now();
        let looks = self.looks_now();
        let received = poll_fn(|context| {
            let received = receives.as_mut().poll(context);
            if looks && received.is_pending() && begun.elapsed() < LOOK_MAX {
                // The runtime asks the ring, without waiting, between two polls.
                context.waker().wake_by_ref();
            }
            received
        })
        .await;
        self.waited(looks, begun.elapsed());
        received
    }

    fn looks_now(&self) -> bool {
        if self.company.connections.get() != 1 || !self.was_short.get() {
            return false;
        }
        let pause = self.pause.get();
        self.pause.set(pause.saturating_sub(1));
        pause == 0
    }

    fn waited(&self, looked: bool, time: Duration) {
        self.was_short.set(time < SHORT_WAIT);
        if looked && LOOK_MAX <= time {
            self.pause.set(PAUSE);
        }
    }
}

impl Drop for BusyPoll {
    fn drop(&mut self) {
        self.company.connections.set(self.company.connections.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;
    use std::time::Duration;

    use super::{BusyPoll, Company, PAUSE};

    #[test]
    fn only_a_client_alone_that_comes_back_soon_is_looked_for() {
        let micros = Duration::from_micros;
        let company = Rc::new(Company::default());
        let one = BusyPoll::new(&company);
        assert!(!one.looks_now());
        one.waited(false, micros(1000));
        assert!(!one.looks_now());
        one.waited(false, micros(80));
        assert!(one.looks_now());
        one.waited(true, micros(20));
        assert!(one.looks_now());

        let other = BusyPoll::new(&company);
        assert!(!one.looks_now());
        drop(other);
        assert!(one.looks_now());
    }

    #[test]
    fn a_look_in_vain_is_not_repeated_at_once() {
        let company = Rc::new(Company::default());
        let one = BusyPoll::new(&company);
        one.waited(false, Duration::from_micros(80));
        assert!(one.looks_now());
        for _ in 0..PAUSE {
            one.waited(one.pause.get() == 0, Duration::from_micros(80));
            assert!(!one.looks_now());
        }
        assert!(one.looks_now());
    }
}
