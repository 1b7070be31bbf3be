//! `cargo xtask fuzz`: the fuzz targets, one after the other.

use std::process::Command;

use crate::command::{root, run};

pub(crate) fn run_fuzz(arguments: &[String]) -> Result<(), String> {
    let minutes: u64 = match arguments.first() {
        None => 1,
        Some(text) => text.parse().map_err(|_| format!("not a number of minutes: {text}"))?,
    };
    // The script knows the limits and the sanitizer's options.
    let mut command = Command::new(root().join("fuzz/run"));
    command.args(["all", &(minutes * 60).to_string()]);
    run(&mut command)
}
