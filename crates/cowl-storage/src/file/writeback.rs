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
//! Only a hint: it says nothing about what is durable, and errors show at the barrier.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// New bytes that are handed on together: long runs for the disk, and little left for a barrier.
const STEP: u64 = 16 << 20;

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

/// How far a file was handed on.
#[derive(Debug)]
pub(super) struct Progress {
    mark: AtomicU64,
    end: AtomicU64,
    /// New bytes since the file was opened.
    written: AtomicU64,
}

impl Progress {
    /// Of a file that has `length` bytes.
    pub(super) fn new(length: u64) -> Self {
        Self {
            mark: AtomicU64::new(length),
            end: AtomicU64::new(length),
            written: AtomicU64::new(0),
        }
    }

    /// Bytes were written. Returns what is due to be handed on, to one caller each.
    pub(super) fn wrote(&self, at: u64, length: u64) -> Option<Range<u64>> {
        let end = at.saturating_add(length);
        if end <= self.mark.load(Ordering::Relaxed) {
            return None;
        }
        self.end.fetch_max(end, Ordering::Relaxed);
        let before = self.written.fetch_add(length, Ordering::Relaxed);
        if before / STEP == (before + length) / STEP {
            return None;
        }
        let until = self.end.load(Ordering::Relaxed).saturating_sub(BACK);
        let from = self.mark.fetch_max(until, Ordering::Relaxed);
        (from < until).then_some(from..until)
    }
}

#[cfg(test)]
mod tests {
    use super::{BACK, Progress, STEP};

    #[test]
    fn new_bytes_are_handed_on_once_and_old_ones_never() {
        let progress = Progress::new(STEP);
        assert_eq!(progress.wrote(0, STEP), None);
        assert_eq!(progress.wrote(STEP, STEP - 1), None);
        assert_eq!(progress.wrote(2 * STEP - 1, 1), Some(STEP..2 * STEP - BACK));
        // Handed on already.
        assert_eq!(progress.wrote(STEP, STEP / 2), None);
        assert_eq!(progress.wrote(2 * STEP, STEP), Some(2 * STEP - BACK..3 * STEP - BACK));
    }

    #[test]
    fn bytes_count_and_not_the_holes_between_them() {
        let progress = Progress::new(0);
        let block = 4096;
        let due: Vec<_> =
            (0..2 * STEP / block).filter_map(|n| progress.wrote(n * 16 * block, block)).collect();
        assert_eq!(due.len(), 2);
        assert_eq!(due[0].start, 0);
        assert_eq!(due[0].end, due[1].start);
    }

    #[test]
    fn the_last_offset_is_none_too_many() {
        assert_eq!(Progress::new(0).wrote(u64::MAX - 1, 10), None);
    }
}
