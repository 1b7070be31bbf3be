//! `check` against qemu-img: counters, findings and exit codes of sound and damaged images.

mod common;

use common::{Bench, opened_alike};
use cowl_testkit::{Feature, Fixture};
use serde_json::Value;

/// Images that both programs check. Ours opens no other file and needs no password, so it also
/// checks what qemu-img cannot.
fn checked_by_both(fixture: &Fixture) -> bool {
    opened_alike(fixture)
        && !fixture.is_encrypted()
        && !fixture.has(Feature::BackingMissing)
        && !fixture.has(Feature::Uncheckable)
        // qemu-img has words of its own for this table when it checks.
        && fixture.name != "snapshots-too-many"
}

#[test]
fn text_for_people_and_findings_are_the_same() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(checked_by_both, |fixture| bench.run(&["check", &fixture.name]).difference());
}

#[test]
fn json_is_the_same() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(checked_by_both, |fixture| {
        let answers = bench.run(&["check", "--output=json", &fixture.name]);
        let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
        if parse(&answers.theirs.stdout) != parse(&answers.ours.stdout) {
            return Some(format!("{}: the values differ", answers.command));
        }
        answers.difference()
    });
}

#[test]
fn quiet_leaves_findings_and_exit_code() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(checked_by_both, |fixture| {
        bench.run(&["check", "-q", "-f", fixture.format(), &fixture.name]).difference()
    });
}

#[test]
fn what_cannot_be_checked_is_1() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(
        |fixture| fixture.has(Feature::Uncheckable),
        |fixture| bench.run(&["check", &fixture.name]).difference_but_stderr(),
    );
}

#[test]
fn encrypted_images_and_lonely_overlays_can_be_checked() {
    let Some(bench) = Bench::new() else { return };
    bench.for_each(
        |fixture| fixture.is_encrypted() || fixture.has(Feature::BackingMissing),
        |fixture| {
            let ours = bench.both.run_ours(&bench.set.directory, &["check", &fixture.name]);
            (ours.code != 0).then(|| format!("{}: {}", fixture.name, ours.stderr))
        },
    );
}

#[test]
fn repair_is_refused_and_changes_nothing() {
    let Some(bench) = Bench::new() else { return };
    let image = bench.set.copy(bench.set.named("leaks"), bench.path());
    let before = std::fs::read(&image).unwrap();
    let refused = bench.both.run_ours(bench.path(), &["check", "-r", "all", "leaks"]);
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("not available"), "{}", refused.stderr);
    assert_eq!(std::fs::read(&image).unwrap(), before);
}
