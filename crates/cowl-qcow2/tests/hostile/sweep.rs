//! Small images cut at every length and with every bit of their structures flipped.
//!
//! Each is opened, read whole, asked for its extents and checked. What comes back may be an error
//! or any data; it has to come back within the budget of reads, and within this much memory:
//!
//! - 4 MiB for the snapshot records that a header can announce, 64 bytes each, before the file
//!   ends;
//! - 1 MiB for the caches, one cluster in and out, and the harness's own buffer for the disk;
//! - 160 times the file: a finding, with its text, for each word of a table.
//!
//! The list of findings is what dominates for longer files; it ends at `CheckReport::FINDINGS_MAX`.

use std::collections::BTreeSet;

use cowl_format::{ByteCount, GuestOffset};
use cowl_fuzz_bodies::SEEDS;
use cowl_qcow2::{BeyondEnd, Image, read_bitmaps, read_snapshots};
use pollster::block_on;

use crate::image::{check, file, header, open_as, pointer, word};
use crate::sys::peak_of;

fn memory_max(file_length: usize) -> usize {
    (5 << 20) + 160 * file_length
}

/// As much of the disk as is read: the seeds are smaller, what a flipped bit makes of them is not.
const READ_MAX: u64 = 256 << 10;

/// Does everything that a reader does; `what` is said when that goes wrong.
fn walk(bytes: &[u8], what: std::fmt::Arguments<'_>) {
    let walk = || {
        let peak = peak_of(|| walk_freely(bytes));
        assert!(peak <= memory_max(bytes.len()), "{peak} bytes of memory");
    };
    assert!(std::panic::catch_unwind(walk).is_ok(), "{what}");
}

fn walk_freely(bytes: &[u8]) {
    let Ok(header) = header(bytes) else { return };
    drop(block_on(read_snapshots(&*file(bytes), &header)));
    drop(block_on(read_bitmaps(&*file(bytes), &header)));
    for (beyond_end, snapshot) in [
        (BeyondEnd::ReadZeros, None),
        (BeyondEnd::Refuse, None),
        (BeyondEnd::ReadZeros, Some("first")),
    ] {
        if snapshot.is_some() && header.snapshot_count == 0 {
            continue;
        }
        if let Ok(image) = open_as(bytes, beyond_end, snapshot) {
            read(&image);
        }
    }
    drop(check(bytes));
}

fn read(image: &Image<cowl_fuzz_bodies::BudgetStorage>) {
    let size = image.size().get();
    let length = ByteCount::new(size.min(READ_MAX));
    let mut buffer = vec![0; length.as_usize()];
    drop(block_on(image.read_into(GuestOffset::ZERO, &mut buffer)));
    let tail = size.min(1000);
    let at = GuestOffset::new(size - tail);
    drop(block_on(image.read_into(at, &mut buffer[..ByteCount::new(tail).as_usize()])));
    drop(block_on(image.extents(GuestOffset::ZERO, image.size())));
    drop(block_on(image.layers()[0].refcount(cowl_format::HostCluster::new(1))));
}

/// The bytes of the structures: all of cluster 0 that is used, and of each table the words that are
/// not zero and two more behind them.
fn structure_bytes(bytes: &[u8]) -> BTreeSet<usize> {
    let header = header(bytes).unwrap();
    let cluster = header.geometry.cluster_len();
    let offset = |offset: u64| ByteCount::new(offset).as_usize();
    let l1 = offset(header.l1_offset.get());
    let refcounts = offset(header.refcount_table_offset.get());
    let mut tables = vec![(l1, header.l1_entries as usize * 8), (refcounts, cluster)];
    tables.push((pointer(bytes, refcounts), cluster));
    for entry in 0..header.l1_entries as usize {
        tables.push((pointer(bytes, l1 + entry * 8), cluster));
    }
    if 0 < header.snapshot_count {
        let snapshots = offset(header.snapshot_offset.get());
        tables.push((snapshots, 200));
        tables.push((pointer(bytes, snapshots), 8));
    }
    if let Some(Ok(bitmaps)) = &header.bitmaps {
        let directory = offset(bitmaps.directory_offset.get());
        tables.push((directory, bitmaps.directory_size.as_usize()));
        tables.push((offset(word(bytes, directory)), 16));
    }
    let mut places: BTreeSet<usize> = (0..used_header(bytes, cluster)).collect();
    for (start, length) in tables {
        let mut zeros = 0;
        for at in (start..(start + length).min(bytes.len())).step_by(8) {
            let word = &bytes[at..(at + 8).min(bytes.len())];
            zeros = if word.iter().all(|&byte| byte == 0) { zeros + 1 } else { 0 };
            if zeros <= 2 {
                places.extend(at..at + word.len());
            }
        }
    }
    places
}

fn used_header(bytes: &[u8], cluster: usize) -> usize {
    let used = bytes[..cluster].iter().rposition(|&byte| byte != 0).unwrap_or(0) + 1;
    (used + 16).min(cluster)
}

/// Splits the work over two threads.
fn in_parallel<T: Sync>(items: &[T], work: impl Fn(&T) + Sync) {
    let (left, right) = items.split_at(items.len() / 2);
    std::thread::scope(|scope| {
        scope.spawn(|| left.iter().for_each(&work));
        right.iter().for_each(&work);
    });
}

#[test]
fn the_seeds_read_and_check_within_the_bounds() {
    for seed in SEEDS {
        walk(seed.bytes, format_args!("{}", seed.name));
    }
}

#[test]
fn an_image_cut_at_any_length_is_an_error_or_reads() {
    for seed in SEEDS {
        // Every length through the tables; of the data behind them, a length in each sector.
        let lengths: Vec<usize> =
            (0..seed.bytes.len()).filter(|length| *length < 5000 || length % 509 == 0).collect();
        in_parallel(&lengths, |&length| {
            walk(&seed.bytes[..length], format_args!("{} cut to {length}", seed.name));
        });
    }
}

#[test]
fn an_image_with_any_bit_of_its_structures_flipped_is_an_error_or_reads() {
    for seed in SEEDS {
        let places: Vec<usize> = structure_bytes(seed.bytes).into_iter().collect();
        in_parallel(&places, |&at| {
            let mut bytes = seed.bytes.to_vec();
            for bit in 0..8 {
                bytes[at] ^= 1 << bit;
                walk(&bytes, format_args!("{} with bit {bit} of byte {at} flipped", seed.name));
                bytes[at] ^= 1 << bit;
            }
        });
    }
}

#[test]
fn an_image_with_any_byte_of_its_structures_at_an_extreme_is_an_error_or_reads() {
    for seed in SEEDS {
        let places: Vec<usize> = structure_bytes(seed.bytes).into_iter().collect();
        in_parallel(&places, |&at| {
            let mut bytes = seed.bytes.to_vec();
            for value in [0, 0x7f, 0xff] {
                bytes[at] = value;
                walk(&bytes, format_args!("{} with byte {at} at {value:#x}", seed.name));
            }
        });
    }
}
