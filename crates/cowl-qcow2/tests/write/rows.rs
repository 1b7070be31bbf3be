//! What other engines got wrong, one test for each row that concerns writing.
//!
//! The rows are those of the study of other engines: I for imago, Q for qcow2-rs, and the numbers
//! of section 8 (confirmed by experiment). Rows that need a snapshot are in `snapshots.rs`, those
//! about requests in flight in `reuse.rs`, those about dropped futures (Q15) in `dropped.rs`. Files
//! that are not empty when an image is created in them (I12, Q17) are the caller's affair.

use cowl_format::{GuestOffset, HostOffset};
use cowl_qcow2::Error;
use cowl_storage::{FaultEffect, FaultRule, Operation, Purpose};
use pollster::block_on;

use crate::crashes::survives;
use crate::lab::{Event, Guest, Limits, Setup, Step, content_of, judge_now};
use crate::subject::{Noise, TINY};
use Step::{Compressed, Discard, Flush, Resize, Together, Write, Zero, ZeroKeeping};

const EIO: i32 = 5;

/// A failure of one I/O, once.
fn one(operation: Operation, purpose: Purpose) -> FaultRule {
    FaultRule::fail(EIO).operation(operation).purpose(purpose).times(1)
}

/// Issues a step that has to fail with EIO.
fn fails(guest: &mut Guest, step: &Step) {
    guest.issue(step);
    let error = block_on(guest.request(step)).unwrap_err();
    assert_eq!(error.errno(), EIO, "{step:?}: {error}");
    guest.give_up();
}

fn ends_clean(mut guest: Guest, name: &str) {
    guest.close();
    judge_now(&guest, Limits { leaks_max: 0 }, name);
}

// I1, Q14; section 8, imago 1 and 2: an empty image, one write, killed at each of its writes.
#[test]
fn a_new_table_is_counted_before_anything_points_to_it() {
    survives(Setup::new(65_536, 16), &[Write(0, 8)], "first write");
    survives(Setup::new(65_536, 16), &[Write(0, 8), Flush, Write(1000, 8), Flush], "two writes");
}

// I2, Q5, Q16: nothing between a flush and the guest's next request is left to the page cache.
#[test]
fn a_flush_ends_with_a_barrier_over_everything_that_names_data() {
    let mut guest = Guest::new(Setup { before: vec![Write(0, 64)], ..Setup::new(4096, 32) });
    for step in [Write(0, 3), Write(70, 30), Compressed(128, 8), Discard(0, 32)] {
        guest.run(&step);
        guest.run(&Flush);
        let log = guest.lab.log();
        let covered = log.iter().rev().find_map(|event| match event {
            Event::Barrier { issued, .. } => Some(*issued),
            _ => None,
        });
        // What is freed behind the barrier is nobody's data.
        let is_named = |event: &&Event| {
            matches!(event, Event::Change(change)
                if change.purpose == Purpose::L2Table || change.purpose == Purpose::L1Table)
        };
        assert_eq!(log[covered.unwrap()..].iter().filter(is_named).count(), 0, "{step:?}");
    }
}

// I3; section 8, qcow2-rs 1 and 2: requests allocate and free while a flush is half done.
#[test]
fn what_is_allocated_during_a_flush_waits_for_its_own_refcount() {
    let setup = Setup { before: vec![Write(64, 64)], limits: TINY, ..Setup::new(512, 160) };
    let busy = |at| {
        Together(vec![Flush, Write(at, 9), Discard(64 + at, 8), Flush, Write(128 + at / 2, 3)])
    };
    let steps = [Write(20, 1), busy(0), busy(9), Flush, busy(30), Flush];
    survives(setup, &steps, "allocation during flush");
}

