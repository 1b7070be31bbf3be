//! How often each host cluster is used, counted in parallel.
//!
//! One byte for each cluster, with the rare larger numbers aside. The bytes are touched only where
//! something is counted, so a sparse file costs little.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cowl_format::Geometry;
use rustc_hash::FxBuildHasher;

use crate::check::report::Findings;

/// From here on a count lives in the side table.
const LARGE: u8 = 255;

/// What does not fit in a byte for each cluster.
#[derive(Default)]
struct Aside {
    /// How much a count is over [`LARGE`].
    large: HashMap<u64, u64, FxBuildHasher>,
    /// How often a count would have gone over the refcount's width. Kept, and told at the end, so
    /// that the report does not depend on which table was scanned first.
    lost: HashMap<u64, u64, FxBuildHasher>,
}

/// Counts of all host clusters.
pub(crate) struct References {
    counts: Box<[AtomicU8]>,
    aside: Mutex<Aside>,
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
            aside: Mutex::default(),
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
            LARGE => u64::from(LARGE) + self.aside().large.get(&cluster).copied().unwrap_or(0),
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
            self.add_cluster(cluster, times);
        }
    }

    fn add_cluster(&self, cluster: u64, times: u64) {
        let small = &self.counts[usize::try_from(cluster).expect("within the file")];
        if self.end() <= cluster {
            self.end.fetch_max(cluster + 1, Ordering::Relaxed);
        }
        let max = self.geometry.refcount_max();
        // Nearly always: one more use of a cluster that few use. Never past the limit, not even for
        // a moment: somebody may be looking.
        let limit = u8::try_from(max).unwrap_or(LARGE).min(LARGE - 1);
        let bump = |count: u8| (count < limit).then(|| count + 1);
        if times == 1 && small.fetch_update(Ordering::Relaxed, Ordering::Relaxed, bump).is_ok() {
            return;
        }
        let mut aside = self.aside();
        let over = aside.large.get(&cluster).copied().unwrap_or(0);
        let add = |count: u8| (u64::from(count) + over).saturating_add(times).min(max);
        let new_small = |count| Some(u8::try_from(add(count)).unwrap_or(LARGE));
        let before = small
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, new_small)
            .expect("there is always a new value");
        let new = add(before);
        if u64::from(LARGE) <= new {
            aside.large.insert(cluster, new - u64::from(LARGE));
        }
        let lost = times - (new - (u64::from(before) + over));
        if 0 < lost {
            *aside.lost.entry(cluster).or_default() += lost;
        }
    }

    /// Reports the clusters with more uses than a refcount can say, in order.
    pub(crate) fn report_lost(&self, findings: &mut Findings) {
        let mut lost: Vec<(u64, u64)> = self.aside().lost.drain().collect();
        lost.sort_unstable();
        for (cluster, times) in lost {
            findings.corruption(times, || {
                let at = cluster << self.geometry.cluster_bits();
                format!("ERROR: overflow cluster offset={at:#x}")
            });
        }
    }

    fn aside(&self) -> MutexGuard<'_, Aside> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn a_count_over_the_refcount_width_is_corruption() {
        let references = references(1);
        let mut findings = Findings::default();
        for _ in 0..5 {
            references.add(0x30000, 1, 1, &mut findings);
        }
        references.add(0x30000, 1, 7, &mut findings);
        assert_eq!(references.get(3), 3);
        references.report_lost(&mut findings);
        assert_eq!(findings.corruptions, 2 + 7);
    }

    #[test]
    fn threads_that_count_at_once_lose_nothing() {
        for (order, uses) in [(1, 3_u64), (3, 255), (4, 4000)] {
            let references = references(order);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..500 {
                            references.add(0x30000, 1, 1, &mut Findings::default());
                            references.add(0x30000, 1, 1, &mut Findings::default());
                            references.add(0x20000, 1, 2, &mut Findings::default());
                        }
                    });
                }
            });
            let mut findings = Findings::default();
            references.report_lost(&mut findings);
            assert_eq!(references.get(3), uses, "order {order}");
            assert_eq!(references.get(2), uses, "order {order}");
            assert_eq!(findings.corruptions, 2 * (4000 - uses), "order {order}");
        }
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
