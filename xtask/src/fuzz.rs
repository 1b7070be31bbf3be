//! `cargo xtask fuzz`: the fuzz targets, one after the other.

use crate::command::{cargo, root, run};

/// Memory that one input may take: caches, tables and the harness itself stay far below it.
const MEMORY_MAX_MB: u32 = 2048;

fn run_targets(minutes: u64) -> Result<(), String> {
    let targets = root().join("fuzz/fuzz_targets");
    let entries = std::fs::read_dir(&targets).map_err(|e| format!("{}: {e}", targets.display()))?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            Some(name.strip_suffix(".rs")?.to_owned())
        })
        .collect();
    names.sort();
    for name in names {
        let mut command = cargo();
        // cargo-fuzz asks for sanitizer flags that stable compilers keep behind this.
        command.env("RUSTC_BOOTSTRAP", "1");
        command.args(["fuzz", "run", &name, "--"]);
        command.arg(format!("-max_total_time={}", minutes * 60));
        command.arg(format!("-rss_limit_mb={MEMORY_MAX_MB}"));
        run(&mut command)?;
    }
    Ok(())
}

pub(crate) fn run_fuzz(arguments: &[String]) -> Result<(), String> {
    let minutes = match arguments.first() {
        None => 1,
        Some(text) => text.parse().map_err(|_| format!("not a number of minutes: {text}"))?,
    };
    run_targets(minutes)
}