// I4: a change that is made while its table is written is not lost.
#[test]
fn a_change_beside_a_write_back_is_written_by_the_next_flush() {
    let mut guest = Guest::new(Setup::new(4096, 2000));
    let value = guest.next_value;
    std::thread::scope(|scope| {
        let guest = &guest;
        for thread in 0..3 {
            scope.spawn(move || {
                for cluster in (thread..2000).step_by(3) {
                    block_on(guest.request_one(&Write(cluster * 8, 8), value)).unwrap();
                }
            });
        }
        scope.spawn(move || {
            for _ in 0..300 {
                block_on(guest.image().flush()).unwrap();
            }
        });
    });
    guest.run(&Flush);
    guest.image = None;
    guest.open();
    let read = content_of(guest.image());
    let is_lost = |cluster: &&[u8]| cluster[..8].iter().all(|byte| *byte == 0);
    assert_eq!(read.chunks(4096).filter(is_lost).count(), 0);
}

// I5: what memory says is mapped reaches the file, however often its write failed before.
#[test]
fn an_l1_entry_that_was_not_written_is_written_by_the_next_flush() {
    let mut guest = Guest::new(Setup::new(4096, 32));
    guest.run(&Write(0, 8));
    guest.files[0].add(one(Operation::Write, Purpose::L1Table));
    fails(&mut guest, &Flush);
    guest.run(&Flush);
    guest.image = None;
    let leaks_max = 64 + Guest::new(Setup::new(4096, 32)).image().stats().reserved_clusters_max;
    judge_now(&guest, Limits { leaks_max }, "L1 entry");
}

// I6, 2.5: after a header update of unknown outcome nothing is written and nothing is freed.
#[test]
fn an_unknown_outcome_ends_all_changes() {
    for purpose in [Purpose::HeaderUpdate, Purpose::Barrier] {
        let mut guest = Guest::new(Setup { before: vec![Write(0, 4)], ..Setup::new(512, 64) });
        guest.run(&Write(9, 1));
        let rule = FaultRule::new(FaultEffect::FailAfterwards { errno: EIO });
        guest.files[0].add(rule.purpose(purpose).times(1));
        fails(&mut guest, &Resize(10_000));
        let before = guest.lab.log().len();
        for step in [Write(9, 1), Flush, Discard(0, 4), Resize(64), Zero(0, 4), Compressed(5, 1)] {
            guest.issue(&step);
            let result = block_on(guest.request(&step));
            assert!(matches!(result, Err(Error::Latched { .. })), "{purpose}: {step:?}");
            guest.give_up();
        }
        let later = guest.lab.log()[before..].to_vec();
        let change = later.iter().find(|event| matches!(event, Event::Change(_)));
        assert!(change.is_none(), "{purpose}: {change:?}");
    }
}

// I10, 2.7; section 8, QEMU 1: `write -z -u 0 64k; write -P 9 1M 64k`, killed at each write.
#[test]
fn a_freed_cluster_is_not_reused_before_its_unlink_is_durable() {
    let before = vec![Write(0, 128), Flush];
    for first in [Zero(0, 128), Discard(0, 128)] {
        for can_discard in [true, false] {
            let before = before.clone();
            let setup = Setup { before, can_discard, ..Setup::new(65_536, 32) };
            let steps = [first.clone(), Write(2048, 128), Flush, Write(2176, 1), Flush];
            survives(setup, &steps, "reuse");
        }
    }
}

// Section 8, QEMU 2: the fill of one cluster stays out of its neighbours.
#[test]
fn filling_a_preallocated_cluster_leaves_its_neighbours_alone() {
    let setup = Setup { before: Vec::new(), ..Setup::new(65_536, 16) };
    let steps = [Write(0, 256), ZeroKeeping(128, 128), Flush, Write(0, 136), Flush];
    survives(setup, &steps, "preallocated neighbour");
}

// Section 8, imago 3: a part of a preallocated zero cluster.
#[test]
fn the_rest_of_a_preallocated_zero_cluster_stays_zero() {
    let before = vec![Write(0, 128), ZeroKeeping(0, 128)];
    let setup = Setup { before, can_discard: false, ..Setup::new(65_536, 16) };
    survives(setup, &[Write(3, 1), Flush, Write(9, 2)], "preallocated zero");
}

// 2.9: what a reused cluster held before never shows around what is written to it.
#[test]
fn a_reused_cluster_shows_nothing_of_its_previous_owner() {
    let setup = Setup { before: vec![Write(0, 64)], can_discard: false, ..Setup::new(4096, 32) };
    let steps = [Discard(0, 64), Flush, Flush, Write(129, 1), Write(137, 1), Write(145, 1), Flush];
    survives(setup, &steps, "previous owner");
}

