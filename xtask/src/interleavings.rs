//! `cargo xtask interleavings`: the threads of the engine's models, in many orders.

use crate::command::{cargo, run};

/// Rounds of each model that everybody can wait for: some seconds.
pub(crate) const ROUNDS_SMOKE: u64 = 300;

pub(crate) fn run_interleavings(arguments: &[String]) -> Result<(), String> {
    let mut numbers = arguments.iter().map(|text| {
        text.parse::<u64>().map_err(|_| format!("not a number of rounds or a seed: {text}"))
    });
    let rounds = numbers.next().transpose()?.unwrap_or(ROUNDS_SMOKE);
    let seed = numbers.next().transpose()?.unwrap_or(1);
    let mut command = cargo();
    // The library itself stays as it is: the feature changes the crate's own tests alone.
    command.args(["test", "--package", "cowl-qcow2", "--lib", "--features", "interleavings"]);
    command.args(["--", "interleavings::"]);
    command.env("COWL_INTERLEAVINGS", rounds.to_string());
    run(command.env("COWL_INTERLEAVINGS_SEED", seed.to_string()))
}
