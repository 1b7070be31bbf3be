//! Writing back while the copy goes on: the disk is busy from the start, not only in the end.
//!
//! A target that becomes durable waits for the disk to take all of it. Left to itself the host
//! begins with that when a tenth of its memory is dirty, or half a minute later.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cowl_storage::{Caching, Durability};

use crate::convert::options::ConvertOptions;
use crate::host::HostFile;

/// Bytes that are handed to the disk together: long runs for it, and little left in the end.
const STEP: u64 = 32 << 20;

/// Counts what was copied, and hands it on.
pub(super) struct WriteBack {
    file: Arc<HostFile>,
    is_wanted: bool,
    copied: AtomicU64,
}

impl WriteBack {
    /// For guest data that goes to `file`.
    pub(super) fn new(file: Arc<HostFile>, options: &ConvertOptions) -> Self {
        let is_wanted =
            options.durability == Durability::Durable && options.caching == Caching::PageCache;
        Self { file, is_wanted, copied: AtomicU64::new(0) }
    }

    /// So many bytes more were copied.
    pub(super) fn advance(&self, bytes: u64) {
        if !self.is_wanted {
            return;
        }
        let before = self.copied.fetch_add(bytes, Ordering::Relaxed);
        if before / STEP != (before + bytes) / STEP
            && let Some(file) = self.file.as_file()
        {
            file.start_write_back();
        }
    }
}
