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

/// Memory for clusters and for the first bytes of clusters, in sizes of up to a cluster: who needs
/// a part of one takes, and keeps, little more than that.
pub(crate) struct ClusterSpares {
    /// Those of one step, of two, and so on; empty until there are some.
    by_steps: Mutex<Vec<Vec<Vec<u8>>>>,
    step: usize,
    cluster_len: usize,
    bytes_max: usize,
}

impl ClusterSpares {
    /// How many sizes there are where clusters have as many sectors.
    const SIZES: usize = 16;

    /// Keeps up to `bytes_max` bytes in whole clusters, and as much in all smaller sizes together.
    pub(crate) fn new(cluster_len: usize, bytes_max: usize) -> Self {
        const SECTOR: usize = 512;
        let step = (cluster_len / Self::SIZES).max(SECTOR);
        Self { by_steps: Mutex::default(), step, cluster_len, bytes_max }
    }

    /// At least `length` bytes of memory, at most a cluster as `length` is, with anything in it.
    pub(crate) fn take(&self, length: usize) -> Vec<u8> {
        let steps = length.div_ceil(self.step).max(1);
        let kept = self.lock().get_mut(steps - 1).and_then(Vec::pop);
        kept.unwrap_or_else(|| vec![0; steps * self.step])
    }

    /// Keeps `memory` if it has one of the sizes.
    pub(crate) fn give_back(&self, memory: Vec<u8>) {
        let length = memory.len();
        if length == 0 || self.cluster_len < length || !length.is_multiple_of(self.step) {
            return;
        }
        let sizes = self.cluster_len / self.step;
        let share =
            if length == self.cluster_len { self.bytes_max } else { self.bytes_max / sizes };
        let mut by_steps = self.lock();
        by_steps.resize_with(sizes, Vec::new);
        let kept = &mut by_steps[length / self.step - 1];
        if kept.len() < share / length {
            kept.push(memory);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Vec<Vec<u8>>>> {
        self.by_steps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::ClusterSpares;

    #[test]
    fn memory_of_each_size_comes_back() {
        for (cluster_len, step) in [(512, 512), (4096, 512), (1 << 16, 4096), (1 << 21, 1 << 17)] {
            let spares = ClusterSpares::new(cluster_len, 16 * cluster_len);
            for length in [1, step, cluster_len / 2 + 1, cluster_len - 1, cluster_len] {
                let mut memory = spares.take(length);
                let room = memory.len();
                assert!((length..length + step).contains(&room) && room <= cluster_len);
                memory.fill(7);
                spares.give_back(memory);
                assert_eq!(spares.take(length), vec![7; room]);
                assert_eq!(spares.take(length), vec![0; room]);
            }
        }
    }

    #[test]
    fn memory_of_other_sizes_and_too_much_of_it_is_not_kept() {
        let spares = ClusterSpares::new(1 << 16, 2 << 16);
        for length in [0, 1, 4095, 4097, (1 << 16) + 1, (1 << 16) + 4096] {
            spares.give_back(vec![7; length]);
        }
        for _ in 0..5 {
            spares.give_back(vec![7; 1 << 16]);
        }
        let first_bytes: Vec<_> = (0..4).map(|_| spares.take(1 << 16)[0]).collect();
        assert_eq!(first_bytes, [7, 7, 0, 0]);
        assert_eq!(spares.take(4096), vec![0; 4096]);
    }
}
