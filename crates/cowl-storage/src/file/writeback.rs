//! Handing new bytes to the disk early.
//!
//! ```text
//!   what was there   new, handed on   new, on the way    new, may change
//!   |..............|################|>>>>>>>>>>>>>>>>>|=============|
//!                                   mark                            end of all writes
//! ```
//!
//! Left alone, the host keeps what is written until a tenth of its memory is dirty, half a minute
//! has gone, or somebody asks for a barrier, who then waits for all of it. Bytes behind everything
//! that was written before are seldom written twice, so they may go once there are enough of them;
//! the last ones stay back for those who write bit by bit.
//!
//! Only a hint: it says nothing about what is durable. Failed writes show at the barrier. The call
//! itself may learn of a failure that nobody is told of again, when a file system cannot even begin
//! and gives the pages up; so the next barrier waits for calls under way, and fails with theirs.

use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use async_lock::RwLock;
use rustix::io::Errno;

/// New bytes that are handed on together: long runs for the disk, and little left for a barrier.
const STEP: u64 = 16 << 20;

/// Before the first step they go when there are so many, so that the disk has something to do soon,
/// and each time there are twice as many.
const FIRST: u64 = 2 << 20;

/// Bytes before the end that stay back.
const BACK: u64 = 1 << 20;

/// When dirty pages are written to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writeback {
    /// When the host likes, or a barrier asks for it: for files that may be gone before that.
    ByHost,
    /// What makes the file longer soon after it was written, so that barriers have less to wait
    /// for. Through the page cache only.
    Early,
}

/// The early write-back of one file.
#[derive(Debug)]
pub(super) struct Early {
    progress: Progress,
    /// Held for reading by calls under way.
    calls: RwLock<()>,
    /// The first failure.
    lost: OnceLock<Errno>,
}

impl Early {
    /// Of a file that has `length` bytes.
    pub(super) fn new(length: u64) -> Self {
        let progress = Progress::new(length);
        Self { progress, calls: RwLock::default(), lost: OnceLock::new() }
    }

    /// Bytes were written. Returns what is due to be handed on, to one caller each.
    #[inline]
    pub(super) fn wrote(&self, at: u64, length: u64) -> Option<Range<u64>> {
        self.progress.wrote(at, length)
    }

    /// Hands a range on.
    pub(super) fn start(&self, fd: BorrowedFd<'_>, range: &Range<u64>) {
        let (at, length) = (range.start, range.end - range.start);
        // Past the largest offset there is nothing.
        let (Ok(at), Ok(length)) = (i64::try_from(at), i64::try_from(length)) else { return };
        let _call = self.calls.read_blocking();
        if let Err(errno) = crate::sys::start_writeback(fd, at, length)
            && loses_pages(errno)
        {
            // Only the first one counts.
            self.lost.set(errno).ok();
        }
    }

    /// Waits for calls under way; tells whether any has lost something.
    pub(super) async fn outcome(&self) -> Result<(), Errno> {
        drop(self.calls.write().await);
        self.lost.get().map_or(Ok(()), |errno| Err(*errno))
    }

    /// As [`Self::outcome`], on the calling thread.
    pub(super) fn outcome_blocking(&self) -> Result<(), Errno> {
        drop(self.calls.write_blocking());
        self.lost.get().map_or(Ok(()), |errno| Err(*errno))
    }
}

/// Whether pages may be gone after this error. After the others they are as dirty as before.
fn loses_pages(errno: Errno) -> bool {
    !matches!(
        errno,
        Errno::INVAL | Errno::SPIPE | Errno::NOSYS | Errno::INTR | Errno::NOMEM | Errno::AGAIN
    )
}

/// How far a file was handed on.
#[derive(Debug)]
struct Progress {
    mark: AtomicU64,
    end: AtomicU64,
    /// New bytes since the file was opened.
    written: AtomicU64,
}

impl Progress {
    fn new(length: u64) -> Self {
        Self {
            mark: AtomicU64::new(length),
            end: AtomicU64::new(length),
            written: AtomicU64::new(0),
        }
    }

    fn wrote(&self, at: u64, length: u64) -> Option<Range<u64>> {
        let end = at.saturating_add(length);
        if end <= self.mark.load(Ordering::Relaxed) {
            return None;
        }
        self.end.fetch_max(end, Ordering::Relaxed);
        let before = self.written.fetch_add(length, Ordering::Relaxed);
        if times_due(before) == times_due(before + length) {
            return None;
        }
        let until = self.end.load(Ordering::Relaxed).saturating_sub(BACK);
        let from = self.mark.fetch_max(until, Ordering::Relaxed);
        (from < until).then_some(from..until)
    }
}

/// How many times bytes became due to be handed on, when `written` new ones were written.
fn times_due(written: u64) -> u64 {
    match (written / FIRST).checked_ilog2() {
        None => 0,
        Some(doublings) if written < STEP => u64::from(doublings) + 1,
        Some(_) => u64::from((STEP / FIRST).ilog2()) + written / STEP,
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::{BACK, Early, FIRST, Progress, STEP, times_due};

    #[test]
    fn new_bytes_are_handed_on_once_and_old_ones_never() {
        let progress = Progress::new(STEP);
        assert_eq!(progress.wrote(0, STEP), None);
        assert_eq!(progress.wrote(STEP, STEP), Some(STEP..2 * STEP - BACK));
        assert_eq!(progress.wrote(2 * STEP, STEP - 1), None);
        let rest = 2 * STEP - BACK..3 * STEP - BACK;
        assert_eq!(progress.wrote(3 * STEP - 1, 1), Some(rest));
        // Handed on already.
        assert_eq!(progress.wrote(STEP, STEP / 2), None);
        assert_eq!(progress.wrote(3 * STEP, STEP), Some(3 * STEP - BACK..4 * STEP - BACK));
    }

    #[test]
    fn the_first_bytes_go_soon_and_then_more_at_a_time() {
        let due: Vec<_> = (1..=4 * STEP / FIRST)
            .filter(|n| times_due(n * FIRST - 1) < times_due(n * FIRST))
            .collect();
        assert_eq!(due, [1, 2, 4, 8, 16, 24, 32]);
        assert!(due.iter().all(|n| times_due(n * FIRST - 1) + 1 == times_due(n * FIRST)));
    }

    #[test]
    fn bytes_count_and_not_the_holes_between_them() {
        let progress = Progress::new(0);
        let block = 4096;
        let due: Vec<_> =
            (0..2 * STEP / block).filter_map(|n| progress.wrote(n * 16 * block, block)).collect();
        assert_eq!(due.len(), 5);
        assert_eq!(due[0].start, 0);
        assert!(due.is_sorted_by(|one, next| one.end == next.start));
    }

    #[test]
    fn the_last_offset_is_none_too_many() {
        assert_eq!(Progress::new(0).wrote(u64::MAX - 1, 10), None);
    }

    #[test]
    fn a_barrier_hears_of_what_a_call_has_lost() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let early = Early::new(0);
        // A pipe cannot be written back: nothing is lost by that.
        early.start(std::os::fd::AsFd::as_fd(&reader), &(0..1));
        assert_eq!(early.outcome_blocking(), Ok(()));
        early.lost.set(Errno::NOSPC).unwrap();
        assert_eq!(early.outcome_blocking(), Err(Errno::NOSPC));
        assert_eq!(pollster::block_on(early.outcome()), Err(Errno::NOSPC));
    }
}
