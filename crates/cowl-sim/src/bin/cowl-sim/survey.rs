//! Runs that look at each of a list of things, and print a line for each.

use std::process::ExitCode;

use cowl_sim::{
    Effort, Plan, Report, SCENARIOS, Scenario, SubjectKind, Totals, drop_everywhere, run,
};

use crate::options::{Limit, Options};
use crate::say;

/// Every history written by hand, with every crash state, in several orders.
pub(crate) fn scenarios(options: &Options) -> ExitCode {
    let orders = match options.limit {
        Limit::Histories(count) => count,
        Limit::Minutes(_) => ORDERS,
    };
    each_scenario(options, |scenario| {
        let reports = (0..orders).map(|order| {
            let kind = SubjectKind::Scenario(*scenario);
            let plan = Plan::new(kind, options.seed + order).exhaustive();
            run(&plan, Effort::of(&plan))
        });
        total(reports)
    })
}

/// Orders of a scenario that are tried unless `--histories` says how many.
const ORDERS: u64 = 4;

/// Every request of every history written by hand, dropped at each point at which it waits.
pub(crate) fn drops(options: &Options) -> ExitCode {
    each_scenario(options, |scenario| {
        let plan = Plan::new(SubjectKind::Scenario(*scenario), options.seed);
        let late = Plan { late: DROPPED_LATE, ..plan.clone() };
        total([plan, late].iter().flat_map(drop_everywhere))
    })
}

/// Turns that others have beside a request that is dropped late: some I/Os and requests.
const DROPPED_LATE: u32 = 6;

fn total(reports: impl Iterator<Item = Report>) -> Totals {
    let mut totals = Totals::default();
    for report in reports {
        totals.add(&report);
        if report.has_failed() {
            say(&format!("\nVIOLATION\n{report}\n"));
        }
    }
    totals
}

/// Does `look` for each scenario, on several threads, and prints what came of it.
fn each_scenario(options: &Options, look: impl Fn(&Scenario) -> Totals + Sync) -> ExitCode {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let all = std::sync::Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..options.threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    let Some(scenario) = SCENARIOS.get(index) else { return };
                    let totals = look(scenario);
                    say(&format!("{:32} {totals}\n", scenario.name));
                    all.lock().expect("no panic in between").merge(&totals);
                }
            });
        }
    });
    let all = all.into_inner().expect("no panic in between");
    say(&format!("{:32} {all}\n", "all"));
    if all.violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ignores every edge of the engine's order in turn.
#[cfg(feature = "canary")]
pub(crate) fn canaries(seed: u64) -> ExitCode {
    let mut code = ExitCode::SUCCESS;
    say("edge                      caught after                      by\n");
    for rule in cowl_qcow2::ORDER {
        let canary = cowl_sim::Canary::hunt(rule, seed);
        let (histories, states) = (canary.histories, canary.crash_states);
        let edge = format!("{:?}", rule.edge);
        let by = match &canary.caught {
            Some(report) if canary.is_innocent_otherwise => report.to_string(),
            Some(report) => format!("NOT THE EDGE: fails with it too: {report}"),
            None => "NOT CAUGHT".to_owned(),
        };
        let by = by.replace('\n', "; ");
        say(&format!("{edge:25} {histories:3} histories, {states:6} states   {by}\n"));
        if !canary.is_caught() {
            code = ExitCode::FAILURE;
        }
    }
    code
}

#[cfg(not(feature = "canary"))]
pub(crate) fn canaries(_: u64) -> ExitCode {
    say("cowl-sim: built without canaries; `cargo xtask sim --canary` builds it with them\n");
    ExitCode::FAILURE
}
