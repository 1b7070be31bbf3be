//! Every operation, cut off at every write and by every power cut.

use cowl_format::ByteCount;
use cowl_qcow2::CreateOptions;

use crate::lab::{Guest, Limits, Setup, Step, has_qemu, judge_crashes};
use crate::subject::TINY;
use Step::{Compressed, Discard, Flush, Resize, Together, Write, Zero, ZeroKeeping};

/// Runs `steps`, closes the image, and judges every state on the way.
pub(crate) fn survives(setup: Setup, steps: &[Step], name: &str) {
    for is_slow in [false, true] {
        let mut guest = Guest::new(setup.clone());
        if is_slow {
            guest.lab.be_slow(1);
        }
        for step in steps {
            guest.run(step);
        }
        let in_flight = 64;
        let leaks_max = guest.image().stats().reserved_clusters_max + in_flight;
        guest.close();
        let states = judge_crashes(&guest, Limits { leaks_max }, name);
        assert!(20 < states, "{name}: only {states} states");
    }
}

#[test]
fn allocating_writes_survive() {
    let steps = [Write(0, 8), Flush, Write(8, 16), Write(40, 3), Flush, Write(24, 1), Write(8, 1)];
    survives(Setup::new(4096, 32), &steps, "allocating");
    survives(Setup::new(512, 200), &steps, "allocating, small clusters");
}

#[test]
fn copies_from_a_backing_file_survive() {
    let base = Some(vec![1; 70_000]);
    let setup = Setup { base, ..Setup::new(4096, 32) };
    let steps =
        [Write(1, 1), Flush, Write(17, 9), Flush, Write(130, 9), Write(8, 1), Flush, Write(0, 1)];
    survives(setup, &steps, "copy on write");
}

#[test]
fn writes_over_compressed_clusters_survive() {
    let before = vec![Compressed(0, 8), Compressed(8, 8), Compressed(16, 8), Compressed(24, 8)];
    let setup = Setup { before, ..Setup::new(4096, 32) };
    let steps =
        [Write(1, 1), Write(8, 8), Flush, Write(20, 8), Flush, Write(64, 8), Write(72, 8), Flush];
    survives(setup, &steps, "over compressed");
}

#[test]
fn writes_over_zero_clusters_survive() {
    let before = vec![Write(0, 64), Flush, ZeroKeeping(0, 16), Zero(16, 16)];
    let setup = Setup { before, ..Setup::new(4096, 32) };
    let steps = [Write(3, 2), Write(18, 2), Flush, Write(8, 24), Flush, Write(0, 1)];
    survives(setup, &steps, "over zero clusters");
}

#[test]
fn writes_over_shared_clusters_survive() {
    if !has_qemu() {
        return;
    }
    let before = vec![Write(0, 64), Compressed(64, 8), Zero(72, 8)];
    let setup = Setup { before, snapshot: true, ..Setup::new(4096, 32) };
    let steps = [Write(3, 2), Flush, Discard(16, 8), Compressed(24, 8), Zero(40, 8), Flush];
    let more = [Write(64, 1), Write(73, 1), Write(16, 8), Flush, Write(4, 1)];
    survives(setup, &[&steps[..], &more].concat(), "shared clusters");
}

#[test]
fn a_discarded_cluster_that_is_used_again_survives() {
    let before = vec![Write(0, 64), Flush];
    for can_discard in [true, false] {
        let before = before.clone();
        discard_and_use_again(Setup { before, can_discard, ..Setup::new(4096, 32) });
    }
}

fn discard_and_use_again(setup: Setup) {
    let steps = [Discard(0, 32), Write(64, 8), Write(72, 16), Flush, Write(96, 8), Flush];
    let more = [Write(0, 1), Flush, Zero(32, 16), Write(33, 1), Flush, Discard(64, 32), Flush];
    survives(setup, &[&steps[..], &more].concat(), "discard and reuse");
}

#[test]
fn compressed_writes_survive() {
    let steps = [Compressed(0, 8), Compressed(8, 16), Flush, Compressed(0, 8), Flush];
    let more = [Discard(8, 8), Flush, Compressed(24, 8), Write(32, 2), Compressed(8, 8), Flush];
    survives(Setup::new(4096, 32), &[&steps[..], &more].concat(), "compressed");
}

