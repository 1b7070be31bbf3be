//! `cargo xtask sanitize`: tests under Miri, the address sanitizer and the thread sanitizer.
//!
//! All three need a nightly toolchain, so they are no part of `cargo xtask ci`. What runs under
//! which, and what does not, is in docs/internals/testing.md.

use std::path::PathBuf;
use std::process::Command;

use crate::command::{root, run};

/// Sanitizers are built for a named target, so that build scripts stay as they are.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Seeds of each test of weak memory.
const SEEDS: u32 = 16;

/// Files of the host, which Miri does not have.
const NOT_UNDER_MIRI: &[&str] = &["replacement::"];

/// Tests of `cowl-qcow2` that call C code, or are long and meet neither a thread nor our `unsafe`;
/// and those that run with many seeds.
const LEFT_OUT_OF_MIRI: &[&str] = &[
    "threads_that_load_and_evict_at_once",
    "check::references",
    "create::host_space",
    "mapping::l1_table",
    "request::compress",
    "request::decompress",
    "weak_memory::",
];

pub(crate) fn run_sanitize(arguments: &[String]) -> Result<(), String> {
    let kind = arguments.first().map_or("", String::as_str);
    match kind {
        "miri" => miri(),
        "address" => address(),
        "thread" => thread(),
        "" => miri().and_then(|()| address()).and_then(|()| thread()),
        other => Err(format!("no such sanitizer: {other} (miri, address, thread)")),
    }
}

/// Both models of borrows over the tests without threads; many seeds over those of weak memory.
fn miri() -> Result<(), String> {
    require("miri", &["miri", "rust-src"])?;
    for flags in ["", "-Zmiri-tree-borrows"] {
        run(&mut skipping(miri_test("cowl-storage", flags), NOT_UNDER_MIRI))?;
        run(&mut skipping(miri_test("cowl-qcow2", flags), LEFT_OUT_OF_MIRI))?;
    }
    let flags = format!("-Zmiri-preemption-rate=0.1 -Zmiri-many-seeds=0..{SEEDS}");
    run(miri_test("cowl-qcow2", &flags).args(["--", "weak_memory::"]))
}

/// The ring's driver, files and locks; and whole disks with many requests in flight.
fn address() -> Result<(), String> {
    require("address", &[])?;
    let flags = "-Zsanitizer=address";
    run(sanitized("address", flags).args(["--package", "cowl-storage"]))?;
    run(whole_disks(&mut sanitized("address", flags)))
}

/// The drivers, with a standard library that is watched too.
fn thread() -> Result<(), String> {
    require("thread", &["rust-src"])?;
    let mut command = sanitized("thread", "-Zsanitizer=thread");
    run(command.args(["-Zbuild-std", "--package", "cowl-storage", "--test", "storage"]))
}

fn whole_disks(command: &mut Command) -> &mut Command {
    command.args(["--package", "cowl", "--test", "in_flight", "--test", "concurrent"])
}

fn miri_test(package: &str, flags: &str) -> Command {
    let mut command = nightly();
    command.args(["miri", "test", "--package", package, "--lib"]);
    command.env("MIRIFLAGS", flags);
    command
}

fn skipping(mut command: Command, names: &[&str]) -> Command {
    command.arg("--");
    for name in names {
        command.args(["--skip", name]);
    }
    command
}

/// `cargo test` in a folder of its own: what one sanitizer has built is of no use to others.
fn sanitized(kind: &str, flags: &str) -> Command {
    let built = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
    let mut command = nightly();
    command.args(["test", "--target", TARGET, "--target-dir"]);
    command.arg(built.join(format!("sanitize-{kind}")));
    command.env("RUSTFLAGS", flags);
    command
}

/// The nightly cargo. The one that runs us would not look at `+nightly`.
fn nightly() -> Command {
    let mut command = Command::new("rustup");
    command.current_dir(root()).args(["run", "nightly", "cargo"]);
    command
}

/// An error that says what to install, unless the toolchain has what it takes.
fn require(kind: &str, components: &[&str]) -> Result<(), String> {
    let mut command = Command::new("rustup");
    command.args(["component", "list", "--toolchain", "nightly", "--installed"]);
    let output = command.output().map_err(|error| format!("rustup: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "`sanitize {kind}` needs a nightly toolchain: rustup toolchain install nightly"
        ));
    }
    let installed = String::from_utf8_lossy(&output.stdout);
    match missing(&installed, components) {
        found if found.is_empty() => Ok(()),
        found => Err(format!(
            "`sanitize {kind}` needs: rustup component add {} --toolchain nightly",
            found.join(" ")
        )),
    }
}

/// Components that rustup's list does not have. It adds the target to most names.
fn missing<'a>(installed: &str, components: &[&'a str]) -> Vec<&'a str> {
    let has = |name: &str| {
        installed.lines().any(|line| line == name || line == format!("{name}-{TARGET}"))
    };
    components.iter().copied().filter(|name| !has(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::missing;

    #[test]
    fn a_component_is_there_with_or_without_its_target() {
        let installed = "cargo-x86_64-unknown-linux-gnu\nmiri-x86_64-unknown-linux-gnu\nrust-src\n";
        assert!(missing(installed, &["miri", "rust-src"]).is_empty());
        assert_eq!(missing("rust-src\n", &["miri", "rust-src"]), ["miri"]);
    }
}
