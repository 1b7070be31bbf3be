//! `cargo xtask tidy`: rules of the project that no compiler knows.
//!
//! | rule          | what it keeps                                                        |
//! |---------------|----------------------------------------------------------------------|
//! | edges         | crates depend only downwards, as ARCHITECTURE.md draws it            |
//! | head          | every source file says in its first line what it is                  |
//! | width         | lines of code and comment have at most 100 columns                   |
//! | size          | a file of code stays below a number of lines, a function too         |
//! | words         | no glob import of a parent, nothing marked unfinished                |
//! | unsafe        | only in `sys` modules of cowl-storage                                |
//! | on disk       | docs/internals/on_disk.md was looked at since cowl-format changed    |

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::command::{cargo, root};
use crate::say;

/// Columns of a line.
const WIDTH_MAX: usize = 100;

/// Lines of code of a file, its tests not counted. Past it, look for the second noun.
const FILE_LINES_MAX: usize = 600;

/// Lines of a function.
const FUNCTION_LINES_MAX: usize = 70;

/// Who may depend on whom. Every crate of the workspace is here.
const EDGES: &[(&str, &[&str])] = &[
    ("cowl-format", &[]),
    ("cowl-zstd", &[]),
    ("cowl-storage", &["cowl-format"]),
    ("cowl-block", &["cowl-format", "cowl-storage"]),
    ("cowl-qcow2", &["cowl-format", "cowl-storage", "cowl-block", "cowl-zstd"]),
    ("cowl", &["cowl-format", "cowl-storage", "cowl-block", "cowl-qcow2"]),
    (
        "cowl-tools",
        &[
            "cowl-format",
            "cowl-storage",
            "cowl-block",
            "cowl-qcow2",
            "cowl",
            "cowl-nbd",
            "cowl-sim",
        ],
    ),
    (
        "cowl-cli",
        &[
            "cowl-format",
            "cowl-storage",
            "cowl-block",
            "cowl-qcow2",
            "cowl",
            "cowl-nbd",
            "cowl-fuse",
            "cowl-serve",
            "cowl-tools",
        ],
    ),
    (
        "cowl-serve",
        &[
            "cowl-format",
            "cowl-storage",
            "cowl-qcow2",
            "cowl",
            "cowl-nbd",
            "cowl-vhost-user",
            "cowl-fuse",
            "cowl-serverkit",
            "cowl-tools",
        ],
    ),
    // Their tests serve images that the library opens; the servers themselves know no format.
    ("cowl-nbd", &["cowl-format", "cowl-storage", "cowl-block", "cowl-serverkit"]),
    ("cowl-vhost-user", &["cowl-format", "cowl-storage", "cowl-block", "cowl-serverkit"]),
    ("cowl-fuse", &["cowl-format", "cowl-storage", "cowl-block", "cowl-serverkit"]),
    ("cowl-serverkit", &["cowl-storage"]),
    ("cowl-testkit", &["cowl-format"]),
    (
        "cowl-fuzz-bodies",
        &["cowl-format", "cowl-storage", "cowl-block", "cowl-qcow2", "cowl-nbd", "cowl-zstd"],
    ),
    ("cowl-sim", &["cowl-format", "cowl-storage", "cowl-block", "cowl-qcow2"]),
    ("xtask", &[]),
];

/// Crates that only tests may use, so an edge to them counts only outside dev-dependencies.
const DEV_ONLY: &[&str] = &["cowl-testkit", "cowl-fuzz-bodies"];

/// Edges that tests have and the crates themselves must not.
const DEV_EDGES: &[(&str, &str)] =
    &[("cowl-nbd", "cowl"), ("cowl-vhost-user", "cowl"), ("cowl-fuse", "cowl")];

