//! Contexts and buffers kept for the next cluster.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Things that are costly to make, as many as were ever in use at once and no more than a maximum.
pub(crate) struct Spares<T> {
    kept: Mutex<Vec<T>>,
    max: usize,
}

impl<T> Spares<T> {
    pub(crate) fn new(max: usize) -> Self {
        Self { kept: Mutex::default(), max }
    }

    pub(crate) fn take(&self) -> Option<T> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    pub(crate) fn give_back(&self, spare: T) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < self.max {
            kept.push(spare);
        }
    }
}

/// Memory for clusters and for the first bytes of clusters, in steps of a page: who needs a part of
/// one takes, and keeps, little more than that.
pub(crate) struct ClusterSpares {
    kept: Mutex<Kept>,
    step: usize,
    cluster_len: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct Kept {
    /// Those of one step, of two, and so on; empty until there are some.
    by_steps: Vec<Vec<Vec<u8>>>,
    /// Bytes of those that are smaller than a cluster.
    smaller_bytes: usize,
}

impl ClusterSpares {
    /// Keeps up to `bytes_max` bytes in whole clusters, and as much in all smaller sizes together.
    pub(crate) fn new(cluster_len: usize, bytes_max: usize) -> Self {
        const PAGE: usize = 4096;
        Self { kept: Mutex::default(), step: cluster_len.min(PAGE), cluster_len, bytes_max }
    }

    /// Memory for `length` bytes or more, at most a cluster as `length` is: with anything in it, or
    /// empty.
    pub(crate) fn take(&self, length: usize) -> Vec<u8> {
        let steps = length.div_ceil(self.step).max(1);
        let mut kept = self.lock();
        let Some(memory) = kept.by_steps.get_mut(steps - 1).and_then(Vec::pop) else {
            drop(kept);
            return Vec::with_capacity(steps * self.step);
        };
        if memory.len() < self.cluster_len {
            kept.smaller_bytes -= memory.len();
        }
        memory
    }

    /// Keeps `memory` if it is full and has one of the sizes.
    pub(crate) fn give_back(&self, memory: Vec<u8>) {
        let length = memory.len();
        if length == 0 || self.cluster_len < length || !length.is_multiple_of(self.step) {
            return;
        }
        let mut kept = self.lock();
        if kept.by_steps.is_empty() {
            kept.by_steps.resize_with(self.cluster_len / self.step, Vec::new);
        }
        let steps = length / self.step;
        if length < self.cluster_len {
            if self.bytes_max < kept.smaller_bytes + length {
                return;
            }
            kept.smaller_bytes += length;
        } else if self.bytes_max / length <= kept.by_steps[steps - 1].len() {
            return;
        }
        kept.by_steps[steps - 1].push(memory);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::ClusterSpares;

    const BYTES_MAX: usize = 4 << 20;

    #[test]
    fn memory_of_each_size_comes_back() {
        for (cluster_len, step) in [(512, 512), (4096, 4096), (1 << 16, 4096), (1 << 21, 4096)] {
            let spares = ClusterSpares::new(cluster_len, BYTES_MAX);
            for length in [1, step, cluster_len / 2 + 1, cluster_len - 1, cluster_len] {
                let mut memory = spares.take(length);
                let room = memory.capacity();
                assert!(memory.is_empty() && (length..length + step).contains(&room));
                memory.resize(room, 7);
                spares.give_back(memory);
                assert_eq!(spares.take(length), vec![7; room]);
                assert!(spares.take(length).is_empty());
            }
        }
    }

    #[test]
    fn memory_of_other_sizes_and_too_much_of_it_is_not_kept() {
        let spares = ClusterSpares::new(1 << 16, 2 << 16);
        for length in [0, 1, 4095, 4097, (1 << 16) + 1, (1 << 16) + 4096] {
            spares.give_back(vec![7; length]);
        }
        for length in [1 << 16, 1 << 15, 3 << 14] {
            for _ in 0..5 {
                spares.give_back(vec![7; length]);
            }
        }
        let mut count = |length| (0..6).filter(|_| !spares.take(length).is_empty()).count();
        assert_eq!([1 << 16, 1 << 15, 3 << 14, 4096].map(&mut count), [2, 4, 0, 0]);
        // What was taken makes room.
        spares.give_back(vec![7; 3 << 14]);
        assert_eq!(spares.take(3 << 14).len(), 3 << 14);
    }
}
