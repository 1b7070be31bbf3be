//! The harness itself: it catches every mistake it was built for, and only those; and it does the
//! same twice.

use cowl_sim::{Effort, Plan, Report, SubjectKind, ToyFault, outline, run, shrink};

/// Histories in which a mistake must have been caught.
const SEEDS: u64 = 40;

fn first_failure(fault: ToyFault) -> Report {
    let plans = (0..SEEDS).flat_map(|seed| {
        let plan = Plan::new(SubjectKind::Toy(fault), seed);
        [plan.clone(), plan.exhaustive()]
    });
    let failing = plans.map(|plan| run(&plan, Effort::of(&plan))).find(Report::has_failed);
    failing.unwrap_or_else(|| panic!("{} was not caught in {SEEDS} seeds", fault.name()))
}

fn check_caught(fault: ToyFault, text: &str) {
    let report = first_failure(fault);
    let found = report.to_string();
    assert!(found.contains(text), "{} was caught as something else: {found}", fault.name());
    let replayed = run(&report.plan, Effort::of(&report.plan));
    assert_eq!(replayed.violations, report.violations, "a replay does the same");
}

#[test]
fn a_flush_without_a_barrier_is_caught() {
    check_caught(ToyFault::FlushWithoutBarrier, "guest bytes");
}

#[test]
fn stale_bytes_are_caught() {
    check_caught(ToyFault::StaleRead, "of this address; legal are");
}

#[test]
fn a_lost_write_is_caught() {
    check_caught(ToyFault::LostWrite, "legal are");
}

#[test]
fn bytes_of_another_address_are_caught() {
    check_caught(ToyFault::ForeignRead, "of address");
}

#[test]
fn a_pointer_that_overtakes_its_data_is_caught() {
    check_caught(ToyFault::PointerBeforeData, "guest bytes");
}

#[test]
fn sound_disks_pass() {
    let mut faults = 0;
    for kind in [SubjectKind::Raw, SubjectKind::Toy(ToyFault::None)] {
        for seed in 0..SEEDS {
            let plan = Plan::new(kind, seed);
            for plan in [plan.clone(), plan.exhaustive()] {
                let report = run(&plan, Effort::of(&plan));
                assert!(!report.has_failed(), "{report}");
                faults += report.faults;
            }
        }
    }
    assert!(10 < faults, "only {faults} faults were injected");
}

#[test]
fn one_seed_gives_one_log() {
    check_repeats(&[SubjectKind::Raw, SubjectKind::Toy(ToyFault::None)]);
}

#[test]
fn one_seed_of_the_engine_gives_one_log() {
    check_repeats(&[SubjectKind::Qcow2]);
}

fn check_repeats(kinds: &[SubjectKind]) {
    for kind in kinds.iter().copied() {
        let mut digests = Vec::new();
        for seed in 0..20 {
            let plan = Plan::new(kind, seed);
            let effort = Effort { keep_log: true, ..Effort::of(&plan) };
            let (one, two) = (run(&plan, effort), run(&plan, effort));
            let differs = one.log.iter().zip(&two.log).find(|(one, two)| one != two);
            assert_eq!(differs, None, "{plan}");
            assert_eq!(one.digest, two.digest, "{plan}");
            digests.push(one.digest);
        }
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), 20, "two seeds of {} did the same", kind.name());
    }
}

#[test]
fn a_failing_history_shrinks_to_few_requests() {
    let report = first_failure(ToyFault::FlushWithoutBarrier);
    let small = shrink(&report.plan);
    let again = run(&small, Effort::of(&small));
    assert!(again.has_failed(), "{again}");
    let (numbers, _) = outline(&small);
    assert!(numbers.len() <= 4, "{} requests are left: {small}", numbers.len());
}

/// Histories that once broke a rule.
#[test]
fn kept_seeds_pass() {
    let text = include_str!("../seeds/histories.txt");
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    for line in lines {
        let plan: Plan = line.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
        let report = run(&plan, Effort::of(&plan));
        assert!(!report.has_failed(), "{report}");
    }
}