pub(crate) fn run() -> Result<(), String> {
    say("\n== tidy\n");
    let mut faults = Vec::new();
    check_edges(&mut faults)?;
    for path in source_files()? {
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
        check_file(&name, &text, &mut faults);
    }
    check_on_disk(&mut faults)?;
    match faults.as_slice() {
        [] => Ok(()),
        faults => Err(format!("tidy found {} faults:\n{}", faults.len(), faults.join("\n"))),
    }
}

fn check_edges(faults: &mut Vec<String>) -> Result<(), String> {
    let output = cargo()
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .output()
        .map_err(|error| format!("cargo metadata: {error}"))?;
    let metadata: Value = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("cargo metadata: {error}"))?;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = EDGES.iter().find(|(known, _)| *known == name) else {
            faults.push(format!("edge: {name} is not on the map: see EDGES, ARCHITECTURE.md"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let is_dev = dependency["kind"].as_str() == Some("dev");
            let is_ours = EDGES.iter().any(|(known, _)| *known == to);
            let for_tests = DEV_ONLY.contains(&to) || DEV_EDGES.contains(&(name, to));
            if is_ours && !allowed.contains(&to) && !(is_dev && for_tests) {
                faults.push(format!("edge: {name} must not depend on {to}"));
            }
        }
    }
    Ok(())
}

/// Files that git knows or would know, so that build output never counts.
fn source_files() -> Result<Vec<PathBuf>, String> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .current_dir(root())
        .output()
        .map_err(|error| format!("git ls-files: {error}"))?;
    let names = String::from_utf8_lossy(&output.stdout).into_owned();
    let files: Vec<PathBuf> =
        names.lines().map(|name| root().join(name)).filter(|path| path.is_file()).collect();
    match files.is_empty() {
        true => Err("git ls-files names no source file".to_owned()),
        false => Ok(files),
    }
}

fn check_file(name: &str, text: &str, faults: &mut Vec<String>) {
    let is_test_data = name.contains("/fixtures/");
    if is_test_data {
        return;
    }
    if !text.starts_with("//!") && !text.starts_with("#!") {
        faults.push(format!("head: {name}:1 does not start with a //! line"));
    }
    for (line, number) in text.lines().zip(1..) {
        if WIDTH_MAX < line.chars().count() && !is_unbreakable(line) {
            faults.push(format!("width: {name}:{number} has more than {WIDTH_MAX} columns"));
        }
        check_words(name, number, line, faults);
    }
    let code = text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = code.lines().count();
    if FILE_LINES_MAX < lines {
        faults.push(format!("size: {name} has {lines} lines, more than {FILE_LINES_MAX}"));
    }
    if !name.contains("/tests/") {
        check_functions(name, code, faults);
    }
}

/// Lines that nobody can break: links, attributes of property tests, and tests whose claim is long.
fn is_unbreakable(line: &str) -> bool {
    line.contains("http")
        || line.contains("proptest_config")
        || line.trim_start().starts_with("fn ")
}

fn check_words(name: &str, number: usize, line: &str, faults: &mut Vec<String>) {
    if name.starts_with("xtask/") {
        return;
    }
    for word in ["use super::*", "todo!(", "unimplemented!(", "FIXME", "XXX"] {
        if line.contains(word) {
            faults.push(format!("words: {name}:{number} contains {word}"));
        }
    }
    let is_sys = name.contains("/sys/") || name.ends_with("/sys.rs");
    // The leaf outside the workspace measures with bare system calls: nothing may stand between.
    let is_leaf = name.starts_with("fuzz/") || name.starts_with("bench-compare/");
    let is_harness = is_leaf || name.contains("/tests/");
    if line.contains("unsafe {") && !is_sys && !is_harness {
        faults.push(format!("unsafe: {name}:{number} is not in a sys module"));
    }
}

