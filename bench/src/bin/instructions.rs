//! `instructions NAME COUNT` runs one body; `cargo xtask bench micro` runs it under callgrind.
//!
//! Without arguments it prints the bodies: name, operations, unit, with tabs in between. The counts
//! that matter are taken within `measured_operation`, so set-up and checks may cost what they like.

use std::io::Write;
use std::process::ExitCode;

use cowl_bench::{GROUPS, find, measured_operation};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        [] => list(),
        [name, count] => run(name, count),
        _ => Err("instructions [NAME COUNT]".to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("instructions: {message}");
            ExitCode::FAILURE
        }
    }
}

fn list() -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    for body in GROUPS.iter().copied().flatten() {
        writeln!(out, "{}\t{}\t{}", body.name, body.operations, body.unit)
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}

fn run(name: &str, count: &str) -> Result<(), String> {
    let body = find(name).ok_or_else(|| format!("no such body: {name}"))?;
    let count: u64 = count.parse().map_err(|_| format!("'{count}' is no number"))?;
    if body.operations < count {
        return Err(format!("{name} is good for {} operations", body.operations));
    }
    let subject = (body.set_up)();
    for number in 0..count {
        subject.prepare(number);
        measured_operation(subject.as_ref(), number);
    }
    subject.check(count);
    Ok(())
}
