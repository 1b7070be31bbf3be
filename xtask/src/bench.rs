//! `cargo xtask bench`: side by side with others, or the bodies of `bench/` one by one.
//!
//! A body's instructions are counted by callgrind within one function, for N operations and for 2N;
//! the difference divided by N leaves out what only the first operations do. Such a count is the
//! same in every run, on a busy machine too, where a time is not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::command::{cargo, exists, root, run};
use crate::say;

/// The function within which instructions count, whatever the compiler adds to its name.
const COUNTED: &str = "*measured_operation*";

pub(crate) fn run_bench(arguments: &[String]) -> Result<(), String> {
    match arguments {
        [first, rest @ ..] if first == "micro" => run_micro(rest),
        _ => run_compare(arguments),
    }
}

fn run_compare(arguments: &[String]) -> Result<(), String> {
    let mut command = cargo();
    command.args(["run", "--release", "--manifest-path", "bench-compare/Cargo.toml", "--"]);
    run(command.args(arguments))
}

/// What is measured, and where the figures go.
struct Options {
    times: bool,
    json: Option<PathBuf>,
}

/// Copies and fills as loops of instructions: callgrind counts each byte of the single instruction
/// that the C library has for long ones, and they would outweigh everything else.
const NO_LONG_COPIES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.cpu.x86_rep_movsb_threshold=0x7fffffff:glibc.cpu.x86_rep_stosb_threshold=0x7fffffff",
);

/// A body as `instructions` lists it.
struct Body {
    name: String,
    unit: String,
    operations: u64,
}

fn run_micro(arguments: &[String]) -> Result<(), String> {
    let options = parse(arguments)?;
    let has_valgrind = exists("valgrind");
    if options.json.is_some() && !has_valgrind {
        return Err("valgrind is not installed, so there are no counts for --json".to_owned());
    }
    let target = match std::env::var_os("CARGO_TARGET_DIR") {
        Some(target) => root().join(target),
        None => root().join("bench/target"),
    };
    if options.times {
        let words = ["bench", "--manifest-path", "bench/Cargo.toml", "--bench", "micro"];
        run(cargo().args(words).arg("--target-dir").arg(&target))?;
    }
    if !has_valgrind {
        say("\nSKIPPED: valgrind is not installed, so no instruction was counted\n");
        return Ok(());
    }
    let words = ["build", "--release", "--manifest-path", "bench/Cargo.toml"];
    let program = ["--bin", "instructions", "--target-dir"];
    run(cargo().args(words).args(program).arg(&target))?;
    let counts = count_all(&target.join("release/instructions"), &target.join("callgrind"))?;
    match options.json {
        None => Ok(()),
        Some(path) => write_json(&path, &counts),
    }
}

fn parse(arguments: &[String]) -> Result<Options, String> {
    let mut options = Options { times: true, json: None };
    let mut words = arguments.iter();
    while let Some(word) = words.next() {
        match (word.as_str(), words.as_slice().first()) {
            ("--counts", _) => options.times = false,
            ("--json", Some(path)) => {
                options.json = Some(PathBuf::from(path));
                words.next();
            }
            _ => return Err("bench micro takes --counts and --json FILE".to_owned()),
        }
    }
    Ok(options)
}

/// Counts every body and prints a line for each, as soon as it is known.
fn count_all(program: &Path, folder: &Path) -> Result<Vec<(Body, f64)>, String> {
    fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    say(&format!("\n{:<26} {:>13}  for each\n", "operation", "instructions"));
    let mut counts = Vec::new();
    for body in bodies(program)? {
        let half = body.operations / 2;
        let first = count(program, folder, &body.name, half)?;
        let both = count(program, folder, &body.name, 2 * half)?;
        let more = both.checked_sub(first).ok_or("twice the work took fewer instructions")?;
        let each = more as f64 / half as f64;
        say(&format!("{:<26} {each:>13.0}  {}\n", body.name, body.unit));
        counts.push((body, each));
    }
    say(&format!("\nwhere they went: callgrind_annotate {}/NAME.COUNT\n", folder.display()));
    Ok(counts)
}

fn bodies(program: &Path) -> Result<Vec<Body>, String> {
    let output = Command::new(program)
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().map(|line| body(line).ok_or(format!("not a body: {line}"))).collect()
}

fn body(line: &str) -> Option<Body> {
    let mut words = line.split('\t');
    let name = words.next()?.to_owned();
    let operations = words.next()?.parse().ok().filter(|operations| 2 <= *operations)?;
    Some(Body { name, operations, unit: words.next()?.to_owned() })
}

/// The instructions of so many operations.
fn count(program: &Path, folder: &Path, name: &str, operations: u64) -> Result<u64, String> {
    let out = folder.join(format!("{}.{operations}", name.replace('/', "-")));
    let mut command = Command::new("valgrind");
    command
        .env(NO_LONG_COPIES.0, NO_LONG_COPIES.1)
        .args(["--quiet", "--tool=callgrind"])
        .arg(format!("--toggle-collect={COUNTED}"))
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args([name, &operations.to_string()]);
    let output = command.output().map_err(|error| format!("valgrind: {error}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{name} under valgrind: {}\n{text}", output.status));
    }
    let text = fs::read_to_string(&out).map_err(|error| format!("{}: {error}", out.display()))?;
    total(&text).ok_or(format!("{}: no instruction was counted", out.display()))
}

/// The sum in a file of callgrind; `None` when nothing was counted.
fn total(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("totals:"))?;
    line.trim().parse().ok().filter(|total| *total != 0)
}

fn write_json(path: &Path, counts: &[(Body, f64)]) -> Result<(), String> {
    let mut rows: Vec<Value> = Vec::new();
    for (body, each) in counts {
        let (name, unit) = (&body.name, &body.unit);
        rows.push(json!({ "name": name, "unit": unit, "instructions": each }));
    }
    let text = format!("{:#}\n", json!({ "counts": rows }));
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::{body, parse, total};

    fn words(line: &str) -> Vec<String> {
        line.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_are_known_words_only() {
        assert!(parse(&[]).unwrap().times);
        let options = parse(&words("--counts --json a.json")).unwrap();
        assert!(!options.times);
        assert_eq!(options.json.unwrap().to_str(), Some("a.json"));
        assert!(parse(&words("--json")).is_err());
        assert!(parse(&words("--quick")).is_err());
    }

    #[test]
    fn a_file_without_counts_is_no_result() {
        assert_eq!(total("fn=(1) x\n+1 7\ntotals: 1234\n"), Some(1234));
        assert_eq!(total("totals: 0\n"), None);
        assert_eq!(total("summary: 9\n"), None);
    }

    #[test]
    fn a_body_has_a_name_two_operations_and_a_unit() {
        let found = body("write/in-place\t2000\twrite of 4 KiB").unwrap();
        assert_eq!(
            (found.name.as_str(), found.operations, found.unit.as_str()),
            ("write/in-place", 2000, "write of 4 KiB")
        );
        assert!(body("write/in-place\t1\twrite of 4 KiB").is_none());
        assert!(body("write/in-place").is_none());
    }
}
