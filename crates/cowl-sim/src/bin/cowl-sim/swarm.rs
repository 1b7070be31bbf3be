//! Many histories, on several threads.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use cowl_sim::{Effort, Plan, Totals, run, shrink};

use crate::options::{Limit, Options};
use crate::{say, show};

/// Failing histories after which a run ends: more of them tell nothing new.
const FAILURES_MAX: u64 = 10;

pub(crate) fn swarm(options: &Options) -> ExitCode {
    let mut totals = Totals::default();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.threads)
            .map(|thread| scope.spawn(move || run_thread(options, thread)))
            .collect();
        for worker in workers {
            totals.merge(&worker.join().expect("a panic of the engine is a violation"));
        }
    });
    say(&format!("{totals}\n"));
    if totals.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs every `threads`th history from number `thread` on.
fn run_thread(options: &Options, thread: u64) -> Totals {
    let started = Instant::now();
    let mut totals = Totals::default();
    let mut number = thread;
    loop {
        let is_over = match options.limit {
            Limit::Minutes(minutes) => {
                Duration::from_secs(minutes.saturating_mul(60)) <= started.elapsed()
            }
            Limit::Histories(count) => count <= number,
        };
        if is_over || FAILURES_MAX <= totals.violations {
            return totals;
        }
        let report = run(&plan(options, number), Effort::of(&plan(options, number)));
        totals.add(&report);
        if report.has_failed() {
            say(&format!("\nVIOLATION\n{report}\n"));
            say(&format!("the smallest history that fails:\n{}\n", show(&shrink(&report.plan))));
        }
        number += options.threads;
    }
}

fn plan(options: &Options, number: u64) -> Plan {
    let (keep_lengths, fixed_size) = (options.keep_lengths, options.fixed_size);
    let plan = Plan::of_number(&options.subjects, options.seed, number);
    let plan = Plan { keep_lengths, fixed_size, ..plan };
    if options.exhaustive { plan.exhaustive() } else { plan }
}
