//! How often each host cluster is used, counted in parallel.
//!
//! One byte for each cluster, with the rare larger numbers aside. The bytes are touched only where
//! something is counted, so a sparse file costs little.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use cowl_format::Geometry;
use rustc_hash::FxBuildHasher;

use crate::check::report::Findings;

/// From here on a count lives in the side table.
const LARGE: u8 = 255;

/// Counts of all host clusters.
pub(crate) struct References {
    counts: Box<[AtomicU8]>,
    large: Mutex<HashMap<u64, u64, FxBuildHasher>>,
    // One past the last cluster of the file, or of the cluster that a reference half past the end
    // used.
    end: AtomicU64,
    geometry: Geometry,
    file_length: u64,
}

impl References {
    pub(crate) fn new(host_clusters: u64, geometry: Geometry, file_length: u64) -> Self {
        // The last cluster of a file may be cut short: a reference may reach one cluster further.
        let length = usize::try_from(host_clusters + 1).expect("limited");
        Self {
            counts: bytemuck::zeroed_slice_box(length),
            large: Mutex::default(),
            end: AtomicU64::new(host_clusters),
            geometry,
            file_length,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.counts.len() as u64
    }

    /// One past the last cluster that can have a count.
    pub(crate) fn end(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    /// The bytes of the counts from `start` on, for comparing many at once.
    pub(crate) fn small(&self, cluster: u64) -> u8 {
        self.counts
            .get(usize::try_from(cluster).expect("limited"))
            .map_or(0, |count| count.load(Ordering::Relaxed))
    }

    pub(crate) fn get(&self, cluster: u64) -> u64 {
        match self.small(cluster) {
            LARGE => {
                let large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
                u64::from(LARGE) + large.get(&cluster).copied().unwrap_or(0)
            }
            count => u64::from(count),
        }
    }

    /// Counts `times` uses of every cluster that `offset..offset + length` touches.
    pub(crate) fn add(&self, offset: u64, length: u64, times: u64, findings: &mut Findings) {
        if length == 0 || times == 0 {
            return;
        }
        let cluster_size = self.geometry.cluster_size();
        let past_end = offset
            .checked_add(length)
            .is_none_or(|end| end.saturating_sub(self.file_length) >= cluster_size);
        if past_end {
            findings.corruption(times, || {
                format!(
                    "ERROR: counting reference for region exceeding the end of the file by one \
                     cluster or more: offset {offset:#x} size {length:#x}"
                )
            });
            return;
        }
        let first = offset >> self.geometry.cluster_bits();
        let last = (offset + length - 1) >> self.geometry.cluster_bits();
        for cluster in first..=last {
            self.add_cluster(cluster, times, findings);
        }
    }

    fn add_cluster(&self, cluster: u64, times: u64, findings: &mut Findings) {
        let index = usize::try_from(cluster).expect("within the file");
        if self.end() <= cluster {
            self.end.fetch_max(cluster + 1, Ordering::Relaxed);
        }
        let max = self.geometry.refcount_max();
        // Nearly always: one more use of a cluster that few use.
        let small_max = max.min(u64::from(LARGE - 1));
        let one_more = |count: u8| (u64::from(count) < small_max).then(|| count + 1);
        let relaxed = Ordering::Relaxed;
        if times == 1 && self.counts[index].fetch_update(relaxed, relaxed, one_more).is_ok() {
            return;
        }
        // The side table changes only under its lock; the small count may still change beside us, so
        // it is exchanged, not stored.
        let mut large = self.large.lock().unwrap_or_else(PoisonError::into_inner);
        let aside = large.get(&cluster).copied().unwrap_or(0);
        let sum = |small: u8| u64::from(small).saturating_add(aside);
        let new = |small: u8| sum(small).saturating_add(times).min(max);
        let new_small = |small: u8| u8::try_from(new(small)).unwrap_or(LARGE);
        let before = self.counts[index].fetch_update(relaxed, relaxed, |s| Some(new_small(s)));
        let small = before.unwrap_or_else(|small| small);
        let (count, new) = (sum(small), new(small));
        if u64::from(LARGE) <= new {
            large.insert(cluster, new - u64::from(LARGE));
        }
        let lost = times - (new - count);
        findings.corruption(lost, || {
            let at = cluster << self.geometry.cluster_bits();
            format!("ERROR: overflow cluster offset={at:#x}")
        });
    }
}

#[cfg(test)]
mod tests {
    use cowl_format::Geometry;

    use super::References;
    use crate::check::report::Findings;

    fn references(order: u32) -> References {
        References::new(10, Geometry::new(16, order, false).unwrap(), 10 << 16)
    }

    #[test]
    fn counts_go_past_a_byte() {
        let references = references(4);
        let mut findings = Findings::default();
        for _ in 0..1000 {
            references.add(0x30000, 1, 1, &mut findings);
        }
        references.add(0x30000, 1, 500, &mut findings);
        assert_eq!(references.get(3), 1500);
        assert_eq!(references.get(2), 0);
        assert_eq!(findings.corruptions, 0);
    }

    #[test]
    fn threads_that_count_the_same_cluster_lose_nothing() {
        let references = references(4);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for step in 0..5000 {
                        let times = if step % 50 == 0 { 3 } else { 1 };
                        references.add(0x30000, 1, times, &mut Findings::default());
                    }
                });
            }
        });
        assert_eq!(references.get(3), 4 * (5000 + 2 * 100));
    }

    #[test]
    fn a_count_over_the_refcount_width_is_corruption() {
        let references = references(1);
        let mut findings = Findings::default();
        for _ in 0..5 {
            references.add(0x30000, 1, 1, &mut findings);
        }
        references.add(0x30000, 1, 7, &mut findings);
        assert_eq!(references.get(3), 3);
        assert_eq!(findings.corruptions, 2 + 7);
    }

    #[test]
    fn a_reference_may_end_less_than_a_cluster_past_the_file() {
        let references = References::new(2, Geometry::new(16, 4, false).unwrap(), 0x18000);
        let mut findings = Findings::default();
        references.add(0x10000, 0x10000, 1, &mut findings);
        assert_eq!((findings.corruptions, references.get(1), references.end()), (0, 1, 2));
        references.add(0x20000, 0x10000, 1, &mut findings);
        assert_eq!(findings.corruptions, 1);
        references.add(u64::MAX, 2, 1, &mut findings);
        assert_eq!(findings.corruptions, 2);
    }

    #[test]
    fn a_range_counts_every_cluster_it_touches() {
        let references = references(4);
        references.add(0x1ffff, 0x10002, 1, &mut Findings::default());
        let counts: Vec<u64> = (0..5).map(|cluster| references.get(cluster)).collect();
        assert_eq!(counts, [0, 1, 1, 1, 0]);
    }
}
