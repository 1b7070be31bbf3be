//! Hot random reads: more threads, and more requests in flight.

use std::path::Path;

use crate::fixtures::warm;
use crate::readers::{self, Order, Reading};
use crate::scale::Bench;
use crate::scale::curve::{Bound, Curve, Limit, Plot, Unit};
use crate::scale::images::{MIB, with_data};

fn data_bytes(bench: &Bench<'_>) -> u64 {
    if bench.options.quick { 64 * MIB } else { 512 * MIB }
}

/// Random reads of 4 KiB over all data of `image`.
fn reading(bench: &Bench<'_>, image: &Path, threads: u64, depth: u64) -> Reading {
    Reading {
        image: image.to_owned(),
        size: data_bytes(bench),
        order: Order::Random,
        depth,
        threads,
        direct: false,
        sample: bench.options.sample,
    }
}

pub(crate) fn threads(bench: &Bench<'_>) -> Result<Plot, String> {
    let points = [1, 2];
    let image = with_data(&bench.folder, data_bytes(bench), data_bytes(bench))?;
    warm(&image)?;
    let why = "No lock and no shared cache line is on the way of a hit: what two threads gain is \
               the machine's affair, the same for pread.";
    let bound = Bound { limit: Limit::RatioMin(0.9), why };
    let mut plot = Plot {
        title: "4K random reads, hot, blocking calls",
        axis: "threads",
        labels: points.map(|threads| threads.to_string()).to_vec(),
        curves: vec![
            Curve::new("cowl", Unit::PerSecond, Bound::NONE),
            Curve::new("pread of the file", Unit::PerSecond, Bound::NONE),
            Curve::new("cowl / pread", Unit::Ratio, bound),
        ],
    };
    plot.measure(bench.options.repeat, &points, |threads| {
        let reading = reading(bench, &image, threads, 1);
        let cowl = readers::cowl::by_blocking_calls(&reading)?[0];
        let raw = readers::raw::by_pread(&reading)?[0];
        Ok(vec![cowl, raw, cowl / raw])
    })?;
    Ok(plot)
}

pub(crate) fn depth(bench: &Bench<'_>) -> Result<Plot, String> {
    let points = [1, 2, 4, 8, 16, 32, 64, 128, 256];
    let image = with_data(&bench.folder, data_bytes(bench), data_bytes(bench))?;
    warm(&image)?;
    let why = "The page cache answers at once, so depth can gain nothing here; what it must not \
               do is cost.";
    let bound = Bound { limit: Limit::RatioMin(0.8), why };
    let mut plot = Plot {
        title: "4K random reads, hot, one ring",
        axis: "in flight",
        labels: points.map(|depth| depth.to_string()).to_vec(),
        curves: vec![
            Curve::new("cowl", Unit::PerSecond, bound),
            Curve::new("a ring by hand", Unit::PerSecond, Bound::NONE),
        ],
    };
    plot.measure(bench.options.repeat, &points, |depth| {
        let reading = reading(bench, &image, 1, depth);
        let cowl = readers::cowl::by_ring(&reading)?[0];
        let raw = readers::raw::by_ring(&reading)?[0];
        Ok(vec![cowl, raw])
    })?;
    Ok(plot)
}