// 2.6; section 8, QEMU 3 and imago 4: the barrier covers both files.
#[test]
fn copied_data_in_a_data_file_is_durable_before_the_mapping() {
    let mut setup = Setup { base: Some(vec![1; 60_928]), ..Setup::new(4096, 16) };
    setup.options.data_file = Some(b"data".to_vec());
    survives(setup, &[Write(1, 1), Flush, Write(20, 1), Write(40, 1), Flush], "both files");
}

// Section 8, qcow2-rs 4: short orderly sessions on an overlay lose nothing.
#[test]
fn orderly_sessions_on_an_overlay_lose_nothing() {
    for seed in 0..226 {
        let mut noise = Noise(seed);
        let base = Some(vec![1; 40_960]);
        let mut guest = Guest::new(Setup { base, limits: TINY, ..Setup::new(4096, 16) });
        for _ in 0..12 {
            let (first, count) = (noise.next(100), 1 + noise.next(28));
            let step = if noise.next(4) == 0 { Flush } else { Write(first, count) };
            guest.run(&step);
        }
        ends_clean(guest, &format!("session {seed}"));
    }
}

// Q2: streams of every length, also those that end where a host cluster ends.
#[test]
fn overwriting_compressed_clusters_frees_exactly_what_they_took() {
    let clusters = 300;
    let mut guest = Guest::new(Setup::new(4096, clusters));
    let mut noise = Noise(2);
    for cluster in 0..clusters {
        let mut bytes = vec![7; 4096];
        let random = noise.next(4000) as usize;
        bytes[..random].iter_mut().for_each(|byte| *byte = noise.next(256) as u8);
        let at = GuestOffset::new(cluster * 4096);
        block_on(guest.image().write_compressed(at, &bytes)).unwrap();
        if cluster % 20 == 0 {
            block_on(guest.image().flush()).unwrap();
        }
    }
    for part in 0..3 {
        for cluster in (part..clusters).step_by(3) {
            guest.run(&Write(cluster * 8, 8));
        }
        guest.run(&Flush);
    }
    ends_clean(guest, "compressed");
}

// Q3, Q10: a table that could not be read is read again; the reader gets an error, no short count.
#[test]
fn a_failed_read_of_a_table_is_an_error_once() {
    let mut guest = Guest::new(Setup { before: vec![Write(0, 64)], ..Setup::new(4096, 32) });
    for step in [Write(1, 1), Write(100, 1), Discard(8, 8)] {
        guest.image = None;
        guest.open();
        guest.files[0].add(one(Operation::Read, Purpose::L2Table));
        let mut bytes = vec![0; 4096];
        let read = block_on(guest.image().read_into(GuestOffset::ZERO, &mut bytes));
        assert_eq!(read.unwrap_err().errno(), EIO);
        block_on(guest.image().read_into(GuestOffset::ZERO, &mut bytes)).unwrap();
        guest.image = None;
        guest.open();
        guest.files[0].add(one(Operation::Read, Purpose::L2Table));
        fails(&mut guest, &step);
        guest.run(&step);
        guest.run(&Flush);
    }
    guest.image = None;
    judge_now(&guest, Limits { leaks_max: 10_000 }, "table");
}

// Q6: data that was not written is not mapped.
#[test]
fn a_failed_data_write_leaves_the_old_mapping() {
    for before in [vec![], vec![Zero(0, 8)], vec![Compressed(0, 8)]] {
        let mut guest = Guest::new(Setup { before, ..Setup::new(4096, 32) });
        let old = content_of(guest.image());
        guest.files[0].add(one(Operation::Write, Purpose::GuestData));
        fails(&mut guest, &Write(1, 2));
        assert!(content_of(guest.image()) == old);
        guest.run(&Flush);
        assert!(content_of(guest.image()) == old);
        ends_clean(guest, "failed write");
    }
}

