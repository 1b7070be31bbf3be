//! `cowl-sim`: runs histories for some minutes, or one again.

mod options;
mod survey;
mod swarm;

use std::io::Write;
use std::process::ExitCode;

use cowl_sim::{Effort, Plan, Report, Totals, run, shrink};

use crate::options::{Command, HELP};

fn main() -> ExitCode {
    match options::parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            say(HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::Replay(plan)) => replay(&plan),
        Ok(Command::Shrink(plan)) => shrink_failing(&plan),
        Ok(Command::Canaries { seed }) => survey::canaries(seed),
        Ok(Command::Swarm(options)) => swarm::swarm(&options),
        Ok(Command::Scenarios(options)) => survey::scenarios(&options),
        Ok(Command::Drops(options)) => survey::drops(&options),
        Err(message) => {
            say(&format!("cowl-sim: {message}\n\n{HELP}"));
            ExitCode::FAILURE
        }
    }
}

fn replay(plan: &Plan) -> ExitCode {
    let effort = Effort { keep_log: true, ..Effort::of(plan) };
    let report = run(plan, effort);
    say(&format!("{}\n", report.log.join("\n")));
    finish(&report)
}

fn shrink_failing(plan: &Plan) -> ExitCode {
    if !run(plan, Effort::of(plan)).has_failed() {
        say(&format!("cowl-sim: nothing to shrink, it breaks no rule: {plan}\n"));
        return ExitCode::FAILURE;
    }
    say(&format!("{}\n", show(&shrink(plan))));
    ExitCode::SUCCESS
}

fn finish(report: &Report) -> ExitCode {
    let mut totals = Totals::default();
    totals.add(report);
    say(&format!("{report}\n{totals}\n"));
    if report.has_failed() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// The smallest history and what is wrong with it.
fn show(plan: &Plan) -> String {
    run(plan, Effort::of(plan)).to_string()
}

fn say(text: &str) {
    // Nobody is left to tell when standard output is gone.
    std::io::stdout().write_all(text.as_bytes()).ok();
}
