//! `map` against qemu-img: every fixture, both outputs, ranges.

mod common;

use common::{Bench, expect_none, opened_alike, readable};
use cowl_testkit::Feature;
use serde_json::Value;

#[test]
fn text_for_people_is_the_same() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(readable, |fixture| bench.run(&["map", &fixture.name]).difference());
}

#[test]
fn json_is_the_same() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(readable, |fixture| {
        let answers = bench.run(&["map", "--output=json", &fixture.name]);
        let parse = |text: &str| serde_json::from_str::<Value>(text).expect("JSON");
        assert_eq!(parse(&answers.theirs.stdout), parse(&answers.ours.stdout));
        answers.difference()
    });
}

#[test]
fn ranges_begin_and_end_where_they_are_told_to() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(readable, |fixture| {
        let ranges =
            [["-s", "64k", "-l", "1M"], ["-s", "1000", "-l", "70000"], ["-s", "1G", "-l", "1"]];
        ranges.iter().find_map(|range| {
            let mut arguments = vec!["map", "--output=json", &fixture.name];
            arguments.extend(range);
            bench.run(&arguments).difference()
        })
    });
}

#[test]
fn broken_tables_end_with_the_same_exit_code() {
    let Some(bench) = Bench::new() else { return };
    let broken = [Feature::Damaged, Feature::Unreadable, Feature::Uncheckable];
    bench.for_each(
        |fixture| opened_alike(fixture) && broken.iter().any(|feature| fixture.has(*feature)),
        |fixture| {
            let human = bench.run(&["map", &fixture.name]).difference_but_stderr();
            let json = ["map", "--output=json", &fixture.name];
            human.or_else(|| bench.run(&json).difference_but_stderr())
        },
    );
}

#[test]
fn images_that_cannot_be_opened_fail_alike() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(
        |fixture| {
            opened_alike(fixture)
                && (fixture.has(Feature::Unopenable) || fixture.has(Feature::BackingMissing))
        },
        |fixture| bench.run(&["map", &fixture.name]).difference(),
    );
    bench.for_each(
        |fixture| fixture.is_encrypted(),
        |fixture| bench.run(&["map", &fixture.name]).difference_but_stderr(),
    );
}

#[test]
fn a_backing_file_may_be_chosen_on_the_command_line() {
    let Some(bench) = Bench::new() else { return };
    expect_none(
        [
            "file.filename=over-qcow2,backing.driver=raw,backing.file.filename=raw-sparse",
            "file.filename=over-raw,backing.driver=qcow2,backing.file.filename=zeros",
            "driver=raw,file.filename=zeros",
        ]
        .iter()
        .filter_map(|image| {
            let arguments = ["map", "--output=json", "--image-opts", image];
            bench.run(&arguments).difference()
        })
        .collect(),
    );
    let without = "json:{'driver':'qcow2','file':{'filename':'over-qcow2'},'backing':null}";
    assert_eq!(bench.run(&["map", "--output=json", without]).difference(), None);
}

#[test]
fn untrusted_images_name_no_other_file() {
    let Some(bench) = Bench::new() else { return };
    for image in ["over-qcow2", "data-file"] {
        let refused = bench.both.run_ours(&bench.set.directory, &["map", "--untrusted", image]);
        assert_eq!((refused.code, refused.stdout.as_str()), (1, ""), "{image}");
    }
    let alone = bench.both.run_ours(&bench.set.directory, &["map", "--untrusted", "zeros"]);
    assert_eq!(alone.code, 0);
}
