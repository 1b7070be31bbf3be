//! Which host clusters hold metadata: the last line of defence against an image that is broken.
//!
//! A guest write must never land on the header, a table or a refcount block, whatever a damaged L2
//! entry says. The map answers with one look at one bit.
//!
//! Known: header, active L1 and L2 tables, refcount table and blocks, snapshot table, L1 tables of
//! snapshots, bitmap directory. Not known, as in QEMU's default: L2 tables that only snapshots
//! have, bitmap tables and data.

use std::sync::atomic::{AtomicU64, Ordering};

use cowl_format::HostCluster;
use rustc_hash::FxBuildHasher;

const WORDS: usize = 64;
const CHUNK_CLUSTERS: u64 = WORDS as u64 * 64;

/// A bit for each host cluster that holds metadata.
pub(crate) struct RoleMap {
    chunks: papaya::HashMap<u64, Box<[AtomicU64; WORDS]>, FxBuildHasher>,
}

impl RoleMap {
    pub(crate) fn new() -> Self {
        // At once, for the same reason as the maps of the caches.
        let growth = papaya::ResizeMode::Blocking;
        Self {
            chunks: papaya::HashMap::builder().hasher(FxBuildHasher).resize_mode(growth).build(),
        }
    }

    /// Whether any of `count` clusters from `first` on holds metadata.
    pub(crate) fn holds_metadata(&self, first: HostCluster, count: u64) -> Option<HostCluster> {
        let chunks = self.chunks.pin();
        let end = first.get() + count;
        let mut cluster = first.get();
        while cluster < end {
            let chunk_end = (cluster / CHUNK_CLUSTERS + 1) * CHUNK_CLUSTERS;
            let Some(chunk) = chunks.get(&(cluster / CHUNK_CLUSTERS)) else {
                cluster = chunk_end;
                continue;
            };
            for cluster in cluster..end.min(chunk_end) {
                let (word, bit) = place(cluster);
                if chunk[word].load(Ordering::Acquire) & bit != 0 {
                    return Some(HostCluster::new(cluster));
                }
            }
            cluster = chunk_end;
        }
        None
    }

    /// These clusters hold metadata from now on.
    pub(crate) fn add(&self, first: HostCluster, count: u64) {
        let chunks = self.chunks.pin();
        for cluster in first.get()..first.get() + count {
            let new = || Box::new([const { AtomicU64::new(0) }; WORDS]);
            let chunk = chunks.get_or_insert_with(cluster / CHUNK_CLUSTERS, new);
            let (word, bit) = place(cluster);
            chunk[word].fetch_or(bit, Ordering::AcqRel);
        }
    }

    /// These clusters hold no metadata any more.
    pub(crate) fn remove(&self, first: HostCluster, count: u64) {
        let chunks = self.chunks.pin();
        for cluster in first.get()..first.get() + count {
            if let Some(chunk) = chunks.get(&(cluster / CHUNK_CLUSTERS)) {
                let (word, bit) = place(cluster);
                chunk[word].fetch_and(!bit, Ordering::AcqRel);
            }
        }
    }
}

/// Word and bit of a cluster in its chunk.
fn place(cluster: u64) -> (usize, u64) {
    let within = cluster % CHUNK_CLUSTERS;
    (usize::try_from(within / 64).expect("below 64"), 1 << (within % 64))
}

#[cfg(test)]
mod tests {
    use cowl_format::HostCluster;

    use super::RoleMap;

    #[test]
    fn clusters_are_told_apart_across_words_and_chunks() {
        let roles = RoleMap::new();
        let at = HostCluster::new;
        roles.add(at(4094), 4);
        assert_eq!(roles.holds_metadata(at(0), 4094), None);
        assert_eq!(roles.holds_metadata(at(0), 10_000), Some(at(4094)));
        assert_eq!(roles.holds_metadata(at(4097), 1), Some(at(4097)));
        assert_eq!(roles.holds_metadata(at(4098), 1 << 30), None);
        roles.remove(at(4094), 3);
        assert_eq!(roles.holds_metadata(at(0), 10_000), Some(at(4097)));
    }
}
