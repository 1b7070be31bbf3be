//! What the guest does: requests of every kind, drawn from a seed.
//!
//! Each history has its own weights (a swarm), so that some are all discards and flushes and others
//! never flush; and its own few hot spots, so that tasks meet.

use std::collections::{BTreeMap, BTreeSet};

use cowl_qcow2::Preallocation;

use crate::stamp::Texture;
use crate::subject::Traits;
use crate::{Extent, Random};

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "`at` and `length` are bytes, `number` is for replays")]
pub enum Operation {
    /// Writes stamps.
    Write { at: u64, length: u64, texture: Texture },
    /// Writes stamps, durably.
    WriteThrough { at: u64, length: u64, texture: Texture },
    /// Writes whole clusters, compressed.
    WriteCompressed { at: u64, length: u64, texture: Texture },
    /// Writes zeros.
    Zero { at: u64, length: u64, unmap: bool },
    /// Gives a range up.
    Discard { at: u64, length: u64 },
    /// Reads and compares.
    Read { at: u64, length: u64 },
    /// Makes all before it durable.
    Flush,
    /// Changes the size beside other requests; a larger disk may get its space at once.
    Resize { size: u64, preallocation: Preallocation },
}

/// A request and its number in the history, by which a replay leaves it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Unique in the history; the number in its stamps.
    pub number: u32,
    /// What it does.
    pub operation: Operation,
    /// It is dropped after so many polls.
    pub drop_after: Option<u32>,
}

/// What happens next.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "`at` and `length` are bytes, `number` is for replays")]
pub enum Act {
    /// One task, during which no power cut is looked at: what comes before the matter.
    Setup(Vec<Request>),
    /// Tasks side by side; each sends one request after the other.
    Tasks(Vec<Vec<Request>>),
    /// The disk changes its size, alone.
    Resize { number: u32, size: u64 },
    /// The image is closed and opened again.
    Reopen { number: u32 },
}

/// A whole workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// In order.
    pub acts: Vec<Act>,
}

impl Workload {
    /// Draws one for a disk of `size` bytes.
    #[must_use]
    pub fn draw(seed: u64, traits: &Traits, size: u64, extent: Extent) -> Self {
        let random = Random::of(seed, "workload");
        let mut draw = Draw::new(random, *traits, size, extent);
        let act_count = if extent == Extent::Tiny { 1 } else { 1 + draw.random.below(6) };
        let mut acts = Vec::new();
        for _ in 0..act_count {
            acts.push(draw.tasks());
            match draw.random.below(6) {
                0 if traits.resizes && extent == Extent::Full => acts.push(draw.resize()),
                1 if extent == Extent::Full => acts.push(Act::Reopen { number: draw.number() }),
                _ => {}
            }
        }
        if traits.resizes && !traits.size_is_file_length && extent == Extent::Full {
            add_resizes(&mut acts, seed, size, traits.cluster);
        }
        Self { acts }
    }

    /// The numbers of everything in it that can be left out.
    #[must_use]
    pub fn numbers(&self) -> BTreeSet<u32> {
        let numbers = self.acts.iter().flat_map(|act| match act {
            Act::Setup(_) => Vec::new(),
            Act::Tasks(tasks) => tasks.iter().flatten().map(|request| request.number).collect(),
            Act::Resize { number, .. } | Act::Reopen { number } => vec![*number],
        });
        numbers.collect()
    }

    /// The same with these requests dropped after so many polls.
    #[must_use]
    pub fn with_drops(mut self, drops: &BTreeMap<u32, u32>) -> Self {
        for act in &mut self.acts {
            let Act::Tasks(tasks) = act else { continue };
            for request in tasks.iter_mut().flatten() {
                request.drop_after = drops.get(&request.number).copied().or(request.drop_after);
            }
        }
        self
    }

    /// The same without some of it.
    #[must_use]
    pub fn without(mut self, numbers: &BTreeSet<u32>) -> Self {
        for act in &mut self.acts {
            if let Act::Tasks(tasks) = act {
                tasks.iter_mut().for_each(|task| task.retain(|r| !numbers.contains(&r.number)));
                tasks.retain(|task| !task.is_empty());
            }
        }
        self.acts.retain(|act| match act {
            Act::Setup(_) => true,
            Act::Tasks(tasks) => !tasks.is_empty(),
            Act::Resize { number, .. } | Act::Reopen { number } => !numbers.contains(number),
        });
        self
    }
}

/// Gives some tasks of some histories a task beside them that changes the size. Drawn apart, so
/// that what older seeds draw stays the same.
fn add_resizes(acts: &mut [Act], seed: u64, size: u64, cluster: u64) {
    /// Numbers of no other requests.
    const FIRST: u32 = 100_000;
    let mut random = Random::of(seed, "size changes");
    if !random.chance(25) {
        return;
    }
    let mut number = FIRST;
    for act in acts {
        let Act::Tasks(tasks) = act else { continue };
        let count = random.below(4);
        let resizes = (0..count).map(|_| {
            let how = [Preallocation::Off, Preallocation::Metadata, Preallocation::Falloc];
            let wanted = size / 4 * random.pick(&[1, 2, 3, 4, 6]) + random.below(2 * cluster);
            let operation = Operation::Resize {
                size: wanted / 512 * 512 + 512,
                preallocation: random.pick(&how),
            };
            let drops = random.chance(30);
            let drop_after = drops.then(|| u32::try_from(1 + random.below(30)).expect("small"));
            number += 1;
            Request { number, operation, drop_after }
        });
        let task: Vec<Request> = resizes.collect();
        if !task.is_empty() {
            tasks.push(task);
        }
    }
}

