//! Bytes that requests and replies in flight may take, over all connections.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use event_listener::Event;

/// What a connection without anything in flight gets in any case, so that it cannot be starved by
/// others that hold everything: a request as long as common clients send, and what it costs.
const ALWAYS_GRANTED_MAX: u64 = (2 << 20) + (8 << 10);

/// What a request takes besides its payload: its task, its head, its place in queues.
pub(crate) const OVERHEAD: u64 = 1 << 10;

/// The bytes of a server.
#[derive(Debug)]
pub(crate) struct Budget {
    max: u64,
    per_account_max: u64,
    used: AtomicU64,
    /// Connections that wait for what others hold.
    waiting: AtomicUsize,
    freed: Event,
}

impl Budget {
    pub(crate) fn new(max: u64, per_account_max: u64) -> Self {
        Self {
            max,
            per_account_max,
            used: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            freed: Event::new(),
        }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether somebody waits for what others hold.
    pub(crate) fn is_short(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// Takes `bytes` where they fit; what is larger than the whole fits when nothing else is held.
    fn try_take(&self, bytes: u64) -> bool {
        let fits = |used: u64| {
            let after = used.checked_add(bytes)?;
            (after <= self.max || used == 0).then_some(after)
        };
        self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, fits).is_ok()
    }

    fn give_back(&self, bytes: u64) {
        let before = self.used.fetch_sub(bytes, Ordering::AcqRel);
        assert!(bytes <= before, "only what was taken is given back");
        self.freed.notify(usize::MAX);
    }
}

/// Counts one connection that waits for what others hold.
struct Waiting<'budget>(&'budget AtomicUsize);

impl<'budget> Waiting<'budget> {
    fn new(budget: &'budget Budget) -> Self {
        budget.waiting.fetch_add(1, Ordering::Relaxed);
        Self(&budget.waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The part of the budget that one connection holds. Belongs to a thread.
pub(crate) struct Account {
    budget: Arc<Budget>,
    held: Cell<u64>,
}

/// Bytes granted; they return when it is dropped.
#[must_use = "dropping a charge returns its bytes"]
pub(crate) struct Charge {
    account: Rc<Account>,
    bytes: u64,
}

impl Account {
    pub(crate) fn new(budget: Arc<Budget>) -> Rc<Self> {
        Rc::new(Self { budget, held: Cell::new(0) })
    }

    /// Takes `bytes`, or waits until they can be had.
    pub(crate) async fn take(self: &Rc<Self>, bytes: u64) -> Charge {
        loop {
            if let Some(charge) = self.try_take(bytes) {
                return charge;
            }
            let freed = self.budget.freed.listen();
            // Between the first look and listening, somebody may have returned what is missing.
            if let Some(charge) = self.try_take(bytes) {
                return charge;
            }
            let _waiting = (!self.is_own_share_spent(bytes)).then(|| Waiting::new(&self.budget));
            freed.await;
        }
    }

    /// Whether this connection has to wait for itself.
    fn is_own_share_spent(&self, bytes: u64) -> bool {
        let held = self.held.get();
        held != 0 && self.budget.per_account_max < held + bytes
    }

    fn try_take(self: &Rc<Self>, bytes: u64) -> Option<Charge> {
        if self.is_own_share_spent(bytes) {
            return None;
        }
        let held = self.held.get();
        if held == 0 && bytes <= ALWAYS_GRANTED_MAX {
            self.budget.used.fetch_add(bytes, Ordering::AcqRel);
        } else if !self.budget.try_take(bytes) {
            return None;
        }
        self.held.set(held + bytes);
        Some(Charge { account: Rc::clone(self), bytes })
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.held.set(self.account.held.get() - self.bytes);
        self.account.budget.give_back(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Account, Budget};

    const MIB: u64 = 1 << 20;

    #[test]
    fn one_connection_takes_its_share_and_no_more() {
        let budget = Arc::new(Budget::new(100 * MIB, 40 * MIB));
        let greedy = Account::new(Arc::clone(&budget));
        let held = greedy.try_take(39 * MIB).unwrap();
        assert!(greedy.try_take(2 * MIB).is_none());
        let small = greedy.try_take(MIB).unwrap();
        drop((held, small));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn whoever_holds_nothing_gets_a_small_request_in_any_case() {
        let budget = Arc::new(Budget::new(10 * MIB, 10 * MIB));
        let greedy = Account::new(Arc::clone(&budget));
        let _held = greedy.try_take(10 * MIB).unwrap();
        let other = Account::new(Arc::clone(&budget));
        assert!(other.try_take(3 * MIB).is_none());
        let first = other.try_take(2 * MIB + 4096 + super::OVERHEAD);
        assert!(first.is_some());
        assert!(other.try_take(1).is_none());
    }

    #[test]
    fn what_is_larger_than_the_budget_passes_alone() {
        let budget = Arc::new(Budget::new(MIB, MIB));
        let account = Account::new(Arc::clone(&budget));
        assert!(account.try_take(32 * MIB).is_some());
    }
}
