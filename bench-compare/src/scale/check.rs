//! Checks: of sparse disks, whose size must not count, and of disks with all their tables.

use crate::fixtures::warm;
use crate::scale::Bench;
use crate::scale::curve::{Bound, Curve, Limit, Plot, Unit};
use crate::scale::images::{self, CLUSTER, GIB, MIB, TIB, size_text, tables_only};
use crate::scale::opening::{self, Errand};
use crate::scale::size::SIZES;

const FULL_SIZES: [u64; 5] = [GIB, 16 * GIB, 128 * GIB, 512 * GIB, TIB];

pub(crate) fn sparse(bench: &Bench<'_>) -> Result<Plot, String> {
    let flat = |why| Bound { limit: Limit::RatioMax(1.5), why };
    let mut plot = Plot {
        title: "Checking sparse disks",
        axis: "size",
        labels: SIZES.map(size_text).to_vec(),
        curves: vec![
            Curve::new(
                "peak memory",
                Unit::Mebibytes,
                flat("Memory goes by the clusters of the file, not of the disk."),
            ),
            Curve::new("time", Unit::Microseconds, Bound::NONE),
        ],
    };
    plot.measure(bench.options.repeat, &SIZES, |size| {
        let path = images::sparse(&bench.folder, size)?;
        warm(&path)?;
        Ok(opening::in_child(Errand::Check, &path)?.to_vec())
    })?;
    Ok(plot)
}

pub(crate) fn full(bench: &Bench<'_>) -> Result<Plot, String> {
    for size in FULL_SIZES {
        warm(&tables_only(&bench.folder, size)?)?;
    }
    let why = "12 MiB for the program and the tables in flight, and for each cluster of the file \
               the two bytes of the design.";
    let most = FULL_SIZES.map(|size| 12.0 + (size / CLUSTER * 2) as f64 / MIB as f64);
    let limit = Limit::ValuesMax(most.to_vec());
    let mut plot = Plot {
        title: "Checking disks with all their tables",
        axis: "size",
        labels: FULL_SIZES.map(size_text).to_vec(),
        curves: vec![
            Curve::new("peak memory", Unit::Mebibytes, Bound { limit, why }),
            Curve::new("time", Unit::Microseconds, Bound::NONE),
            Curve::flat(
                "time for each 1000 clusters",
                1.5,
                "Each entry is looked at once, so larger disks can only gain.",
            ),
        ],
    };
    plot.measure(bench.options.repeat, &FULL_SIZES, |size| {
        let path = tables_only(&bench.folder, size)?;
        let [memory, time] = opening::in_child(Errand::Check, &path)?;
        Ok(vec![memory, time, time * 1000.0 / (size / CLUSTER) as f64])
    })?;
    Ok(plot)
}