struct Draw {
    random: Random,
    traits: Traits,
    /// The largest size the disk has had: requests past the end are cut to fit when they are run.
    size: u64,
    weights: [u64; 7],
    drop_percent: u64,
    unaligned_percent: u64,
    hot: Vec<u64>,
    hot_percent: u64,
    extent: Extent,
    next: u32,
}

impl Draw {
    fn new(mut random: Random, traits: Traits, size: u64, extent: Extent) -> Self {
        let mut weights = [0; 7];
        for weight in &mut weights {
            *weight = random.pick(&[0, 1, 4, 15]);
        }
        weights[0] += 4;
        if !traits.compresses {
            weights[2] = 0;
        }
        let cluster_count = size.div_ceil(traits.cluster);
        let hot_count = 1 + random.below(4);
        Self {
            weights,
            drop_percent: random.pick(&[0, 0, 3, 20]),
            unaligned_percent: random.pick(&[0, 30, 80]),
            hot: (0..hot_count).map(|_| random.below(cluster_count) * traits.cluster).collect(),
            hot_percent: random.pick(&[0, 50, 95]),
            random,
            traits,
            size,
            extent,
            next: 1,
        }
    }

    fn number(&mut self) -> u32 {
        self.next += 1;
        self.next - 1
    }

    fn tasks(&mut self) -> Act {
        let (task_max, request_max) = match self.extent {
            Extent::Full => (6, 14),
            Extent::Tiny => (2, 3),
        };
        let count = 1 + self.random.below(task_max);
        let tasks = (0..count).map(|_| {
            let length = 1 + self.random.below(request_max);
            (0..length).map(|_| self.request()).collect()
        });
        Act::Tasks(tasks.collect())
    }

    fn resize(&mut self) -> Act {
        let cluster = self.traits.cluster;
        let unit = self.traits.alignment.max(512);
        let size = match self.random.below(3) {
            0 => self.size + (1 + self.random.below(40)) * cluster,
            1 => self.size + (1 + self.random.below(5)) * unit,
            _ => (self.size / 2).next_multiple_of(unit) + self.random.below(4) * unit,
        };
        self.size = size;
        Act::Resize { number: self.number(), size }
    }

    fn request(&mut self) -> Request {
        let texture = self.random.pick(&[Texture::Plain, Texture::Plain, Texture::Noise]);
        let operation = match self.random.weighted(&self.weights) {
            0 => self.ranged(|at, length| Operation::Write { at, length, texture }),
            1 => self.ranged(|at, length| Operation::WriteThrough { at, length, texture }),
            2 => self.clusters(|at, length| Operation::WriteCompressed { at, length, texture }),
            3 => {
                let unmap = self.random.chance(50);
                self.ranged_or_clusters(|at, length| Operation::Zero { at, length, unmap })
            }
            4 => self.ranged_or_clusters(|at, length| Operation::Discard { at, length }),
            5 => self.ranged(|at, length| Operation::Read { at, length }),
            _ => Operation::Flush,
        };
        let drops = self.random.chance(self.drop_percent);
        let drop_after = drops.then(|| u32::try_from(1 + self.random.below(12)).expect("small"));
        Request { number: self.number(), operation, drop_after }
    }

    /// Where requests go: near a hot spot or anywhere.
    fn place(&mut self) -> u64 {
        if self.random.chance(self.hot_percent) {
            let near = self.random.below(2 * self.traits.cluster);
            return self.random.pick(&self.hot) + near;
        }
        self.random.below(self.size)
    }

    fn ranged(&mut self, make: impl Fn(u64, u64) -> Operation) -> Operation {
        let cluster = self.traits.cluster;
        let length = match self.random.below(5) {
            0 => 1 + self.random.below(512),
            1 => 512 * (1 + self.random.below(8)),
            2 => 4096,
            3 => cluster,
            _ => 1 + self.random.below(3 * cluster),
        };
        let at = self.place();
        let unit = match self.random.chance(self.unaligned_percent) {
            true => self.traits.alignment,
            false => self.traits.alignment.max(512),
        };
        self.fit(at / unit * unit, length.next_multiple_of(unit), unit, make)
    }

    fn clusters(&mut self, make: impl Fn(u64, u64) -> Operation) -> Operation {
        let cluster = self.traits.cluster.max(self.traits.alignment);
        let at = self.place() / cluster * cluster;
        let length = cluster * (1 + self.random.below(3));
        self.fit(at, length, cluster, make)
    }

    fn ranged_or_clusters(&mut self, make: impl Fn(u64, u64) -> Operation) -> Operation {
        match self.random.chance(60) {
            true => self.clusters(make),
            false => self.ranged(make),
        }
    }

    /// Keeps a range on the disk.
    fn fit(
        &self,
        at: u64,
        length: u64,
        unit: u64,
        make: impl Fn(u64, u64) -> Operation,
    ) -> Operation {
        let last = (self.size.saturating_sub(1)) / unit * unit;
        let at = at.min(last);
        make(at, length.min(self.size - at).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::Workload;
    use crate::Extent;
    use crate::subject::Traits;

    const TRAITS: Traits = Traits {
        alignment: 1,
        cluster: 4096,
        discard_unit: 4096,
        compresses: true,
        resizes: true,
        size_is_file_length: false,
    };

    #[test]
    fn every_request_has_its_own_number_and_lies_on_some_disk() {
        for seed in 0..50 {
            let workload = Workload::draw(seed, &TRAITS, 100_000, Extent::Full);
            assert_eq!(workload, Workload::draw(seed, &TRAITS, 100_000, Extent::Full));
            let numbers = workload.numbers();
            assert_eq!(workload.clone().without(&numbers).acts, []);
        }
    }
}
