//! What clients did with an export, counted without a line of memory that all threads write.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam_utils::CachePadded;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Zero,
    Discard,
    Flush,
}

impl Kind {
    pub(crate) const ALL: [Self; 5] =
        [Self::Read, Self::Write, Self::Zero, Self::Discard, Self::Flush];

    /// Its name in reports.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Discard => "discard",
            Self::Flush => "flush",
        }
    }
}

/// Counts of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Requests that ended, well or not.
    pub(crate) requests: u64,
    /// Bytes of those that ended well.
    pub(crate) bytes: u64,
    /// Requests that failed.
    pub(crate) failed: u64,
}

/// Threads that count apart from each other; more of them share.
const SHARDS: usize = 8;

/// The counts of an export.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    shards: [CachePadded<Shard>; SHARDS],
}

#[derive(Debug, Default)]
struct Shard {
    kinds: [Cells; Kind::ALL.len()],
}

#[derive(Debug, Default)]
struct Cells {
    requests: AtomicU64,
    bytes: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    pub(crate) fn add(&self, kind: Kind, bytes: u64, is_ok: bool) {
        let cells = &self.shards[own_shard()].kinds[kind as usize];
        cells.requests.fetch_add(1, Ordering::Relaxed);
        match is_ok {
            true => cells.bytes.fetch_add(bytes, Ordering::Relaxed),
            false => cells.failed.fetch_add(1, Ordering::Relaxed),
        };
    }

    pub(crate) fn sum(&self, kind: Kind) -> Count {
        let mut sum = Count::default();
        for shard in &self.shards {
            let cells = &shard.kinds[kind as usize];
            sum.requests += cells.requests.load(Ordering::Relaxed);
            sum.bytes += cells.bytes.load(Ordering::Relaxed);
            sum.failed += cells.failed.load(Ordering::Relaxed);
        }
        sum
    }
}

/// The shard of the calling thread.
fn own_shard() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: Cell<Option<usize>> = const { Cell::new(None) };
    }
    OWN.with(|own| {
        own.get().unwrap_or_else(|| {
            let shard = NEXT.fetch_add(1, Ordering::Relaxed) % SHARDS;
            own.set(Some(shard));
            shard
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{Count, Counters, Kind};

    #[test]
    fn the_counts_of_all_threads_are_added_up() {
        let counters = Counters::default();
        std::thread::scope(|scope| {
            for _ in 0..20 {
                scope.spawn(|| counters.add(Kind::Write, 512, true));
            }
        });
        counters.add(Kind::Write, 512, false);
        let expected = Count { requests: 21, bytes: 20 * 512, failed: 1 };
        assert_eq!(counters.sum(Kind::Write), expected);
        assert_eq!(counters.sum(Kind::Read), Count::default());
    }
}
