//! How much a check reads of tables that lie over each other.
//!
//! In a sound image no two tables share a byte, so all of them together are no longer than the
//! file. In a hostile one 65536 snapshots name the same 32 MiB of L1 table, or L2 tables start at
//! every sector of one another: terabytes to read from a file of a few megabytes. What a table may
//! cost is taken from a budget of twice the file; what does not fit is reported instead of read.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of table that may still be read.
pub(crate) struct Budget {
    left: AtomicU64,
}

impl Budget {
    /// The budget for a file of `file_length` bytes.
    pub(crate) fn new(file_length: u64) -> Self {
        /// Tables of a short file may reach past its end.
        const SLACK: u64 = 8 << 20;
        Self { left: AtomicU64::new(file_length.saturating_mul(2).saturating_add(SLACK)) }
    }

    /// Takes `bytes`; whether they were there.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let take = |left: u64| left.checked_sub(bytes);
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}
