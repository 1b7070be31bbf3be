//! Sparse disks from 1 GiB to 64 TiB: opening, the first read, and reads of nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use cowl::{Disk, OpenOptions};

use crate::fixtures::warm;
use crate::offsets::{BLOCK, Offsets};
use crate::readers::{BATCH, Clock};
use crate::scale::Bench;
use crate::scale::curve::{Bound, Curve, Limit, Plot, Unit};
use crate::scale::images::{CLUSTER, GIB, TIB, size_text, sparse, to_write, words};
use crate::scale::opening::{self, Errand};

pub(crate) const SIZES: [u64; 6] = [GIB, 16 * GIB, 256 * GIB, TIB, 16 * TIB, 64 * TIB];

pub(crate) fn size(bench: &Bench<'_>) -> Result<Plot, String> {
    for size in SIZES {
        warm(&sparse(&bench.folder, size)?)?;
    }
    let memory = Bound {
        limit: Limit::RatioMax(1.5),
        why: "Pages of the L1 table (1 MiB at 64 TiB) that name nothing must not count.",
    };
    let mut plot = Plot {
        title: "Sparse disks, one cluster of data at the end, all in the page cache",
        axis: "size",
        labels: SIZES.map(size_text).to_vec(),
        curves: vec![
            Curve::flat(
                "open",
                1.5,
                "Opening reads the header and what the L1 table holds, not its holes.",
            ),
            Curve::flat("open to write", 1.5, "The same, with the refcount table."),
            Curve::flat("first read", 1.5, "One slice of one L2 table, and the data."),
            Curve::flat("read of a hole", 1.5, "A look at the L1 table in memory."),
            Curve::new("memory after opening", Unit::Mebibytes, memory),
        ],
    };
    plot.measure(bench.options.repeat, &SIZES, |size| {
        let path = sparse(&bench.folder, size)?;
        Ok(vec![
            opening::time(&path, &OpenOptions::local())?,
            opening::time(&path, &to_write())?,
            first_read(&path, size)?,
            read_of_hole(&path, size, bench.options.sample / 2)?,
            opening::in_child(Errand::Open, &path)?[0],
        ])
    })?;
    Ok(plot)
}

/// Microseconds of the first read after opening, of the data at the end.
fn first_read(path: &Path, size: u64) -> Result<f64, String> {
    const TIMES: usize = 15;
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let disk = Disk::open(path, &OpenOptions::local()).map_err(words)?;
        let mut block = [0; BLOCK];
        let start = Instant::now();
        disk.read_at(&mut block, size - CLUSTER).map_err(words)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        assert_eq!(block[0], 0xA5);
    }
    Ok(crate::measure::median(&times))
}

/// Microseconds of a random read where the disk has nothing.
fn read_of_hole(path: &Path, size: u64, sample: Duration) -> Result<f64, String> {
    let disk = Disk::open(path, &OpenOptions::local()).map_err(words)?;
    time_of_read(&disk, &mut Offsets::random(size - CLUSTER, 1), 0, sample)
}

/// Microseconds of a read at `start` plus the next of `offsets`, one after the other.
pub(crate) fn time_of_read(
    disk: &Disk,
    offsets: &mut Offsets,
    start: u64,
    sample: Duration,
) -> Result<f64, String> {
    let mut block = [0; BLOCK];
    let mut clock = Clock::start(sample);
    loop {
        for _ in 0..BATCH {
            disk.read_at(&mut block, start + offsets.next()).map_err(words)?;
        }
        if !clock.tick(BATCH) {
            return Ok(1e6 / clock.rate());
        }
    }
}
