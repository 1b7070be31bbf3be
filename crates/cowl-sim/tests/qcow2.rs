//! The qcow2 engine on the simulated host.

use cowl_sim::{
    Effort, Extent, Plan, Qcow2Subject, SCENARIOS, SimWorld, Subject, SubjectKind, WorldOptions,
    drop_everywhere, run, run_calm,
};

/// Every shape that is drawn is a clean image that reads as it was made.
#[test]
fn new_images_of_every_shape_are_clean() {
    let mut snapshots = 0;
    for seed in 0..300 {
        let extent = if seed % 3 == 0 { Extent::Tiny } else { Extent::Full };
        let subject = Qcow2Subject::draw(seed, extent);
        let made = subject.make().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        snapshots += made.snapshots.len();
        let world = SimWorld::new(WorldOptions::calm(), made.files);
        let report = run_calm(subject.check(&world)).expect("not stuck").expect("has metadata");
        let report = report.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let shape = subject.shape();
        assert_eq!((report.corruptions, report.leaks), (0, 0), "{seed} {shape:?} {}", report.text);
        let read = run_calm(subject.snapshots(&world)).expect("not stuck");
        let read = read.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(read == made.snapshots, "seed {seed}: a snapshot differs");
    }
    assert!(10 < snapshots, "only {snapshots} snapshots were drawn");
}

/// On a host where lengths survive, and for disks that keep their size.
#[test]
fn histories_of_disks_of_one_size_break_no_rule() {
    for seed in 0..24 {
        let plan = Plan::new(SubjectKind::Qcow2, seed);
        let plan = Plan { keep_lengths: true, fixed_size: true, ..plan };
        let report = run(&plan, Effort::of(&plan));
        assert!(!report.has_failed(), "{report}");
    }
}

/// What a scenario is named after happens where power cuts are looked at, and every one of them is.
#[test]
fn tables_grow_in_sight() {
    let wanted = [
        ("l1-table-grows", "header-update 0x24"),
        ("refcount-block-is-added", "refcount-table"),
        ("refcount-table-grows", "header-update 0x30"),
    ];
    for (name, line) in wanted {
        let kind = SubjectKind::from_name(name).expect("there is one");
        let plan = Plan::new(kind, 1).exhaustive();
        let report = run(&plan, Effort { keep_log: true, ..Effort::of(&plan) });
        assert!(!report.has_failed(), "{report}");
        let setup = SCENARIOS.iter().find(|it| it.name == name).expect("it is one").setup_len();
        let looked_at = report
            .log
            .iter()
            .skip_while(|line| !line.starts_with(&format!("request {}", setup + 1)));
        assert!(looked_at.clone().any(|it| it.contains(line)), "{name}: no {line}");
        assert_eq!(report.moments.sampled, 0, "{name}");
    }
}

/// Each known way of going wrong, in several orders, with every crash state, likewise.
#[test]
fn every_crash_state_of_the_known_mistakes_is_legal() {
    let slow_or_growing = ["l1-table-grows", "refcount-table-grows"];
    for scenario in SCENARIOS.iter().filter(|it| !slow_or_growing.contains(&it.name)) {
        for seed in 0..2 {
            let plan = Plan::new(SubjectKind::Scenario(*scenario), seed).exhaustive();
            let plan = Plan { keep_lengths: true, ..plan };
            let report = run(&plan, Effort::of(&plan));
            assert!(!report.has_failed(), "{report}");
        }
    }
}

#[test]
fn a_request_may_be_dropped_wherever_it_waits() {
    let mut dropped = 0;
    for scenario in SCENARIOS {
        let plan = Plan::new(SubjectKind::Scenario(*scenario), 1);
        for report in drop_everywhere(&plan) {
            assert!(!report.has_failed(), "{report}");
            dropped += report.dropped;
        }
    }
    assert!(200 < dropped, "only {dropped} requests were dropped");
}

#[test]
fn histories_of_the_engine_break_no_rule() {
    for seed in 0..60 {
        let plan = Plan::new(SubjectKind::Qcow2, seed);
        let report = run(&plan, Effort::of(&plan));
        assert!(!report.has_failed(), "{report}");
    }
}

#[test]
fn every_crash_state_of_small_histories_is_legal() {
    // More of them: `cargo xtask sim --exhaustive`.
    let small = (0..3).map(|seed| Plan::new(SubjectKind::Qcow2, seed));
    let known = SCENARIOS.iter().map(|it| Plan::new(SubjectKind::Scenario(*it), 1));
    for plan in small.chain(known).map(Plan::exhaustive) {
        let report = run(&plan, Effort::of(&plan));
        assert!(!report.has_failed(), "{report}");
    }
}
