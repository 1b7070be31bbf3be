//! Bytes that requests and answers in flight take, over all threads.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use event_listener::Event;

/// What a request takes besides its bytes: its task, its place in queues.
pub(super) const OVERHEAD: u64 = 1 << 10;

/// The bytes of a server.
#[derive(Debug)]
pub(super) struct Budget {
    max: u64,
    used: AtomicU64,
    freed: Event,
}

impl Budget {
    pub(super) fn new(max: u64) -> Self {
        Self { max, used: AtomicU64::new(0), freed: Event::new() }
    }

    pub(super) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Returns when a further request may be read. One whose size nobody knows yet goes past the
    /// limit by at most that size, once for each thread.
    pub(super) async fn room(&self, held: &Held) {
        // A thread that has nothing in flight serves one request in any case.
        while held.0.get() != 0 && self.max <= self.used() {
            let freed = self.freed.listen();
            if self.max <= self.used() {
                freed.await;
            }
        }
    }

    /// Returns when all that `held` counts is given back.
    pub(super) async fn returned(&self, held: &Held) {
        while held.0.get() != 0 {
            let freed = self.freed.listen();
            // Only this thread gives its own back, so nothing comes between.
            freed.await;
        }
    }

    fn take(&self, held: &Held, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
        held.0.set(held.0.get() + bytes);
    }

    fn give_back(&self, held: &Held, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        assert!(bytes <= before, "only what was taken is given back");
        held.0.set(held.0.get() - bytes);
        self.freed.notify(usize::MAX);
    }
}

/// What one thread holds of a budget.
#[derive(Debug, Default)]
pub(super) struct Held(Cell<u64>);

/// Who knows a budget and the part of it that this thread holds.
pub(super) trait Account {
    fn budget(&self) -> &Budget;
    fn held(&self) -> &Held;
}

/// Bytes taken; they return when it is dropped.
#[must_use = "dropping a charge returns its bytes"]
pub(super) struct Charge<A: Account> {
    account: Rc<A>,
    bytes: u64,
}

impl<A: Account> Charge<A> {
    pub(super) fn new(account: &Rc<A>, bytes: u64) -> Self {
        account.budget().take(account.held(), bytes);
        Self { account: Rc::clone(account), bytes }
    }
}

impl<A: Account> Drop for Charge<A> {
    fn drop(&mut self) {
        self.account.budget().give_back(self.account.held(), self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::{Context, Waker};

    use super::{Account, Budget, Charge, Held};

    struct Thread {
        budget: Budget,
        held: Held,
    }

    impl Account for Thread {
        fn budget(&self) -> &Budget {
            &self.budget
        }
        fn held(&self) -> &Held {
            &self.held
        }
    }

    #[test]
    fn a_full_budget_waits_until_something_returns() {
        let thread = Rc::new(Thread { budget: Budget::new(100), held: Held::default() });
        let has_room = || {
            let mut room = pin!(thread.budget.room(&thread.held));
            room.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
        };
        let first = Charge::new(&thread, 1000);
        assert!(!has_room());
        let idle = Held::default();
        let mut room = pin!(thread.budget.room(&idle));
        assert!(room.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        drop(first);
        assert!(has_room());
        assert_eq!(thread.budget.used(), 0);
    }
}
