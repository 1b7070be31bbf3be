//! How each contender reads.

pub(crate) mod cowl;
pub(crate) mod imago;
pub(crate) mod library;
pub(crate) mod qcow2_rs;
pub(crate) mod qemu;
pub(crate) mod raw;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::offsets::{BLOCK, Offsets};
use crate::sys::Usage;

/// Which order of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Random; `qemu-img bench`, which cannot, walks by a large step.
    Random,
    /// By the same large step for everybody.
    Walk,
    /// One after the other.
    Sequential,
}

/// What to read, and how.
#[derive(Clone, Debug)]
pub(crate) struct Reading {
    pub(crate) image: PathBuf,
    /// Size of the disk.
    pub(crate) size: u64,
    pub(crate) order: Order,
    /// Requests in flight, of each thread.
    pub(crate) depth: u64,
    pub(crate) threads: u64,
    pub(crate) direct: bool,
    pub(crate) sample: Duration,
}

impl Reading {
    /// The offsets of a thread's requests.
    pub(crate) fn offsets(&self, thread: u64) -> Offsets {
        match self.order {
            Order::Random => Offsets::random(self.size, thread + 1),
            Order::Walk | Order::Sequential => Offsets::stepped(self.size, self.step()),
        }
    }

    pub(crate) fn step(&self) -> u64 {
        match self.order {
            Order::Sequential => BLOCK as u64,
            Order::Walk | Order::Random => walk_step(self.size),
        }
    }
}

/// The step of `qemu-img bench`: near the golden section of the size, so that it touches clusters
/// in a scattered order. It takes no step of 2 GiB or more.
pub(crate) fn walk_step(size: u64) -> u64 {
    const STEP_MAX: u64 = 1 << 31;
    // An odd number of blocks: with a size of a power of two it comes to all of them.
    (size.min(STEP_MAX) as f64 * 0.618) as u64 / 8192 * 8192 + BLOCK as u64
}

/// Counts operations for the length of a sample, after a warm-up of a third of it.
pub(crate) struct Clock {
    warm_until: Instant,
    until: Instant,
    started: Option<(Instant, Duration)>,
    count: u64,
}

impl Clock {
    pub(crate) fn start(sample: Duration) -> Self {
        let warm_until = Instant::now() + sample / 3;
        Self { warm_until, until: warm_until + sample, started: None, count: 0 }
    }

    /// Counts `operations`; whether to go on. Looks at the time: call it once for many operations.
    pub(crate) fn tick(&mut self, operations: u64) -> bool {
        let now = Instant::now();
        match self.started {
            None if self.warm_until <= now => self.started = Some((now, Usage::own().cpu)),
            None => {}
            Some(_) => self.count += operations,
        }
        now < self.until
    }

    /// Operations in a second.
    pub(crate) fn rate(&self) -> f64 {
        match self.started {
            Some((start, _)) => self.count as f64 / start.elapsed().as_secs_f64(),
            None => 0.0,
        }
    }

    /// Operations in a second, and microseconds of processor time for each.
    pub(crate) fn rate_and_cpu(&self) -> Vec<f64> {
        let cpu = match self.started {
            Some((_, before)) => (Usage::own().cpu - before).as_secs_f64() * 1e6,
            None => 0.0,
        };
        vec![self.rate(), cpu / self.count.max(1) as f64]
    }
}

/// Operations between two looks at the clock.
pub(crate) const BATCH: u64 = 64;

/// Runs `work` on each thread and adds up what they reached.
pub(crate) fn on_threads(
    threads: u64,
    work: impl Fn(u64) -> Result<f64, String> + Sync,
) -> Result<f64, String> {
    std::thread::scope(|scope| {
        let work = &work;
        let all: Vec<_> = (0..threads).map(|thread| scope.spawn(move || work(thread))).collect();
        all.into_iter().map(|thread| thread.join().map_err(|_| "it panicked".to_owned())?).sum()
    })
}
