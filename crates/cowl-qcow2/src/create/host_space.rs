//! Host clusters of a new image, handed out from the front.
//!
//! Whole clusters come in runs. Compressed streams are packed byte by byte; a stream may go on into
//! the next cluster when that one follows in the file. The number of streams in a cluster is its
//! refcount, so a cluster that is full of references is left even if it has room.

use std::collections::HashMap;

use cowl_format::{Geometry, HostCluster, HostOffset};
use rustc_hash::FxBuildHasher;

/// What has been handed out.
pub(super) struct HostSpace {
    geometry: Geometry,
    next: u64,
    packed: Option<Packed>,
    /// References of clusters that hold compressed streams; all others have one.
    references: HashMap<u64, u64, FxBuildHasher>,
}

/// Where the next compressed stream goes.
struct Packed {
    at: u64,
}

impl HostSpace {
    pub(super) fn new(geometry: Geometry, first_free: HostCluster) -> Self {
        let references = HashMap::default();
        Self { geometry, next: first_free.get(), packed: None, references }
    }

    /// The cluster behind the last one in use.
    pub(super) fn end(&self) -> HostCluster {
        HostCluster::new(self.next)
    }

    /// A run of `count` clusters.
    pub(super) fn clusters(&mut self, count: u64) -> HostCluster {
        let first = self.next;
        self.next += count;
        HostCluster::new(first)
    }

    /// Room for compressed streams of these lengths, in one stretch of the file where it can be.
    pub(super) fn streams(&mut self, lengths: &[usize]) -> Vec<HostOffset> {
        lengths.iter().map(|&length| self.stream(length as u64)).collect()
    }

    fn stream(&mut self, length: u64) -> HostOffset {
        let size = self.geometry.cluster_size();
        assert!(0 < length && length < size);
        let end_of_space = self.next * size;
        let at = match &self.packed {
            // The cluster under way, if it can take one more reference, and if what does not fit in
            // it can go on in the cluster behind.
            Some(packed) if self.has_room(packed.at, length, end_of_space) => packed.at,
            _ => end_of_space,
        };
        let last = (at + length - 1) / size;
        if self.next <= last {
            self.next = last + 1;
        }
        for cluster in at / size..=last {
            *self.references.entry(cluster).or_insert(0) += 1;
        }
        self.packed = Some(Packed { at: at + length });
        HostOffset::new(at)
    }

    fn has_room(&self, at: u64, length: u64, end_of_space: u64) -> bool {
        let size = self.geometry.cluster_size();
        let max = self.geometry.refcount_max();
        let cluster_end = (at / size + 1) * size;
        // At the end of its cluster a stretch is used up: what lies behind may be somebody else's.
        let is_used_up = at.is_multiple_of(size);
        let full = self.references.get(&(at / size)).is_some_and(|count| max <= *count);
        // A stream of its own cluster is all that a one-bit refcount allows.
        let may_straddle = cluster_end == end_of_space && 1 < max;
        !is_used_up && !full && (at + length <= cluster_end || may_straddle)
    }

    /// The refcount of a cluster in use.
    pub(super) fn references(&self, cluster: u64) -> u64 {
        self.references.get(&cluster).copied().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use cowl_format::{Geometry, HostCluster};

    use super::HostSpace;

    #[test]
    fn streams_never_overlap_clusters_and_references_are_exact() {
        for order in [0, 1, 4] {
            let geometry = Geometry::new(12, order, false).unwrap();
            let mut space = HostSpace::new(geometry, HostCluster::new(5));
            let mut owners: HashMap<u64, u64> = HashMap::new();
            let mut taken: Vec<(u64, u64)> = Vec::new();
            for step in 0..2000_u64 {
                if step % 17 == 3 {
                    let first = space.clusters(1 + step % 3).get();
                    taken.push((first * 4096, (first + 1 + step % 3) * 4096));
                    continue;
                }
                // Often a length that ends its cluster exactly: what follows must not be touched.
                let rest = taken.last().map_or(0, |last| 4096 - last.1 % 4096);
                let length = match step % 5 {
                    0 if (1..4096).contains(&rest) => rest,
                    _ => 1 + step * 7919 % 4095,
                };
                let at = space.streams(&[usize::try_from(length).unwrap()])[0].get();
                for cluster in at / 4096..=(at + length - 1) / 4096 {
                    *owners.entry(cluster).or_default() += 1;
                }
                taken.push((at, at + length));
            }
            taken.sort_unstable();
            assert!(taken.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            assert!(taken.last().unwrap().1 <= space.end().get() * 4096);
            for (cluster, count) in owners {
                assert_eq!(space.references(cluster), count);
                assert!(count <= geometry.refcount_max());
            }
        }
    }
}
