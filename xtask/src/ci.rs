//! `cargo xtask ci`: all that CI runs, cheapest first.

use crate::command::{cargo, exists, run};
use crate::interleavings::run_interleavings;
use crate::{say, tidy};

fn run_all_tests() -> Result<(), String> {
    // The development profile: lightly optimised, with overflow checks and debug assertions on.
    run(cargo().args(["test", "--workspace", "--all-targets"]))?;
    run(cargo().args(["test", "--workspace", "--doc"]))
}

/// Every edge of the engine's order is ignored once, and has to be noticed.
fn run_canaries() -> Result<(), String> {
    let words = ["run", "--package", "cowl-sim", "--features", "canary", "--", "--canary"];
    run(cargo().args(words))
}

fn run_docs() -> Result<(), String> {
    let mut command = cargo();
    command.env("RUSTDOCFLAGS", "-D warnings");
    // The command shares its name with the library, and its pages would take their place.
    let words = ["doc", "--workspace", "--exclude", "cowl-cli", "--no-deps"];
    run(command.args(words).arg("--document-private-items"))
}

/// Runs every step; stops at the first that fails.
fn run_steps() -> Result<(), String> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    for manifest in leaf_manifests() {
        run(cargo().args(["fmt", "--manifest-path", &manifest, "--check"]))?;
    }
    tidy::run()?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    run_all_tests()?;
    run_canaries()?;
    run_interleavings(&[])?;
    run_docs()?;
    check_leaves()?;
    if !exists("qemu-img") {
        say("\nSKIPPED: qemu-img is not installed, so nothing was compared with it\n");
    }
    Ok(())
}

const BENCH: &str = "bench/Cargo.toml";

/// The manifests of the folders outside the workspace that are there.
fn leaf_manifests() -> impl Iterator<Item = String> {
    let all = ["fuzz/Cargo.toml", "bench-compare/Cargo.toml", BENCH];
    let is_there = |manifest: &&str| crate::command::root().join(manifest).is_file();
    all.into_iter().filter(is_there).map(str::to_owned)
}

/// They must go on compiling. The bodies of `bench` run a few times each, since a benchmark that
/// does nothing compiles as well.
fn check_leaves() -> Result<(), String> {
    for manifest in leaf_manifests() {
        let place = ["--manifest-path", &manifest, "--target-dir", "target/leaves"];
        if manifest != BENCH {
            run(cargo().arg("check").args(place))?;
            continue;
        }
        run(cargo().arg("clippy").args(place).args(["--all-targets", "--", "-D", "warnings"]))?;
        run(cargo().arg("test").args(place).arg("--lib"))?;
    }
    Ok(())
}

pub(crate) fn run_ci() -> Result<(), String> {
    run_steps()?;
    say("\nci: everything passed\n");
    Ok(())
}
