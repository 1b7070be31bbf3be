//! `dd` against qemu-img: ranges of every kind of source, both formats.

mod common;

use common::{Bench, expect_none, readable};
use cowl_testkit::{Tool, run};

const RANGES: &[&str] = &[
    "bs=512",
    "bs=512 count=2 skip=1",
    "bs=1000 count=3",
    "bs=1000 skip=3",
    "bs=64k skip=1 count=20",
    "bs=1M skip=1",
    "bs=100000 skip=7",
    "count=0",
    "bs=3M",
    "bs=1M skip=9999",
    "skip=9223372036854775807",
];

/// What differs between both copies of `range` of `source`.
fn difference(bench: &Bench, source: &str, range: &str, format: &str) -> Option<String> {
    let [theirs, ours] = ["theirs", "ours"].map(|side| bench.path().join(side));
    let arguments = |target: &std::path::Path| {
        let mut arguments = vec!["dd".to_owned(), format!("if={source}")];
        arguments.push(format!("of={}", target.display()));
        arguments.extend(["-O", format].map(str::to_owned));
        arguments.extend(range.split(' ').map(str::to_owned));
        arguments
    };
    let answers = cowl_testkit::Answers {
        command: format!("qemu-img dd if={source} {range} -O {format}"),
        theirs: run(Tool::Img, &bench.set.directory, &arguments(&theirs)),
        ours: bench.both.run_ours(&bench.set.directory, &arguments(&ours)),
    };
    let compare = ["compare", "-s", "-f", format, "-F", format, "theirs", "ours"];
    let compared = run(Tool::Img, bench.path(), &compare);
    let checked = run(Tool::Img, bench.path(), &["check", "-f", format, "ours"]);
    let same_content = compared.code == 0 || compared.stdout.contains("block status mismatch");
    answers.difference().or_else(|| {
        let fine = same_content && [0, 63].contains(&checked.code);
        (!fine).then(|| format!("{}: {}{}", answers.command, compared.stdout, checked.stderr))
    })
}

#[test]
fn ranges_are_copied_alike() {
    let Some(bench) = Bench::new() else { return };
    let mut differences = Vec::new();
    for source in ["zeros", "raw-odd", "over-raw-shorter", "zlib-mixed", "raw-empty"] {
        for range in RANGES {
            for format in ["raw", "qcow2"] {
                differences.extend(difference(&bench, source, range, format));
            }
        }
    }
    expect_none(differences);
}

#[test]
fn every_kind_of_image_can_be_a_source() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(
        |fixture| readable(fixture) && fixture.name != "l2-sparse",
        |fixture| difference(&bench, &fixture.name, "bs=4k skip=3", "raw"),
    );
}

#[test]
fn failures_are_told_in_the_same_words() {
    let Some(bench) = Bench::new() else { return };
    expect_none(
        [
            "dd if=nowhere of=b",
            "dd -O nope if=nowhere of=b",
            "dd -O nope if=zeros of=b",
            "dd -f qcow2 if=raw-hole of=b",
            "dd if=zeros of=nowhere/b",
            "dd -O qcow2 if=zeros of=nowhere/b",
            "dd if=zeros of=.",
        ]
        .iter()
        .filter_map(|line| {
            let arguments: Vec<&str> = line.split(' ').collect();
            bench.run(&arguments).difference()
        })
        .collect(),
    );
    assert!(!bench.set.directory.join("b").exists(), "a failed command left a file");
}

#[test]
fn under_its_own_name_count_begins_behind_skip() {
    let Some(bench) = Bench::new() else { return };
    let copy = bench.path().join("copy");
    let target = format!("of={}", copy.display());
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cowl"));
    let input = format!("if={}", bench.set.directory.join("raw-odd").display());
    command.args(["dd", &input, &target, "bs=512", "skip=2", "count=2"]);
    assert_eq!(cowl_testkit::Output::of(&mut command).code, 0);
    assert_eq!(std::fs::metadata(&copy).unwrap().len(), 1024);
    std::fs::remove_file(&copy).unwrap();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_cowl"));
    command.args(["dd", &input, &target, "skip=1G"]);
    assert_eq!(cowl_testkit::Output::of(&mut command).code, 1);
    assert!(!copy.exists());
}
