//! How cowl's costs grow: with threads, depth, sizes, chains, caches and snapshots.
//!
//! Each measure makes its images, then measures cowl alone along one axis, and the floor of the
//! system where there is one. Where the design says that a cost stays flat its curve has a bound.

mod cache;
mod chain;
mod chart;
mod check;
mod curve;
mod images;
mod load;
mod opening;
mod overlay;
mod size;
mod snapshots;

use serde_json::json;

use crate::fixtures::Folder;
use crate::options::Options;
use crate::scale::curve::Plot;

pub(crate) use crate::scale::opening::{check_as_child, open_as_child};

/// What the measures share.
pub(crate) struct Bench<'a> {
    folder: Folder,
    options: &'a Options,
}

type Measure = fn(&Bench<'_>) -> Result<Plot, String>;

/// All measures, with the words that `--rows` knows them by.
const MEASURES: [(&str, Measure); 9] = [
    ("scale-threads", load::threads),
    ("scale-depth", load::depth),
    ("scale-size", size::size),
    ("scale-chain", chain::chain),
    ("scale-overlay", overlay::overlay),
    ("scale-cache", cache::cache),
    ("scale-snapshots", snapshots::snapshots),
    ("scale-check-sparse", check::sparse),
    ("scale-check-full", check::full),
];

/// Measures what was asked for.
pub(crate) fn run(options: &Options) -> Result<(), String> {
    let bench = Bench { folder: Folder::new(options)?, options };
    let mut plots = Vec::new();
    for (key, measure) in MEASURES {
        if options.wants(key) {
            eprintln!("{key} ...");
            let plot = measure(&bench).map_err(|error| format!("{key}: {error}"))?;
            println!("{}", plot.text());
            plots.push(plot);
        }
    }
    let broken: Vec<_> = plots
        .iter()
        .flat_map(|plot| plot.curves.iter().map(move |curve| (plot, curve)))
        .filter(|(_, curve)| curve.is_kept() == Some(false))
        .map(|(plot, curve)| format!("{}: {}", plot.title, curve.title))
        .collect();
    match broken.as_slice() {
        [] => println!("Every bound is kept."),
        broken => println!("Not kept: {}", broken.join("; ")),
    }
    write_json(options, &plots)?;
    match &options.svg {
        Some(path) => chart::draw(path, &plots),
        None => Ok(()),
    }
}

fn write_json(options: &Options, plots: &[Plot]) -> Result<(), String> {
    let Some(path) = &options.json else { return Ok(()) };
    let plots: Vec<_> = plots.iter().map(Plot::json).collect();
    let text = serde_json::to_string_pretty(&json!({ "quick": options.quick, "plots": plots }));
    let text = text.map_err(|error| error.to_string())?;
    std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
}

/// The words for `--rows list`.
pub(crate) fn keys() -> impl Iterator<Item = &'static str> {
    MEASURES.into_iter().map(|(key, _)| key)
}
