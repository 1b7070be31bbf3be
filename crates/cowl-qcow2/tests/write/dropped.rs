//! Requests that are dropped at every await point, while the host goes on with what it has begun.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use cowl_qcow2::Error;

use crate::lab::{Guest, Limits, Setup, Step, judge_crashes, judge_now};
use crate::subject::TINY;
use Step::{Compressed, Discard, Flush, Resize, Together, Write, Zero, ZeroKeeping};

/// How many polls a step may need: more means that nobody wakes it any more.
const POLLS_MAX: usize = 2000;

/// Polls a request `polls` times and drops it. Returns its result if it has one.
fn poll_and_drop(guest: &Guest, step: &Step, polls: usize) -> Option<Result<(), Error>> {
    let mut context = Context::from_waker(Waker::noop());
    let mut request = pin!(guest.request(step));
    for _ in 0..polls {
        if let Poll::Ready(result) = request.as_mut().poll(&mut context) {
            return Some(result);
        }
    }
    None
}

/// Whether the image has become read-only, which it may when nobody knows what the header is.
fn is_latched(guest: &Guest) -> bool {
    let result = poll_and_drop(guest, &Flush, POLLS_MAX).expect("a flush ends");
    matches!(result, Err(Error::Latched { .. }))
}

/// Drops `step` after each number of polls, and goes on with the image. Returns how often the image
/// became read-only.
fn drop_everywhere(setup: &Setup, before: &[Step], step: &Step, name: &str) -> usize {
    let mut latched = 0;
    for patience in [0, 3, 1000] {
        for polls in 1.. {
            assert!(polls < POLLS_MAX, "{name}: does not end");
            let name = format!("{name}, patience {patience}, dropped after {polls} polls");
            let mut guest = Guest::new(setup.clone());
            for step in before {
                guest.run(step);
            }
            guest.lab.be_slow(patience);
            guest.issue(step);
            if let Some(result) = poll_and_drop(&guest, step, polls) {
                result.unwrap();
                break;
            }
            guest.give_up();
            latched += usize::from(go_on(&mut guest, &name, polls % 6 == 0));
        }
    }
    latched
}

/// Uses the image after a request was dropped. Returns whether it has become read-only.
fn go_on(guest: &mut Guest, name: &str, crashes: bool) -> bool {
    let leaks_max = 64 + guest.image().stats().reserved_clusters_max;
    if is_latched(guest) {
        guest.image = None;
        judge_now(guest, Limits { leaks_max }, name);
        return true;
    }
    for step in [Write(1, 1), Write(9, 30), Flush, Discard(16, 16), Write(48, 8), Flush] {
        guest.issue(&step);
        let result = poll_and_drop(guest, &step, POLLS_MAX);
        result.unwrap_or_else(|| panic!("{name}: {step:?} hangs")).unwrap();
        guest.acknowledge(&step);
    }
    guest.close();
    judge_now(guest, Limits { leaks_max: 0 }, name);
    if crashes {
        judge_crashes(guest, Limits { leaks_max }, name);
    }
    false
}

fn overlay() -> Setup {
    let before = vec![Write(0, 16), Compressed(16, 8), ZeroKeeping(24, 8), Write(64, 8)];
    Setup { base: Some(vec![1; 50_176]), before, limits: TINY, ..Setup::new(4096, 16) }
}

#[test]
fn dropped_writes_harm_nothing() {
    for step in [Write(0, 4), Write(41, 9), Write(17, 1), Write(25, 1), Write(60, 60), Write(3, 70)]
    {
        assert_eq!(drop_everywhere(&overlay(), &[], &step, &format!("{step:?}")), 0);
    }
}

#[test]
fn dropped_zeros_and_discards_harm_nothing() {
    for step in [Zero(0, 20), Zero(3, 2), ZeroKeeping(0, 40), Discard(0, 24), Discard(64, 8)] {
        assert_eq!(drop_everywhere(&overlay(), &[], &step, &format!("{step:?}")), 0);
    }
}

#[test]
fn dropped_compressed_writes_harm_nothing() {
    for step in [Compressed(0, 8), Compressed(32, 16), Compressed(8, 16)] {
        assert_eq!(drop_everywhere(&overlay(), &[], &step, &format!("{step:?}")), 0);
    }
}

#[test]
fn dropped_flushes_harm_nothing() {
    let before = [Write(0, 4), Write(41, 9), Discard(8, 8), Compressed(64, 8), Zero(72, 8)];
    assert_eq!(drop_everywhere(&overlay(), &before, &Flush, "flush"), 0);
}

#[test]
fn dropped_requests_harm_no_subclusters() {
    let mut setup = Setup { before: vec![Write(0, 40)], ..Setup::new(16_384, 8) };
    setup.options.extended_l2 = true;
    for step in [Write(41, 3), Zero(2, 2), Write(70, 30), Discard(0, 64)] {
        assert_eq!(drop_everywhere(&setup, &[], &step, &format!("subclusters, {step:?}")), 0);
    }
}

#[test]
fn dropped_changes_of_size_harm_nothing() {
    let setup = Setup { before: vec![Write(0, 4), Write(300, 8)], ..Setup::new(512, 400) };
    // A header update that was dropped leaves nobody knowing what the header says.
    for (size, latched_max) in [(10_000, 30), (200, 12), (401, 12)] {
        let name = format!("resize to {size}");
        let latched = drop_everywhere(&setup, &[], &Resize(size), &name);
        assert!(latched <= latched_max, "{name}: read-only {latched} times");
    }
}

#[test]
fn growth_that_is_dropped_harms_nobody_who_waits_for_it() {
    let mut setup = Setup { before: vec![Write(0, 40)], ..Setup::new(512, 600) };
    setup.options.refcount_bits = 64;
    for patience in [3, 1000] {
        for polls in 1..90 {
            let name = format!("patience {patience}, dropped after {polls} polls");
            let mut guest = Guest::new(setup.clone());
            guest.lab.be_slow(patience);
            drop_first_of_two(&mut guest, &Write(50, 120), &Write(200, 150), polls, &name);
            go_on(&mut guest, &name, polls % 32 == 0);
        }
    }
}

/// Polls the first one `polls` times, then the second one, drops the first one and lets the second
/// one end.
fn drop_first_of_two(guest: &mut Guest, first: &Step, second: &Step, polls: usize, name: &str) {
    guest.issue(&Together(vec![first.clone(), second.clone()]));
    let value = guest.next_value - 2;
    let mut context = Context::from_waker(Waker::noop());
    {
        let has_ended;
        let mut other = pin!(guest.request_one(second, value + 1));
        {
            let mut request = pin!(guest.request_one(first, value));
            let mut first_polls = 0..polls;
            first_polls.any(|_| request.as_mut().poll(&mut context).is_ready());
            // Far enough to wait for what the first one is doing.
            has_ended = (0..12).any(|_| other.as_mut().poll(&mut context).is_ready());
        }
        let mut polls = 0..POLLS_MAX;
        let ends = has_ended || polls.any(|_| other.as_mut().poll(&mut context).is_ready());
        assert!(ends, "{name}: {second:?} hangs");
    }
    guest.give_up();
}

#[test]
fn shrinking_waits_for_no_request_that_was_dropped() {
    let mut guest = Guest::new(Setup { before: vec![Write(0, 64)], ..Setup::new(4096, 16) });
    guest.lab.be_slow(1000);
    drop_first_of_two(&mut guest, &Write(1, 1), &Resize(64), 3, "shrink");
    go_on(&mut guest, "shrink", true);
}