/// Lengths of functions, found by indentation: the formatter puts the closing brace below its `fn`.
fn check_functions(name: &str, code: &str, faults: &mut Vec<String>) {
    let lines: Vec<&str> = code.lines().collect();
    let mut open: Option<(usize, usize, String)> = None;
    for (line, number) in code.lines().zip(1..) {
        let indent = line.len() - line.trim_start().len();
        match &open {
            None if is_function_head(line) && !line.trim_end().ends_with(';') => {
                open = Some((indent, number, line.trim().to_owned()));
            }
            Some((start, first, head)) if indent == *start && line.trim_start() == "}" => {
                let length = number - first + 1;
                let body = &lines[*first..number - 1];
                if FUNCTION_LINES_MAX < length && !is_one_match(body) {
                    faults.push(format!("size: {name}:{first} has {length} lines: {head}"));
                }
                open = None;
            }
            _ => {}
        }
    }
}

/// A body that is one `match`, an arm for each variant: long, but straight.
fn is_one_match(body: &[&str]) -> bool {
    let Some((first, last)) = body.first().zip(body.last()) else { return false };
    let indent = |line: &str| line.len() - line.trim_start().len();
    let closes = |line: &&str| line.trim() == "}" && indent(line) == indent(first);
    first.trim_start().starts_with("match ")
        && closes(last)
        && body.iter().filter(|line| closes(line)).count() == 1
}

fn is_function_head(line: &str) -> bool {
    let words = line.trim_start();
    let is_one_line = words.ends_with('}');
    let starts = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn "];
    let asyncs = ["pub async fn ", "pub(crate) async fn ", "pub(super) async fn ", "const fn "];
    !is_one_line && starts.iter().chain(&asyncs).any(|start| words.starts_with(start))
}

const ON_DISK: &str = "docs/internals/on_disk.md";

/// The document ends with a fingerprint of the sources it describes.
fn check_on_disk(faults: &mut Vec<String>) -> Result<(), String> {
    let path = root().join(ON_DISK);
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    if !text.contains(&fingerprint_line()?) {
        faults.push(format!(
            "on disk: cowl-format changed since {ON_DISK} was last looked at; read it, mend it, \
             then run: cargo xtask on-disk"
        ));
    }
    Ok(())
}

pub(crate) fn accept_on_disk() -> Result<(), String> {
    let path = root().join(ON_DISK);
    let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("<!-- sources ")).collect();
    let text = format!("{}\n\n{}\n", kept.join("\n").trim_end(), fingerprint_line()?);
    fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn fingerprint_line() -> Result<String, String> {
    let mut files: Vec<PathBuf> = source_files()?
        .into_iter()
        .filter(|path| path.starts_with(root().join("crates/cowl-format/src")))
        .collect();
    files.sort();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for file in files {
        for byte in read_code(&file)?.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    Ok(format!("<!-- sources {hash:016x} -->"))
}

/// The code of a file without its tests.
fn read_code(path: &Path) -> Result<String, String> {
    let text = fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(text.split("\n#[cfg(test)]").next().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::check_file;

    fn faults(name: &str, text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        check_file(name, text, &mut faults);
        faults
    }

    #[test]
    fn a_clean_file_has_no_faults() {
        assert!(faults("crates/a/src/b.rs", "//! What it is.\n\nfn f() {\n}\n").is_empty());
    }

    #[test]
    fn each_rule_finds_its_fault() {
        let long = format!("//! x\n// {}\n", "y".repeat(100));
        assert!(faults("a.rs", "fn f() {}\n")[0].starts_with("head"));
        assert!(faults("a.rs", &long)[0].starts_with("width"));
        assert!(faults("a.rs", "//! x\nuse super::*;\n")[0].starts_with("words"));
        assert!(faults("a/src/b.rs", "//! x\nunsafe {\n")[0].starts_with("unsafe"));
        assert!(faults("a/src/sys/b.rs", "//! x\nunsafe {\n").is_empty());
        let many = format!("//! x\n{}", "let a = 1;\n".repeat(700));
        assert!(faults("a.rs", &many)[0].starts_with("size"));
        let body = "    let a = 1;\n".repeat(80);
        assert!(faults("a.rs", &format!("//! x\nfn f() {{\n{body}}}\n"))[0].starts_with("size"));
    }
}
