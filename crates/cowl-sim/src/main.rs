//! `cowl-sim`: runs histories for some minutes, or one again.

use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cowl_sim::{Effort, Plan, Report, SubjectKind, Totals, mix, run, shrink};

const HELP: &str = "\
cowl-sim [OPTIONS]

  --minutes N        run new histories for N minutes (1)
  --histories N      run N new histories instead
  --seed S           the first seed (1)
  --threads N        histories side by side (2)
  --subject NAME     only this subject; may be given again
  --exhaustive       few requests in each history, and all its crash states
  --keep-lengths     lengths that writes gave a file survive every power cut
  --fixed-size       disks never change their size
  --replay LINE      run the history of a replay line, and print what happened
  --shrink LINE      make the failing history of a replay line small
";

struct Options {
    limit: Limit,
    seed: u64,
    threads: u64,
    subjects: Vec<SubjectKind>,
    exhaustive: bool,
    keep_lengths: bool,
    fixed_size: bool,
}

#[derive(Clone, Copy)]
enum Limit {
    Minutes(u64),
    Histories(u64),
}

enum Command {
    Swarm(Options),
    Replay(Plan),
    Shrink(Plan),
    Help,
}

/// Failing histories after which a run ends: more of them tell nothing new.
const FAILURES_MAX: u64 = 10;

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Command::Help) => {
            say(HELP);
            ExitCode::SUCCESS
        }
        Ok(Command::Replay(plan)) => replay(&plan),
        Ok(Command::Shrink(plan)) => {
            say(&format!("{}\n", show(&shrink(&plan))));
            ExitCode::SUCCESS
        }
        Ok(Command::Swarm(options)) => swarm(&options),
        Err(message) => {
            say(&format!("cowl-sim: {message}\n\n{HELP}"));
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Command, String> {
    let mut options = Options {
        limit: Limit::Minutes(1),
        seed: 1,
        threads: 2,
        subjects: Vec::new(),
        exhaustive: false,
        keep_lengths: false,
        fixed_size: false,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: String| text.parse().map_err(|_| format!("not a number: {text}"));
        match argument.as_str() {
            "--minutes" => options.limit = Limit::Minutes(number(value()?)?),
            "--histories" => options.limit = Limit::Histories(number(value()?)?),
            "--seed" => options.seed = number(value()?)?,
            "--threads" => options.threads = number(value()?)?.max(1),
            "--subject" => options.subjects.push(SubjectKind::from_name(&value()?)?),
            "--keep-lengths" => options.keep_lengths = true,
            "--fixed-size" => options.fixed_size = true,
            "--exhaustive" => options.exhaustive = true,
            "--replay" => return Ok(Command::Replay(value()?.parse()?)),
            "--shrink" => return Ok(Command::Shrink(value()?.parse()?)),
            "--help" | "-h" => return Ok(Command::Help),
            other => return Err(format!("no such option: {other}")),
        }
    }
    if options.subjects.is_empty() {
        options.subjects = SubjectKind::REAL.to_vec();
    }
    Ok(Command::Swarm(options))
}

fn replay(plan: &Plan) -> ExitCode {
    let effort = Effort { keep_log: true, ..Effort::of(plan) };
    let report = run(plan, effort);
    say(&format!("{}\n", report.log.join("\n")));
    finish(&report)
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

fn swarm(options: &Options) -> ExitCode {
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
            Limit::Minutes(minutes) => Duration::from_secs(minutes * 60) <= started.elapsed(),
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
    let seed = options.seed.wrapping_add(number);
    let count = options.subjects.len() as u64;
    let index = usize::try_from(mix(seed) % count).expect("few subjects");
    let (keep_lengths, fixed_size) = (options.keep_lengths, options.fixed_size);
    let plan = Plan { keep_lengths, fixed_size, ..Plan::new(options.subjects[index], seed) };
    // One history in eight is looked at from all sides.
    if options.exhaustive || mix(seed) >> 32 & 7 == 0 { plan.exhaustive() } else { plan }
}

fn say(text: &str) {
    // Nobody is left to tell when standard output is gone.
    std::io::stdout().write_all(text.as_bytes()).ok();
}
