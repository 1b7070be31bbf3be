//! `info` against qemu-img: every fixture, both outputs, whole chains.

mod common;

use common::{Bench, expect_none, opened_alike};
use cowl_testkit::{Feature, poke, read_at};
use serde_json::Value;

#[test]
fn text_for_people_is_the_same() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(opened_alike, |fixture| bench.run(&["info", &fixture.name]).difference());
}

#[test]
fn json_is_the_same_down_to_its_layout() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(opened_alike, |fixture| {
        let answers = bench.run(&["info", "--output=json", &fixture.name]);
        let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
        if parse(&answers.theirs.stdout) != parse(&answers.ours.stdout) {
            return Some(format!("{}: the values differ", answers.command));
        }
        answers.difference()
    });
}

#[test]
fn chains_are_followed_by_the_names_in_the_images() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(opened_alike, |fixture| {
        let human = bench.run(&["info", "--backing-chain", &fixture.name]).difference();
        let json = ["info", "--backing-chain", "--output=json", &fixture.name];
        human.or_else(|| bench.run(&json).difference())
    });
}

#[test]
fn stated_formats_are_believed() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(opened_alike, |fixture| {
        let raw = bench.run(&["info", "-f", "raw", &fixture.name]).difference();
        raw.or_else(|| bench.run(&["info", "-fqcow2", &fixture.name]).difference())
    });
}

#[test]
fn names_are_shown_as_they_were_given() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.path();
    std::fs::create_dir(folder.join("sub")).unwrap();
    let base = bench.set.copy(bench.set.named("zeros"), &folder.join("sub"));
    let top = bench.set.copy(bench.set.named("over-qcow2"), &folder.join("sub"));
    let odd = folder.join("n\u{e9}\t\"x.qcow2");
    std::fs::copy(base, odd).unwrap();
    let top = top.to_str().unwrap();
    expect_none(
        [
            vec!["info", "sub/over-qcow2"],
            vec!["info", "./sub/over-qcow2", "--backing-chain"],
            vec!["info", "--output=json", "sub/../sub/over-qcow2"],
            vec!["info", top],
            vec!["info", "file:sub/over-qcow2"],
            vec!["info", "--output=json", "n\u{e9}\t\"x.qcow2"],
            vec!["info", "json:{'driver':'qcow2','file':{'driver':'file','filename':'sub/zeros'}}"],
            vec!["info", "--image-opts", "driver=qcow2,file.driver=file,file.filename=sub/zeros"],
            vec!["info", "--image-opts", "file.filename=sub/zeros"],
            vec!["info", "-U", "--output", "json", "sub/zeros"],
        ]
        .iter()
        .filter_map(|arguments| bench.both.run(folder, arguments).difference())
        .collect(),
    );
}

#[test]
fn chains_that_come_back_to_themselves_end() {
    let Some(bench) = Bench::new() else { return };
    let folder = bench.path();
    for (name, backing) in [("a.qcow2", "b.qcow2"), ("b.qcow2", "a.qcow2")] {
        let arguments =
            ["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, name, "1M"];
        let made = cowl_testkit::run(cowl_testkit::Tool::Img, folder, &arguments);
        assert_eq!(made.code, 0, "{}", made.stderr);
    }
    let answers = bench.both.run(folder, &["info", "--backing-chain", "a.qcow2"]);
    assert_eq!(answers.difference(), None);
}

#[test]
fn snapshot_dates_are_local() {
    let Some(bench) = Bench::new() else { return };
    // The zone is inherited by both programs; whichever it is, the text has to agree.
    bench.for_each(
        |fixture| fixture.has(Feature::Snapshots),
        |fixture| bench.run(&["info", &fixture.name]).difference(),
    );
}

#[test]
fn machine_state_and_clocks_of_snapshots_are_shown() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.set.copy(bench.set.named("snapshots"), bench.path());
    let table = u64::from_be_bytes(read_at(&image, 64));
    poke(&image, table + 24, &123_456_789_012_345_u64.to_be_bytes());
    poke(&image, table + 40, &987_654_321_u64.to_be_bytes());
    poke(&image, table + 56, &u64::MAX.to_be_bytes());
    for arguments in [vec!["info", "snapshots"], vec!["info", "--output=json", "snapshots"]] {
        assert_eq!(bench.both.run(bench.path(), &arguments).difference(), None);
    }
}

#[test]
fn untrusted_images_name_no_other_file() {
    let Some(bench) = Bench::new() else { return };
    let alone = ["info", "--untrusted", "over-qcow2"];
    assert_eq!(bench.both.run_ours(&bench.set.directory, &alone).code, 0);
    let chain = ["info", "--untrusted", "--backing-chain", "over-qcow2"];
    let refused = bench.both.run_ours(&bench.set.directory, &chain);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("zeros"), "{}", refused.stderr);
}
