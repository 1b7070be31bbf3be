//! What an image has done, in numbers.

use std::sync::atomic::Ordering;

use cowl_storage::Storage;

use crate::Layer;

/// What was done since an image was opened for writing. All zero for one opened for reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ImageStats {
    /// Commits that had metadata to write.
    pub commits: u64,
    /// Barriers, each over all files of the image.
    pub barriers: u64,
    /// Writes of metadata by commits.
    pub metadata_writes: u64,
    /// Bytes of them.
    pub metadata_bytes: u64,
    /// Reservations of host clusters.
    pub reservations: u64,
    /// Host clusters that may be reserved and unused at once: what a crash may leak.
    pub reserved_clusters_max: u64,
    /// Bytes of metadata that wait to be written, about.
    pub dirty_bytes: usize,
}

impl<S: Storage> Layer<S> {
    pub(crate) fn image_stats(&self) -> ImageStats {
        let Ok(writer) = self.writer() else { return ImageStats::default() };
        let counters = &writer.counters;
        ImageStats {
            commits: counters.commits.load(Ordering::Relaxed),
            barriers: self.metadata().barriers().count(),
            metadata_writes: counters.metadata_writes.load(Ordering::Relaxed),
            metadata_bytes: counters.metadata_bytes.load(Ordering::Relaxed),
            reservations: writer.arenas.reservations(),
            reserved_clusters_max: crate::allocator::Arenas::clusters_max(self.geometry()),
            dirty_bytes: self.metadata().dirty().bytes(),
        }
    }
}
