//! What was measured.

use std::time::Duration;

use hdrhistogram::Histogram;

use super::BenchOptions;

/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// A latency above it counts as this much (73 minutes); it bounds the histogram.
const NANOSECONDS_MAX: u64 = 1 << 42;

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
        self.nanoseconds.record(nanoseconds.min(NANOSECONDS_MAX)).expect("it grows as needed");
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

#[cfg(test)]
mod tests {
    use super::{Lap, NANOSECONDS_MAX};
    use crate::bench::tests::OPTIONS;
    use std::time::Duration;

    #[test]
    fn percentiles_are_those_of_all_lanes_together() {
        let lap = |milliseconds: std::ops::Range<u64>| {
            let mut lap = Lap::new();
            milliseconds.for_each(|took| lap.add(Duration::from_millis(took), true));
            lap
        };
        let all: Lap = [lap(1..501), lap(501..1001)].into_iter().collect();
        let report = all.into_report(&OPTIONS, Duration::from_secs(2));
        assert_eq!((report.requests, report.reads, report.writes), (1000, 1000, 0));
        let milliseconds = |took: Duration| took.as_millis();
        assert!((499..=501).contains(&milliseconds(report.latency.p50)));
        assert!((989..=991).contains(&milliseconds(report.latency.p99)));
        assert!((1000..=1001).contains(&milliseconds(report.latency.max)));
        assert!((report.requests_per_second() - 500.0).abs() < 1e-6);
    }

    #[test]
    fn a_latency_without_end_is_kept_as_the_largest() {
        let mut lap = Lap::new();
        lap.add(Duration::MAX, false);
        let max = lap.into_report(&OPTIONS, Duration::from_secs(1)).latency.max;
        assert!(u128::from(NANOSECONDS_MAX) <= max.as_nanos());
    }
}
