//! Developer commands, run as `cargo xtask COMMAND`.

mod bench;
mod ci;
mod command;
mod fuzz;
mod interleavings;
mod sanitize;
mod soak;
mod tidy;

use std::io::Write;
use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  ci                 everything CI runs: format, lints, tidy, tests, docs
  tidy               the project's own rules: edges, file heads, widths, sizes
  fuzz [MINUTES]     each fuzz target for so many minutes (1)
  sim [ARGS]         power cuts, faults and chance: --minutes N, --seed S, --replay LINE
  interleavings [ROUNDS [SEED]]
                     threads of the engine's models in many orders, ROUNDS (300) for each model
  sanitize [KIND]    tests under miri, address or thread sanitizer, or all of them (nightly)
  soak [--minutes N] a long mixed load on a server, with kills of its clients (15)
  bench [ARGS]       side by side with raw, qemu-img, imago and qcow2-rs
  bench micro [--counts] [--json FILE]
                     single operations of the engine: times, and instructions where valgrind is
                     installed; --counts: instructions alone, --json: these into FILE
  on-disk            accept the current on-disk format sources as documented
";

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    let result = match command.as_str() {
        "ci" => ci::run_ci(),
        "tidy" => tidy::run(),
        "fuzz" => fuzz::run_fuzz(&rest),
        "sim" => sim(&rest),
        "interleavings" => interleavings::run_interleavings(&rest),
        "sanitize" => sanitize::run_sanitize(&rest),
        "soak" => soak::run_soak(&rest),
        "bench" => bench::run_bench(&rest),
        "on-disk" => tidy::accept_on_disk(),
        "help" | "--help" | "-h" | "" => {
            say(HELP);
            Ok(())
        }
        other => Err(format!("no such command: {other}\n\n{HELP}")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            say(&format!("\nxtask: {message}\n"));
            ExitCode::FAILURE
        }
    }
}

fn sim(arguments: &[String]) -> Result<(), String> {
    let mut command = command::cargo();
    command.args(["run", "--release", "--package", "cowl-sim"]);
    // An engine that can ignore its own rules is built only for those who ask for it.
    if arguments.iter().any(|argument| argument == "--canary") {
        command.args(["--features", "canary"]);
    }
    command.arg("--");
    command::run(command.args(arguments))
}

fn say(text: &str) {
    // Nobody is left to tell when standard error is gone.
    std::io::stderr().write_all(text.as_bytes()).ok();
}
