//! Scattered reads over 64 GiB, 8 MiB of L2 tables, with caches from tiny to ample.

use std::path::Path;
use std::time::Duration;

use cowl::{CacheLimits, Disk, OpenOptions};

use crate::fixtures::warm;
use crate::offsets::{BLOCK, Offsets};
use crate::readers::{BATCH, Clock};
use crate::scale::Bench;
use crate::scale::curve::{Bound, Curve, Limit, Plot, Unit};
use crate::scale::images::{GIB, KIB, MIB, size_text, tables_only, words};

const DISK_BYTES: u64 = 64 * GIB;

const CACHES: [u64; 7] = [64 * KIB, 256 * KIB, MIB, 4 * MIB, 8 * MIB, 16 * MIB, 32 * MIB];

/// Reads lie this far apart: a slice of an L2 table describes 32 MiB, so every slice is read, but
/// the file has few enough blocks that all stay in the page cache.
const STRIDE: u64 = 2 * MIB;

pub(crate) fn cache(bench: &Bench<'_>) -> Result<Plot, String> {
    let image = tables_only(&bench.folder, DISK_BYTES)?;
    warm(&image)?;
    let why = "More cache must never cost; it reads fewer tables.";
    let mut plot = Plot {
        title: "4K scattered reads over 64 GiB with 8 MiB of L2 tables, blocking calls",
        axis: "L2 cache",
        labels: CACHES.map(size_text).to_vec(),
        curves: vec![Curve::new(
            "cowl",
            Unit::PerSecond,
            Bound { limit: Limit::RatioMin(0.9), why },
        )],
    };
    // The blocks behind the tables come into the page cache.
    rate(&image, CACHES[CACHES.len() - 1], bench.options.sample)?;
    plot.measure(bench.options.repeat, &CACHES, |bytes| {
        Ok(vec![rate(&image, bytes, bench.options.sample)?])
    })?;
    Ok(plot)
}

fn rate(image: &Path, cache: u64, sample: Duration) -> Result<f64, String> {
    let l2_bytes = usize::try_from(cache).map_err(words)?;
    let cache = CacheLimits { l2_bytes, ..CacheLimits::STANDARD };
    let options = OpenOptions { cache, ..OpenOptions::local() };
    let disk = Disk::open(image, &options).map_err(words)?;
    let mut block = [0; BLOCK];
    // Multiples of a block of a smaller disk, spread over this one.
    let spread = STRIDE / BLOCK as u64;
    let mut offsets = Offsets::random(DISK_BYTES / spread, 1);
    let mut clock = Clock::start(sample);
    loop {
        for _ in 0..BATCH {
            disk.read_at(&mut block, offsets.next() * spread).map_err(words)?;
        }
        if !clock.tick(BATCH) {
            return Ok(clock.rate());
        }
    }
}
