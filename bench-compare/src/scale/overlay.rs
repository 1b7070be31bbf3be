//! Making an overlay over a sparse disk: until it is there, and until a power cut cannot take it.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use cowl::Preallocation;
use cowl_storage::Durability;

use crate::measure::median;
use crate::scale::Bench;
use crate::scale::curve::{Bound, Curve, Limit, Plot, Unit};
use crate::scale::images::{create, overlay_options, size_text, sparse, words};
use crate::scale::size::SIZES;

/// Overlays of one sample.
const TIMES: usize = 9;

pub(crate) fn overlay(bench: &Bench<'_>) -> Result<Plot, String> {
    let mut plot = Plot {
        title: "Creating an overlay",
        axis: "size",
        labels: SIZES.map(size_text).to_vec(),
        curves: vec![
            Curve::new(
                "until it has its name",
                Unit::Microseconds,
                Bound {
                    limit: Limit::ValueMax(1000.0),
                    why: "Below a millisecond: the header and tables without content.",
                },
            ),
            Curve::new("until it is durable", Unit::Microseconds, Bound::NONE),
            Curve::new("an empty file, as durable", Unit::Microseconds, Bound::NONE),
        ],
    };
    let target = bench.folder.path("overlay.qcow2");
    plot.measure(bench.options.repeat, &SIZES, |size| {
        let base = sparse(&bench.folder, size)?;
        let options = overlay_options(&base, size);
        let make = |durability| {
            timed(&target, || create(&target, &options, Preallocation::Off, durability))
        };
        Ok(vec![
            make(Durability::Unsafe)?,
            make(Durability::Durable)?,
            timed(&target, || make_plain(&target).map_err(words))?,
        ])
    })?;
    Ok(plot)
}

/// Microseconds of `work`, which makes `target`: the median of several times.
fn timed(target: &Path, work: impl Fn() -> Result<(), String>) -> Result<f64, String> {
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        fs::remove_file(target).map_err(words)?;
    }
    Ok(median(&times))
}

/// The barriers that the durable one makes, around a file of one block: what the disk asks for.
fn make_plain(target: &Path) -> std::io::Result<()> {
    let temporary = target.with_extension("plain");
    let mut file = File::create(&temporary)?;
    for _ in 0..BARRIERS {
        file.write_all(&[0xA5; 4096])?;
        file.sync_data()?;
    }
    fs::rename(&temporary, target)?;
    File::open(target.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Before the header, behind it, and before the name.
const BARRIERS: usize = 3;
