//! `bench`: how many requests a disk answers in a second, and how long each takes.
//!
//! Requests run side by side on one ring for each thread, or on plain threads. One lane is one
//! place in the queue: it makes a request, waits for it, and makes the next.
//!
//! Not here: any text.

mod lane;
mod report;
mod schedule;

pub use report::{BenchReport, Latency};
pub use schedule::{BenchOrder, BenchWork};

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use cowl::{BlockDevice, BlockError, Error, Format, OpenOptions, Rings, StorageError};
use cowl_storage::{UringStorage, ring_runtime};
use futures_util::future::join_all;
use pollster::block_on;

use crate::host::{Disk, open_disk};
use lane::{Course, lane};
use report::Lap;

/// Lanes of the plain driver are threads, which cost memory.
pub const BENCH_THREADS_MAX: u32 = 1024;

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// Requests to make at most; `None` makes them until the time is over.
    pub count: Option<u64>,
    /// How long to make requests at most.
    pub duration: Option<Duration>,
    /// Threads that make requests.
    pub threads: u32,
    /// Requests that each thread has in flight.
    pub depth: u32,
    /// Bytes of a request.
    pub length: u64,
    /// Which bytes.
    pub order: BenchOrder,
    /// What happens to them.
    pub work: BenchWork,
    /// The byte that is written.
    pub pattern: u8,
    /// Whether each write is durable by itself.
    pub write_through: bool,
    /// Flushes between the requests.
    pub flush: Option<BenchFlush>,
}

/// A flush now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchFlush {
    /// After so many requests, at least 1.
    pub every: u64,
    /// Whether requests that were started before it end first.
    pub drain: bool,
}

/// How requests reach the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchDriver {
    /// One request at a time for each thread, with plain system calls; more depth is more threads.
    Threads,
    /// One ring for each thread.
    Ring,
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A request failed.
    #[error(transparent)]
    Request(BlockError),
    /// A request reaches past the end of the disk.
    #[error("a request reaches past the end of the disk")]
    PastEnd,
    /// The host has no thread or no ring to give.
    #[error("could not start a thread: {0}")]
    Start(io::Error),
}

/// A disk to be measured.
pub struct BenchTarget {
    disk: Driven,
}

enum Driven {
    Threads(Disk),
    Ring(cowl::Disk<UringStorage>),
}

impl BenchTarget {
    /// Opens the disk at `path`. Where the host has no rings the plain driver is taken.
    ///
    /// # Errors
    /// When the disk cannot be opened.
    pub fn open(path: &Path, options: &OpenOptions, driver: BenchDriver) -> Result<Self, Error> {
        let runtime = match driver {
            // An export has no descriptor that a ring could use.
            _ if cowl::remote_uri(path).is_some() => None,
            BenchDriver::Threads => None,
            BenchDriver::Ring => ring_runtime().ok(),
        };
        let disk = match runtime {
            None => Driven::Threads(open_disk(path, options)?),
            Some(runtime) => {
                Driven::Ring(runtime.block_on(cowl::Disk::open_with(&Rings, path, options))?)
            }
        };
        Ok(Self { disk })
    }

    /// The driver that is used.
    #[must_use]
    pub fn driver(&self) -> BenchDriver {
        match self.disk {
            Driven::Threads(_) => BenchDriver::Threads,
            Driven::Ring(_) => BenchDriver::Ring,
        }
    }

    /// The format of the disk.
    #[must_use]
    pub fn format(&self) -> Format {
        match &self.disk {
            Driven::Threads(disk) => disk.format(),
            Driven::Ring(disk) => disk.format(),
        }
    }

    /// Makes the requests. Returns when all have ended.
    ///
    /// # Errors
    /// With the first request that failed.
    ///
    /// # Panics
    /// When the numbers of threads or lanes are zero, or no end is given.
    pub fn run(&self, options: &BenchOptions) -> Result<BenchReport, BenchError> {
        assert!(0 < options.threads);
        assert!(0 < options.depth);
        assert!(options.count.is_some() || options.duration.is_some());
        let start = Instant::now();
        let lap = match &self.disk {
            Driven::Threads(disk) => on_threads(disk, options, start),
            Driven::Ring(disk) => on_rings(disk, options, start),
        }?;
        Ok(lap.into_report(options, start.elapsed()))
    }

    /// Closes the disk; everything written is durable then.
    ///
    /// # Errors
    /// When that fails.
    pub fn close(self) -> Result<(), Error> {
        match self.disk {
            Driven::Threads(disk) => disk.close(),
            Driven::Ring(disk) => {
                let runtime = ring_runtime().map_err(ring_lost)?;
                Ok(runtime.block_on(disk.shut())?)
            }
        }
    }
}

/// The host gave a ring before, but no second one.
fn ring_lost(source: io::Error) -> Error {
    let operation = cowl_storage::Operation::Barrier;
    StorageError::new(Path::new("io_uring"), operation, None, None, source).into()
}

fn on_threads(disk: &Disk, options: &BenchOptions, start: Instant) -> Result<Lap, BenchError> {
    let course = Course::new(BlockDevice::size(disk), options, start);
    let lanes = lanes_in_use(options, u64::from(options.threads) * u64::from(options.depth));
    on_each_thread(lanes, || Ok(block_on(lane(disk, &course))))
}

