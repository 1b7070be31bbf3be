//! Chains of 1 to 100 images: opening, and reads of what lies at the top, at the bottom, nowhere.
//!
//! Every image of a chain has some data of its own, so that each has an L2 table to look into.

use std::path::PathBuf;

use cowl::{Disk, OpenOptions, Preallocation};
use cowl_storage::Durability;

use crate::fixtures::{Folder, warm};
use crate::offsets::Offsets;
use crate::scale::Bench;
use crate::scale::curve::{Curve, Plot};
use crate::scale::images::{GIB, KIB, MIB, create, fill, once, overlay_options, with_data, words};
use crate::scale::opening;
use crate::scale::size::time_of_read;

const DEPTHS: [u64; 7] = [1, 2, 5, 10, 20, 50, 100];

/// The data of the lowest image, from byte 0 on.
const BOTTOM_BYTES: u64 = 16 * MIB;

/// Where no image has anything.
const HOLE: (u64, u64) = (32 * MIB, 16 * MIB);

/// Where the data of the others starts, one behind the other, under the same L2 table.
const OWN_START: u64 = 64 * MIB;

const OWN_BYTES: u64 = 256 * KIB;

const WHY_FLAT: &str = "A lookup costs the same however long the chain is; twice is for what the \
                        processor's caches lose over a hundred tables.";

/// The top of a chain of `depth` images. A chain contains the shorter ones.
fn top(folder: &Folder, depth: u64) -> Result<PathBuf, String> {
    let mut below = with_data(folder, GIB, BOTTOM_BYTES)?;
    for level in 2..=depth {
        let name = format!("chain-{level:03}.qcow2");
        below = once(folder, &name, |path| {
            let options = overlay_options(&below, GIB);
            create(path, &options, Preallocation::Off, Durability::Unsafe)?;
            fill(path, own_start(level), OWN_BYTES)
        })?;
        warm(&below)?;
    }
    Ok(below)
}

fn own_start(level: u64) -> u64 {
    OWN_START + level * OWN_BYTES
}

pub(crate) fn chain(bench: &Bench<'_>) -> Result<Plot, String> {
    top(&bench.folder, DEPTHS[DEPTHS.len() - 1])?;
    let mut plot = Plot {
        title: "Chains of images of 1 GiB, hot",
        axis: "images",
        labels: DEPTHS.map(|depth| depth.to_string()).to_vec(),
        curves: vec![
            Curve::flat("open, for each image", 1.5, "An image costs the same wherever it lies."),
            Curve::flat("read from the top", 1.5, "Nothing below the top is looked at."),
            Curve::flat("read from the bottom", 2.0, WHY_FLAT),
            Curve::flat("read of a hole", 2.0, WHY_FLAT),
        ],
    };
    let sample = bench.options.sample / 2;
    plot.measure(bench.options.repeat, &DEPTHS, |depth| {
        let path = top(&bench.folder, depth)?;
        let open = opening::time(&path, &OpenOptions::local())? / depth as f64;
        let disk = Disk::open(&path, &OpenOptions::local()).map_err(words)?;
        let read =
            |start, length| time_of_read(&disk, &mut Offsets::random(length, 1), start, sample);
        let own = if depth == 1 { (0, OWN_BYTES) } else { (own_start(depth), OWN_BYTES) };
        let bottom = read(0, BOTTOM_BYTES)?;
        Ok(vec![open, read(own.0, own.1)?, bottom, read(HOLE.0, HOLE.1)?])
    })?;
    Ok(plot)
}
