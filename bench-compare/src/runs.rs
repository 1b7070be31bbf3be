//! Several runs of the table: what was worst, and the files that are written.
//!
//! A ratio near its bar is on either side of it from one run to the next. The worst of several runs
//! says what can be relied on.

use serde_json::{Value, json};

use crate::chart::{self, Stripe};
use crate::options::Options;
use crate::report::{Outcome, Report};

/// One bar in all runs.
struct Spread {
    outcome: Outcome,
    ratios: Vec<f64>,
}

impl Spread {
    /// The ratio furthest on the wrong side.
    fn worst(&self) -> Option<f64> {
        let worse = if self.outcome.unit.more_is_better() { f64::min } else { f64::max };
        self.ratios.iter().copied().reduce(worse)
    }
}

/// The bars of all runs, in the order of the table. Every run has the same rows.
fn spreads(reports: &[Report]) -> Vec<Spread> {
    let mut spreads: Vec<Spread> = Vec::new();
    for report in reports {
        for (index, outcome) in report.outcomes().enumerate() {
            let ratio = outcome.ratio;
            if spreads.len() <= index {
                spreads.push(Spread { outcome, ratios: Vec::new() });
            }
            spreads[index].ratios.extend(ratio);
        }
    }
    spreads
}

/// The ratios of all runs side by side, and the worst of each bar. Nothing for a single run, whose
/// table has said it.
pub(crate) fn print_worst(reports: &[Report]) {
    if reports.len() < 2 {
        return;
    }
    println!("\nratios of {} runs, and the worst of them\n", reports.len());
    for spread in spreads(reports) {
        let ratios: String = spread.ratios.iter().map(|ratio| format!("{ratio:>7.2}")).collect();
        let Outcome { title, unit, bar, .. } = &spread.outcome;
        println!("{title:50}{ratios}  worst{}", bar.text(spread.worst(), *unit));
    }
}

/// Writes what was measured so far.
pub(crate) fn write_json(reports: &[Report], options: &Options) -> Result<(), String> {
    let Some(path) = &options.json else { return Ok(()) };
    let runs: Vec<Value> = reports.iter().map(Report::json).collect();
    let Options { quick, fill_memory, .. } = options;
    let all = json!({ "quick": quick, "fill_memory": fill_memory, "runs": runs });
    let text = serde_json::to_string_pretty(&all).map_err(|error| error.to_string())?;
    std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))
}

/// Draws the worst of each bar.
pub(crate) fn write_chart(reports: &[Report], options: &Options) -> Result<(), String> {
    let Some(path) = &options.svg else { return Ok(()) };
    let stripes = spreads(reports).into_iter().filter_map(|spread| {
        let ratio = spread.worst()?;
        let Outcome { title, unit, bar, .. } = spread.outcome;
        let better = |ratio: f64| if unit.more_is_better() { ratio } else { ratio.recip() };
        Some(Stripe {
            title: title.trim().to_owned(),
            reference: bar.reference.name(),
            times_better: better(ratio),
            wanted: better(bar.ratio),
        })
    });
    chart::draw(path, &stripes.collect::<Vec<_>>())
}