#[test]
fn a_growing_l1_table_survives() {
    // A table of 512 bytes has 64 entries: one L1 entry for each 32 KiB, a cluster for each 2 MiB.
    let setup = Setup { before: vec![Write(0, 4)], ..Setup::new(512, 64) };
    let steps = [Write(10, 2), Resize(10_000), Write(9_000, 2), Flush, Resize(12_000), Write(5, 1)];
    survives(setup, &steps, "l1 growth");
}

#[test]
fn shrinking_survives() {
    let setup = Setup { before: vec![Write(0, 4), Write(300, 20)], ..Setup::new(512, 400) };
    let steps =
        [Write(100, 2), Resize(200), Write(50, 2), Flush, Resize(350), Write(310, 2), Flush];
    survives(setup, &steps, "shrink");
    let base = Some(vec![1; 160_000]);
    let setup = Setup { base, before: vec![Write(0, 4)], ..Setup::new(4096, 40) };
    let steps =
        [Write(100, 2), Resize(104), Write(50, 2), Flush, Resize(320), Write(200, 2), Flush];
    survives(setup, &steps, "shrink over a backing file");
}

#[test]
fn growing_refcount_structures_survive() {
    // 64 refcounts to a block, 64 blocks to the first table.
    let options = |size: u64| CreateOptions {
        cluster_size: 512,
        refcount_bits: 64,
        ..CreateOptions::new(ByteCount::new(size))
    };
    let setup = Setup { options: options(200 * 512), limits: TINY, ..Setup::new(512, 200) };
    let steps = [Write(0, 70), Flush, Write(80, 70), Flush, Write(3, 1), Discard(0, 8), Flush];
    survives(setup, &steps, "refcount blocks");
    let before: Vec<Step> = (0..9).map(|part| Write(part * 400, 400)).collect();
    let setup = Setup { options: options(5000 * 512), limits: TINY, before, ..Setup::new(512, 1) };
    let steps = [Write(3600, 200), Flush, Write(3800, 200), Write(5, 1), Flush];
    survives(setup, &steps, "refcount table");
}

#[test]
fn data_files_survive() {
    for data_file_raw in [false, true] {
        let mut setup = Setup::new(4096, 32);
        setup.options.data_file = Some(b"data".to_vec());
        setup.options.data_file_raw = data_file_raw;
        setup.before = vec![Write(0, 32), Flush, Zero(0, 8)];
        let steps = [Write(1, 1), Flush, Discard(8, 8), Write(64, 4), Flush, Zero(16, 8)];
        let more = [Write(9, 1), Flush, Write(64, 16), Write(17, 1), Flush];
        survives(setup, &[&steps[..], &more].concat(), "data file");
    }
    let mut setup = Setup { base: Some(vec![1; 70_000]), ..Setup::new(4096, 32) };
    setup.options.data_file = Some(b"data".to_vec());
    let steps = [Write(1, 1), Flush, Write(17, 9), Flush, Zero(40, 8), Discard(8, 8), Flush];
    survives(setup, &steps, "data file over a backing file");
}

#[test]
fn subclusters_survive() {
    for base in [None, Some(vec![1; 200_000])] {
        let mut setup = Setup { base, ..Setup::new(16_384, 24) };
        setup.options.extended_l2 = true;
        setup.before = vec![Write(2, 3), Write(64, 32), Zero(70, 4)];
        let steps = [Write(0, 1), Write(40, 3), Flush, Write(71, 1), Zero(66, 2), Flush];
        let more = [Discard(32, 96), Write(33, 1), Flush, Write(200, 2), ZeroKeeping(0, 3), Flush];
        survives(setup, &[&steps[..], &more].concat(), "subclusters");
    }
}

#[test]
fn late_refcounts_survive() {
    let mut setup = Setup { before: vec![Write(0, 16)], ..Setup::new(4096, 32) };
    setup.options.lazy_refcounts = true;
    let steps = [Write(16, 8), Flush, Discard(0, 8), Write(32, 8), Flush, Write(40, 8), Flush];
    survives(setup, &steps, "lazy refcounts");
}

#[test]
fn requests_side_by_side_survive() {
    let base = Some(vec![1; 100_000]);
    let setup = Setup { base, limits: TINY, before: vec![Write(64, 64)], ..Setup::new(4096, 32) };
    let first = Together(vec![Write(0, 1), Write(1, 1), Write(9, 8), Discard(64, 8), Flush]);
    let second = Together(vec![Write(24, 1), Compressed(32, 8), Flush, Zero(72, 8), Write(65, 2)]);
    let steps = [first, Write(80, 1), second, Flush, Write(128, 8), Flush];
    survives(setup, &steps, "side by side");
}