// Q7: the refcount table grows under way, more than once.
#[test]
fn refcount_tables_grow_without_anybody_waiting_for_himself() {
    let mut setup = Setup { limits: TINY, ..Setup::new(512, 40_000) };
    setup.options.refcount_bits = 64;
    let mut guest = Guest::new(setup);
    for part in 0..20 {
        guest.run(&Write(part * 2000, 2000));
    }
    guest.run(&Flush);
    ends_clean(guest, "growth");
}

// Q8: a flush that failed is tried again by the next one.
#[test]
fn what_a_failed_flush_did_not_write_is_written_by_the_next_one() {
    for purpose in [Purpose::L2Table, Purpose::RefcountBlock, Purpose::L1Table] {
        let mut guest = Guest::new(Setup::new(4096, 32));
        for step in [Write(0, 8), Compressed(64, 8)] {
            guest.run(&step);
        }
        guest.files[0].add(one(Operation::Write, purpose));
        fails(&mut guest, &Flush);
        guest.run(&Flush);
        guest.image = None;
        judge_now(&guest, Limits { leaks_max: 10_000 }, "failed flush");
    }
}

// Q11, Q12: behind the end of the layer below, and of the file, there are zeros.
#[test]
fn a_cluster_over_the_end_of_what_lies_below_is_filled_with_zeros() {
    let base = Some(vec![1; 512 * 3]);
    let mut guest = Guest::new(Setup { base, ..Setup::new(65_536, 4) });
    guest.run(&Write(1, 1));
    guest.run(&Write(200, 1));
    let read = content_of(guest.image());
    assert!(read[512 * 3..512 * 200].iter().all(|byte| *byte == 0));
    assert!(read[512 * 201..].iter().all(|byte| *byte == 0));
    guest.run(&Flush);
    ends_clean(guest, "end of the base");
}

// Q13: a discarded cluster over a backing file reads as zeros, and what lies below stays hidden.
#[test]
fn a_discard_over_a_backing_file_reads_as_zeros() {
    let base = Some(vec![1; 131_072]);
    let mut guest = Guest::new(Setup { base, ..Setup::new(4096, 32) });
    for step in [Write(0, 8), Discard(0, 16), Flush, Discard(32, 8), Flush] {
        guest.run(&step);
    }
    let read = content_of(guest.image());
    assert!(read[..8192].iter().chain(&read[16_384..20_480]).all(|byte| *byte == 0));
    ends_clean(guest, "discard");
}

// Q18: all entries of a larger L1 table, not only those that changed.
#[test]
fn a_larger_l1_table_keeps_every_entry() {
    let before = (0..150).map(|table| Write(table * 64, 1)).collect();
    let mut guest = Guest::new(Setup { before, ..Setup::new(512, 9600) });
    for step in [Resize(200_000), Write(199_999, 1), Resize(900_000), Flush] {
        guest.run(&step);
    }
    ends_clean(guest, "L1 table");
}

// 2.8: an L2 entry that leads into metadata: the write is refused, and the image marked.
#[test]
fn a_write_into_metadata_marks_the_image_as_corrupt() {
    let mut guest = Guest::new(Setup { before: vec![Write(0, 8)], ..Setup::new(4096, 32) });
    guest.image = None;
    let header = block_on(cowl_qcow2::read_header(&guest.contents()[0])).unwrap();
    let bytes = guest.contents()[0].to_vec();
    let word = |at: u64| {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00
    };
    let table = word(header.l1_offset.get());
    // The first entry names the refcount table now.
    let entry = (1 << 63 | header.refcount_table_offset.get()).to_be_bytes();
    let file = guest.files[0].inner();
    let write =
        cowl_storage::Storage::try_write(file, HostOffset::new(table), &entry, Purpose::L2Table);
    write.unwrap().unwrap();
    guest.open();
    let before = guest.contents()[0].to_vec();
    fails(&mut guest, &Write(0, 1));
    let after = guest.contents()[0].to_vec();
    assert_eq!(after[79] & 2, 2, "the corrupt bit is set");
    assert!(before[80..] == after[80..], "and nothing else has changed");
    fails(&mut guest, &Write(100, 8));
}
