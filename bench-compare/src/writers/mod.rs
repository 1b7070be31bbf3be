//! How each contender writes: a fixed number of writes to a fresh image, every one to a cluster of
//! its own, and a flush.

pub(crate) mod cowl;
pub(crate) mod imago;
pub(crate) mod qcow2_rs;
pub(crate) mod qemu;
pub(crate) mod raw;

use std::cell::Cell;
use std::path::PathBuf;
use std::time::Instant;

/// What every byte becomes: `qemu-img bench` has one byte for all.
pub(crate) const PATTERN: u8 = 0xa5;

/// When to flush. The time of each flush counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flush {
    AtEnd,
    AfterEach,
}

/// What to write, and how.
#[derive(Clone, Debug)]
pub(crate) struct Writing {
    pub(crate) image: PathBuf,
    /// Size of the disk.
    pub(crate) size: u64,
    /// Bytes of one write.
    pub(crate) block: usize,
    pub(crate) count: u64,
    /// Requests in flight.
    pub(crate) depth: u64,
    /// Where the first write goes.
    pub(crate) first: u64,
    /// Bytes from one write to the next, round the disk.
    pub(crate) step: u64,
    pub(crate) flush: Flush,
}

impl Writing {
    fn offset(&self, index: u64) -> u64 {
        (self.first + index * self.step) % self.size
    }

    pub(crate) fn offsets(&self) -> impl Iterator<Item = u64> + '_ {
        (0..self.count).map(|index| self.offset(index))
    }

    pub(crate) fn payload(&self) -> Vec<u8> {
        vec![PATTERN; self.block]
    }

    /// Writes in a second.
    pub(crate) fn rate(&self, start: Instant) -> f64 {
        self.count as f64 / start.elapsed().as_secs_f64()
    }
}

/// The offsets that are still to be written, for tasks of one thread.
pub(crate) struct Queue {
    writing: Writing,
    next: Cell<u64>,
}

impl Queue {
    pub(crate) fn new(writing: &Writing) -> Self {
        Self { writing: writing.clone(), next: Cell::new(0) }
    }

    pub(crate) fn next(&self) -> Option<u64> {
        let index = self.next.get();
        (index < self.writing.count).then(|| {
            self.next.set(index + 1);
            self.writing.offset(index)
        })
    }
}
