//! What was measured.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::BenchOptions;

/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// How long requests took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Latency {
    /// Half of them were as fast.
    pub p50: Duration,
    /// 90 % were.
    pub p90: Duration,
    /// 99 % were.
    pub p99: Duration,
    /// 99.9 % were.
    pub p999: Duration,
    /// The slowest.
    pub max: Duration,
}

/// The outcome of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchReport {
    /// How long it took.
    pub elapsed: Duration,
    /// Requests made, flushes not counted.
    pub requests: u64,
    /// Those that read.
    pub reads: u64,
    /// Those that wrote.
    pub writes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Bytes moved.
    pub bytes: u64,
    /// How long the requests took.
    pub latency: Latency,
}

impl BenchReport {
    /// Requests in a second.
    #[must_use]
    pub fn requests_per_second(&self) -> f64 {
        per_second(self.requests, self.elapsed)
    }

    /// Bytes in a second.
    #[must_use]
    pub fn bytes_per_second(&self) -> f64 {
        per_second(self.bytes, self.elapsed)
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(count: u64, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64().max(1e-9)
}

/// What one lane, or several together, measured.
pub(super) struct Lap {
    nanoseconds: Histogram<u64>,
    reads: u64,
    flushes: u64,
}

impl Lap {
    pub(super) fn new() -> Self {
        let nanoseconds = Histogram::new(DIGITS).expect("three digits are few enough");
        Self { nanoseconds, reads: 0, flushes: 0 }
    }

    pub(super) fn add(&mut self, took: Duration, reads: bool) {
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.saturating_record(nanoseconds);
        self.reads += u64::from(reads);
    }

    pub(super) fn add_flush(&mut self) {
        self.flushes += 1;
    }

    fn join(mut self, other: &Self) -> Self {
        self.nanoseconds.add(&other.nanoseconds).expect("it grows as needed");
        self.reads += other.reads;
        self.flushes += other.flushes;
        self
    }

    pub(super) fn into_report(self, options: &BenchOptions, elapsed: Duration) -> BenchReport {
        let at = |quantile| Duration::from_nanos(self.nanoseconds.value_at_quantile(quantile));
        let requests = self.nanoseconds.len();
        BenchReport {
            elapsed,
            requests,
            reads: self.reads,
            writes: requests - self.reads,
            flushes: self.flushes,
            bytes: requests * options.length,
            latency: Latency {
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: Duration::from_nanos(self.nanoseconds.max()),
            },
        }
    }
}

impl FromIterator<Lap> for Lap {
    fn from_iter<I: IntoIterator<Item = Lap>>(laps: I) -> Self {
        laps.into_iter().fold(Self::new(), |sum, lap| sum.join(&lap))
    }
}
