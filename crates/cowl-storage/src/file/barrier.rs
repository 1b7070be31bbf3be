//! Barriers of one file: shared, and never trusted again after a failure.
//!
//! The kernel reports a write-back error to one `fdatasync` of an open file and forgets it. So a
//! second call, later or at the same time, may succeed although data was lost. Two rules follow:
//!   - only one `fdatasync` of a file runs at a time, and who arrives while it runs waits and then
//!     looks at its outcome before trusting anything,
//!   - once one has failed, all later ones fail with the same error and no system call.
//!
//! A barrier that started after a caller arrived covers that caller too: callers that wait share
//! it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_lock::{Mutex, MutexGuardArc};
use rustix::io::Errno;

/// The state of the barriers of one file.
#[derive(Default)]
pub(crate) struct Barriers {
    /// How many barriers have been started.
    started: AtomicU64,
    outcome: Arc<Mutex<Outcome>>,
}

/// What the finished barriers told.
#[derive(Default)]
struct Outcome {
    /// The number of the last barrier that succeeded.
    finished: u64,
    failed: Option<Errno>,
}

/// A caller's place in the order: everything it wants durable was complete when it got this.
#[derive(Clone, Copy)]
pub(crate) struct Arrival(u64);

/// The right to run the one barrier, which has to be told its outcome.
///
/// Dropped without one, the outcome is unknown, and that counts as a failure.
#[must_use = "a turn that is dropped fails all later barriers"]
pub(crate) struct Turn {
    number: u64,
    outcome: MutexGuardArc<Outcome>,
    told: bool,
}

impl Barriers {
    /// Notes that the caller's writes are complete. To be called before waiting.
    pub(crate) fn arrive(&self) -> Arrival {
        Arrival(self.started.load(Ordering::SeqCst))
    }

    /// Waits for the running barrier. `Ok(None)` when another barrier covered the caller meanwhile.
    pub(crate) fn turn_blocking(&self, arrival: Arrival) -> Result<Option<Turn>, Errno> {
        self.begin(arrival, self.outcome.lock_arc_blocking())
    }

    /// As [`Self::turn_blocking`], without blocking the thread.
    pub(crate) async fn turn(&self, arrival: Arrival) -> Result<Option<Turn>, Errno> {
        self.begin(arrival, self.outcome.lock_arc().await)
    }

    fn begin(
        &self,
        arrival: Arrival,
        outcome: MutexGuardArc<Outcome>,
    ) -> Result<Option<Turn>, Errno> {
        if let Some(errno) = outcome.failed {
            return Err(errno);
        }
        if arrival.0 < outcome.finished {
            return Ok(None);
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        Ok(Some(Turn { number, outcome, told: false }))
    }
}

impl Turn {
    /// Records how the barrier ended and lets the next one run.
    pub(crate) fn finish(mut self, result: Result<(), Errno>) -> Result<(), Errno> {
        self.told = true;
        match result {
            Ok(()) => self.outcome.finished = self.number,
            Err(errno) => self.outcome.failed = Some(errno),
        }
        result
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if !self.told {
            self.outcome.failed = Some(Errno::IO);
        }
    }
}

/// `fdatasync`, again where a signal interrupted it: an interrupted one has consumed no error.
pub(crate) fn fdatasync(fd: std::os::fd::BorrowedFd<'_>) -> Result<(), Errno> {
    loop {
        match rustix::fs::fdatasync(fd) {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::Barriers;

    #[test]
    fn a_failed_barrier_fails_all_later_ones_alike() {
        let barriers = Barriers::default();
        let turn = barriers.turn_blocking(barriers.arrive()).unwrap().unwrap();
        assert_eq!(turn.finish(Err(Errno::NOSPC)), Err(Errno::NOSPC));
        for _ in 0..3 {
            assert_eq!(barriers.turn_blocking(barriers.arrive()).err(), Some(Errno::NOSPC));
        }
    }

    #[test]
    fn a_barrier_of_unknown_outcome_counts_as_failed() {
        let barriers = Barriers::default();
        drop(barriers.turn_blocking(barriers.arrive()).unwrap());
        assert_eq!(barriers.turn_blocking(barriers.arrive()).err(), Some(Errno::IO));
    }

    #[test]
    fn a_barrier_covers_only_who_arrived_before_it_started() {
        let barriers = Barriers::default();
        let early = barriers.arrive();
        let turn = barriers.turn_blocking(early).unwrap().unwrap();
        let late = barriers.arrive();
        turn.finish(Ok(())).unwrap();
        // `late` arrived while the barrier ran: its writes may have missed it.
        let turn = barriers.turn_blocking(late).unwrap().expect("runs its own");
        turn.finish(Ok(())).unwrap();
        assert!(barriers.turn_blocking(late).unwrap().is_none());
        assert!(barriers.turn_blocking(early).unwrap().is_none());
    }
}
