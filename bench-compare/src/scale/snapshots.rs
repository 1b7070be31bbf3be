//! Images with 0 to 100 internal snapshots, made by qemu-img: opening, the first write, and writes
//! to shared and to own clusters.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cowl::{Disk, OpenOptions};

use crate::fixtures::Folder;
use crate::measure::median;
use crate::offsets::BLOCK;
use crate::process;
use crate::scale::Bench;
use crate::scale::curve::{Bound, Curve, Limit, Plot, Unit};
use crate::scale::images::{CLUSTER, GIB, MIB, once, to_write, with_data, words};
use crate::scale::opening;

const COUNTS: [u64; 4] = [0, 1, 10, 100];

const DATA_BYTES: u64 = 64 * MIB;

const OWN_ROUNDS: usize = 9;

fn with_snapshots(folder: &Folder, count: u64) -> Result<PathBuf, String> {
    let base = with_data(folder, GIB, DATA_BYTES)?;
    once(folder, &format!("snapshots-{count}.qcow2"), |path| {
        fs::copy(&base, path).map_err(words)?;
        for number in 0..count {
            let name = format!("s{number}");
            let path = path.to_string_lossy();
            process::run("qemu-img".as_ref(), &["snapshot", "-c", &name, &path])?;
        }
        Ok(())
    })
}

pub(crate) fn snapshots(bench: &Bench<'_>) -> Result<Plot, String> {
    let rate = |why| Bound { limit: Limit::RatioMin(0.67), why };
    let mut plot = Plot {
        title: "Internal snapshots that share 64 MiB",
        axis: "snapshots",
        labels: COUNTS.map(|count| count.to_string()).to_vec(),
        curves: vec![
            Curve::flat("open", 1.5, "The snapshot table is not read."),
            Curve::flat("open to write", 1.5, "The same, and one read of the snapshot table."),
            Curve::flat("first write", 1.5, "One L2 table and one cluster are copied."),
            Curve::new(
                "writes to shared clusters",
                Unit::PerSecond,
                rate("How many snapshots share a cluster is one number."),
            ),
            Curve::new(
                "writes to own clusters",
                Unit::PerSecond,
                rate("A cluster that was copied is nobody else's."),
            ),
        ],
    };
    // Without a snapshot nothing is copied: the comparison starts at one.
    plot.curves[2].reference = 1;
    plot.curves[3].reference = 1;
    let scratch = bench.folder.path("snapshots-scratch.qcow2");
    plot.measure(bench.options.repeat, &COUNTS, |count| {
        let image = with_snapshots(&bench.folder, count)?;
        fs::copy(&image, &scratch).map_err(words)?;
        crate::sys::sync();
        let open = opening::time(&scratch, &OpenOptions::local())?;
        let open_to_write = opening::time(&scratch, &to_write())?;
        let [first, shared, own] = writes(&scratch)?;
        Ok(vec![open, open_to_write, first, shared, own])
    })?;
    fs::remove_file(&scratch).map_err(words)?;
    Ok(plot)
}

/// Microseconds of the first write, then writes in a second to clusters that snapshots share, then
/// to the same clusters again, the median of several rounds: one of them takes two milliseconds.
/// Flushes are between them and do not count: they are the disk's.
fn writes(path: &Path) -> Result<[f64; 3], String> {
    let disk = Disk::open(path, &to_write()).map_err(words)?;
    let payload = [0x5A; BLOCK];
    let start = Instant::now();
    disk.write_at(&payload, 0).map_err(words)?;
    let first = start.elapsed().as_secs_f64() * 1e6;
    disk.flush().map_err(words)?;
    let round = || {
        let start = Instant::now();
        for at in (CLUSTER..DATA_BYTES).step_by(CLUSTER as usize) {
            disk.write_at(&payload, at).map_err(words)?;
        }
        let rate = (DATA_BYTES / CLUSTER - 1) as f64 / start.elapsed().as_secs_f64();
        disk.flush().map_err(words)?;
        Ok::<_, String>(rate)
    };
    let shared = round()?;
    let own = (0..OWN_ROUNDS).map(|_| round()).collect::<Result<Vec<_>, _>>()?;
    disk.close().map_err(words)?;
    Ok([first, shared, median(&own)])
}