fn on_rings(
    disk: &cowl::Disk<UringStorage>,
    options: &BenchOptions,
    start: Instant,
) -> Result<Lap, BenchError> {
    let course = Course::new(BlockDevice::size(disk), options, start);
    let depth = lanes_in_use(options, options.depth.into());
    on_each_thread(options.threads.into(), || {
        let runtime = ring_runtime().map_err(BenchError::Start)?;
        let lanes = (0..depth).map(|_| lane(disk, &course));
        Ok(runtime.block_on(join_all(lanes)).into_iter().collect::<Result<Lap, _>>())
    })
}

/// More lanes than requests would only stand there.
fn lanes_in_use(options: &BenchOptions, lanes: u64) -> u64 {
    options.count.map_or(lanes, |count| count.clamp(1, lanes))
}

/// Runs `work` on so many threads and adds up what they measured.
fn on_each_thread(
    threads: u64,
    work: impl Fn() -> Result<Result<Lap, BenchError>, BenchError> + Sync,
) -> Result<Lap, BenchError> {
    std::thread::scope(|scope| {
        let start = |_| {
            std::thread::Builder::new()
                .name("cowl-bench".to_owned())
                .spawn_scoped(scope, || work().flatten())
                .map_err(BenchError::Start)
        };
        let started: Vec<_> = (0..threads).map(start).collect();
        let laps = started
            .into_iter()
            .map(|thread| thread?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        laps.collect::<Result<Lap, BenchError>>()
    })
}

#[cfg(test)]
mod tests {
    use super::{
        BenchDriver, BenchError, BenchFlush, BenchOptions, BenchOrder, BenchTarget, BenchWork,
    };
    use cowl::{Access, OpenOptions};
    use std::time::Duration;

    pub(super) const OPTIONS: BenchOptions = BenchOptions {
        count: Some(500),
        duration: None,
        threads: 2,
        depth: 4,
        length: 4096,
        order: BenchOrder::Sequential { offset: 0, step: 4096 },
        work: BenchWork::Read,
        pattern: 0,
        write_through: false,
        flush: None,
    };

    fn target(driver: BenchDriver, access: Access) -> (tempfile::TempDir, BenchTarget) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        let format = Some(cowl::Format::Raw);
        let options = OpenOptions { access, format, ..OpenOptions::local() };
        let target = BenchTarget::open(&path, &options, driver).unwrap();
        (folder, target)
    }

    #[test]
    fn every_request_is_counted_once_whatever_the_driver() {
        for driver in [BenchDriver::Threads, BenchDriver::Ring] {
            let (_folder, target) = target(driver, Access::ReadOnly);
            let report = target.run(&OPTIONS).unwrap();
            assert_eq!((report.requests, report.reads, report.writes), (500, 500, 0));
            assert_eq!(report.bytes, 500 * 4096);
            assert!(report.latency.p50 <= report.latency.p999);
            assert!(report.latency.p999 <= report.latency.max);
        }
    }

    #[test]
    fn flushes_come_after_their_number_of_requests_and_do_not_hang() {
        for driver in [BenchDriver::Threads, BenchDriver::Ring] {
            for drain in [true, false] {
                let (folder, target) = target(driver, Access::ReadWrite);
                let flush = Some(BenchFlush { every: 50, drain });
                let options = BenchOptions { work: BenchWork::Write, pattern: 7, flush, ..OPTIONS };
                let report = target.run(&options).unwrap();
                assert_eq!((report.writes, report.flushes), (500, 10));
                target.close().unwrap();
                let bytes = std::fs::read(folder.path().join("disk")).unwrap();
                assert!(bytes[..255 * 4096].iter().all(|&byte| byte == 7));
            }
        }
    }

    #[test]
    fn a_mix_has_both_and_a_seed_repeats_it() {
        let (_folder, target) = target(BenchDriver::Ring, Access::ReadWrite);
        let mixed = BenchOptions {
            order: BenchOrder::Random { seed: 9 },
            work: BenchWork::Mixed { read_percent: 70, seed: 9 },
            ..OPTIONS
        };
        let reads = [target.run(&mixed).unwrap().reads, target.run(&mixed).unwrap().reads];
        assert_eq!(reads[0], reads[1]);
        assert!(250 < reads[0]);
        assert!(reads[0] < 450);
    }

    #[test]
    fn time_ends_a_run_without_a_count() {
        let (_folder, target) = target(BenchDriver::Threads, Access::ReadOnly);
        let duration = Some(Duration::from_millis(50));
        let report = target.run(&BenchOptions { count: None, duration, ..OPTIONS }).unwrap();
        assert!(0 < report.requests);
        assert!(Duration::from_millis(50) <= report.elapsed);
    }

    #[test]
    fn a_request_past_the_end_ends_the_run() {
        for driver in [BenchDriver::Threads, BenchDriver::Ring] {
            let (_folder, target) = target(driver, Access::ReadOnly);
            let order = BenchOrder::Sequential { offset: 2 << 20, step: 4096 };
            let failed = target.run(&BenchOptions { order, ..OPTIONS });
            assert!(matches!(failed, Err(BenchError::PastEnd)));
        }
    }
}
