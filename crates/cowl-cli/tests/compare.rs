//! `compare` against qemu-img: pairs of fixtures, strictness, exit codes.

mod common;

use common::{Bench, expect_none, readable};
use cowl_testkit::{Tool, poke};

/// A raw copy of the fixture `name`, made by the oracle.
fn raw_copy(bench: &Bench, name: &str) -> String {
    let copy = bench.path().join(format!("{name}.raw"));
    let copy = copy.to_str().expect("text").to_owned();
    let arguments = ["convert", "-O", "raw", name, &copy];
    let made = cowl_testkit::run(Tool::Img, &bench.set.directory, &arguments);
    assert_eq!(made.code, 0, "{name}: {}", made.stderr);
    copy
}

#[test]
fn an_image_is_identical_to_its_raw_copy() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(
        |fixture| readable(fixture) && fixture.name != "l2-sparse",
        |fixture| {
            let copy = raw_copy(&bench, &fixture.name);
            let answers = bench.run(&["compare", &fixture.name, &copy]);
            std::fs::remove_file(copy).unwrap();
            let identical = answers.ours.stdout == "Images are identical.\n";
            let found = answers.difference();
            found.or_else(|| (!identical).then(|| format!("{}: not identical", fixture.name)))
        },
    );
}

#[test]
fn pairs_differ_at_the_same_place() {
    let Some(bench) = Bench::new() else { return };
    let fixtures: Vec<_> = bench.set.fixtures.iter().filter(|fixture| readable(fixture)).collect();
    let mut differences = Vec::new();
    // Each with its neighbour and with one further away: all kinds meet all others somewhere.
    for distance in [1, 7] {
        for (first, second) in fixtures.iter().zip(fixtures.iter().skip(distance)) {
            let answers = bench.run(&["compare", &first.name, &second.name]);
            differences.extend(answers.difference());
        }
    }
    expect_none(differences);
}

#[test]
fn a_changed_byte_is_found_in_its_sector() {
    let Some(bench) = Bench::new() else { return };
    let mut differences = Vec::new();
    for offset in [0, 511, 512, 1_000_000, 3 * (1 << 20) + 77, (4 << 20) - 1] {
        let copy = raw_copy(&bench, "zeros");
        let [before] = cowl_testkit::read_at(copy.as_ref(), offset);
        poke(copy.as_ref(), offset, &[before ^ 1]);
        let answers = bench.run(&["compare", "zeros", &copy]);
        assert_eq!(answers.ours.code, 1);
        differences.extend(answers.difference());
    }
    expect_none(differences);
}

#[test]
fn strict_comparison_judges_sizes_and_allocation() {
    let Some(bench) = Bench::new() else { return };
    expect_none(
        [
            vec!["compare", "-s", "zeros", "zeros"],
            vec!["compare", "-s", "empty", "size-0"],
            vec!["compare", "-s", "empty", "raw-hole"],
            vec!["compare", "-s", "raw-sparse", "raw-sparse"],
            vec!["compare", "-sq", "empty", "size-0"],
            vec!["compare", "-q", "zeros", "raw-sparse"],
            vec!["compare", "-f", "raw", "-F", "raw", "zeros", "zeros"],
            vec!["compare", "-f", "raw", "-F", "qcow2", "zeros", "zeros"],
            vec![
                "compare",
                "--image-opts",
                "file.filename=zeros",
                "driver=raw,file.filename=zeros",
            ],
        ]
        .iter()
        .filter_map(|arguments| bench.run(arguments).difference())
        .collect(),
    );
}

#[test]
fn failures_have_codes_of_their_own() {
    let Some(bench) = Bench::new() else { return };
    let code = |arguments: &[&str]| {
        let answers = bench.run(arguments);
        assert_eq!(answers.difference_but_stderr(), None);
        answers.ours.code
    };
    assert_eq!(code(&["compare", "zeros"]), 1);
    assert_eq!(code(&["compare", "zeros", "nowhere"]), 2);
    assert_eq!(code(&["compare", "zeros", "luks"]), 2);
    assert_eq!(code(&["compare", "l1-misaligned", "zeros"]), 3);
}

#[test]
fn progress_ends_on_a_line_of_its_own() {
    let Some(bench) = Bench::new() else { return };
    let answers = bench.run(&["compare", "-p", "empty", "empty"]);
    assert_eq!(
        answers.ours.stdout,
        "    (0.00/100%)\r    (100.00/100%)\rImages are identical.\n\n"
    );
    assert_eq!(answers.difference(), None);
    let lines = bench
        .both
        .run_ours(&bench.set.directory, &["compare", "--progress=jsonl", "zeros", "zeros"]);
    assert_eq!(lines.stdout, "Images are identical.\n");
    let last = lines.stderr.lines().last().unwrap();
    let last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["operation"], "compare");
    assert_eq!(last["percent"], 100.0);
}
