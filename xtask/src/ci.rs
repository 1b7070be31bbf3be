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

/// Folders outside the workspace must go on compiling, in the project's format. The bodies of
/// `bench` run a few times each, since a benchmark that does nothing compiles as well.
fn check_leaves() -> Result<(), String> {
    for leaf in ["fuzz", "bench-compare", "bench"] {
        let manifest = format!("{leaf}/Cargo.toml");
        if !crate::command::root().join(&manifest).is_file() {
            continue;
        }
        run(cargo().args(["fmt", "--manifest-path", &manifest, "--check"]))?;
        let place = ["--manifest-path", &manifest, "--target-dir", "target/leaves"];
        if leaf != "bench" {
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
