//! One I/O fails, of every purpose and operation: the request that needed it fails, nothing else.

use cowl_format::ByteCount;
use cowl_qcow2::Error;
use cowl_storage::{FaultEffect, FaultRule, Operation, Purpose};
use pollster::block_on;

use crate::lab::{Guest, Limits, Setup, Step, judge_now};
use crate::subject::TINY;
use Step::{Compressed, Discard, Flush, Resize, Write, Zero, ZeroKeeping};

const ENOSPC: i32 = 28;

const PURPOSES: [Purpose; 9] = [
    Purpose::HeaderUpdate,
    Purpose::L1Table,
    Purpose::L2Table,
    Purpose::RefcountTable,
    Purpose::RefcountBlock,
    Purpose::GuestData,
    Purpose::CompressedData,
    Purpose::FileLength,
    Purpose::Barrier,
];

const OPERATIONS: [Operation; 7] = [
    Operation::Read,
    Operation::Write,
    Operation::Zero,
    Operation::Discard,
    Operation::SetLength,
    Operation::Allocate,
    Operation::Barrier,
];

/// Failures that take the image's whole trust with them.
fn is_fatal(operation: Operation) -> bool {
    operation == Operation::Barrier
}

struct Trial<'a> {
    setup: &'a Setup,
    steps: &'a [Step],
    name: String,
}

impl Trial<'_> {
    /// Runs the steps with the rule at work. Returns whether it hit anything.
    fn run(&self, file: usize, rule: FaultRule, fatal: bool) -> bool {
        let name = &self.name;
        let mut guest = Guest::new(self.setup.clone());
        guest.files[file].add(rule);
        let mut failed = 0;
        for step in self.steps {
            guest.issue(step);
            match block_on(guest.request(step)) {
                Ok(()) => guest.acknowledge(step),
                Err(error) => {
                    assert_eq!(error.errno(), ENOSPC, "{name}, {step:?}: {error}");
                    failed += 1;
                    guest.give_up();
                    // What comes behind it may need it.
                    if matches!(step, Resize(_)) {
                        break;
                    }
                }
            }
        }
        if guest.files[file].hits() == 0 {
            return false;
        }
        let leaks_max = 64 + guest.image().stats().reserved_clusters_max;
        if fatal {
            self.is_latched(&mut guest);
        } else {
            assert!(failed <= 1, "{name}: {failed} requests failed");
            for step in [Write(2, 9), Write(60, 3), Flush, Discard(0, 32), Flush, Write(0, 1)] {
                guest.run(&step);
            }
            guest.close();
        }
        judge_now(&guest, Limits { leaks_max }, name);
        true
    }

    fn is_latched(&self, guest: &mut Guest) {
        for step in [Flush, Write(0, 1), Flush] {
            guest.issue(&step);
            let result = block_on(guest.request(&step));
            guest.give_up();
            let is_latched = matches!(result, Err(Error::Latched { errno: ENOSPC, .. }));
            assert!(is_latched, "{}, {step:?}: {result:?}", self.name);
        }
        guest.image = None;
    }
}

/// Fails each I/O of the steps, one at a time, in each way.
fn fail_each(setup: &Setup, steps: &[Step], what: &str) -> usize {
    let effects = [
        FaultEffect::Fail { errno: ENOSPC },
        FaultEffect::FailAfterwards { errno: ENOSPC },
        FaultEffect::Tear { length: ByteCount::new(512), errno: ENOSPC },
    ];
    let mut count = 0;
    let files = 1 + usize::from(setup.options.data_file.is_some());
    for file in 0..files {
        for purpose in PURPOSES {
            for operation in OPERATIONS {
                for effect in effects {
                    for nth in 0.. {
                        let rule = FaultRule::new(effect).purpose(purpose).operation(operation);
                        let rule = rule.after(nth).times(1);
                        let name = format!(
                            "{what}, file {file}: {operation:?} {nth} for {purpose}, {effect:?}"
                        );
                        let trial = Trial { setup, steps, name };
                        if !trial.run(file, rule, is_fatal(operation)) {
                            break;
                        }
                        count += 1;
                    }
                }
            }
        }
    }
    count
}

#[test]
fn one_failure_fails_one_request_of_an_overlay() {
    let base = Some(vec![1; 70_144]);
    let before = vec![Write(0, 16), Compressed(16, 8), ZeroKeeping(24, 8)];
    let setup = Setup { base, before, limits: TINY, ..Setup::new(4096, 32) };
    let steps = [
        Write(1, 1),
        Write(17, 1),
        Flush,
        Write(25, 2),
        Write(41, 9),
        Discard(0, 8),
        Flush,
        Compressed(64, 8),
        Zero(72, 8),
        Write(80, 4),
        Flush,
        Write(88, 8),
        Flush,
    ];
    assert!(80 < fail_each(&setup, &steps, "overlay"));
}

#[test]
fn one_failure_fails_one_request_while_everything_grows() {
    let mut setup = Setup { before: vec![Write(0, 4)], limits: TINY, ..Setup::new(512, 200) };
    setup.options.refcount_bits = 64;
    let steps = [Write(0, 70), Flush, Resize(10_000), Write(9_000, 90), Flush, Resize(300), Flush];
    assert!(80 < fail_each(&setup, &steps, "growth"));
}

#[test]
fn one_failure_fails_one_request_with_a_data_file() {
    for data_file_raw in [false, true] {
        let mut setup = Setup { before: vec![Write(0, 16)], ..Setup::new(4096, 32) };
        setup.options.data_file = Some(b"data".to_vec());
        setup.options.data_file_raw = data_file_raw;
        let steps = [Write(1, 1), Discard(8, 8), Flush, Write(40, 9), Zero(0, 8), Flush];
        assert!(20 < fail_each(&setup, &steps, "data file"));
    }
}

#[test]
fn one_failure_fails_one_request_with_subclusters() {
    let mut setup = Setup { before: vec![Write(0, 40)], ..Setup::new(16_384, 16) };
    setup.options.extended_l2 = true;
    let steps = [Write(41, 1), Zero(2, 2), Flush, Discard(32, 32), Write(70, 2), Flush];
    assert!(20 < fail_each(&setup, &steps, "subclusters"));
}

#[test]
fn a_full_disk_fails_requests_and_not_the_image() {
    let mut guest = Guest::new(Setup { before: vec![Write(0, 8)], ..Setup::new(4096, 32) });
    guest.files[0].add(FaultRule::fail(ENOSPC).operation(Operation::Write));
    for step in [Write(8, 8), Write(16, 4), Write(0, 1), Compressed(32, 8), Write(40, 8)] {
        guest.issue(&step);
        assert_eq!(block_on(guest.request(&step)).unwrap_err().errno(), ENOSPC, "{step:?}");
        guest.give_up();
    }
    guest.files[0].clear();
    for step in [Write(8, 8), Flush, Write(64, 8), Write(33, 1), Flush] {
        guest.run(&step);
    }
    guest.close();
    judge_now(&guest, Limits { leaks_max: 0 }, "full disk");
}
