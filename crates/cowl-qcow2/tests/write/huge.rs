//! Disks whose L1 table is long and mostly a hole: reading only the rest of it must lose nothing.

use std::sync::Arc;

use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{
    Builder, BuilderFiles, CacheLimits, CreateOptions, Image, Preallocation, check, create,
    read_header,
};
use cowl_storage::{Access, IoBuffer, MemoryStorage};
use pollster::block_on;

use crate::lab::open;

const CLUSTER: u64 = 65_536;

/// The disk that one entry of an L1 table describes.
const PER_ENTRY: u64 = CLUSTER / 8 * CLUSTER;

/// Entries at both sides of what is read at once, of a page, and of the table.
const ENTRIES: [u64; 11] = [0, 1, 511, 512, 8191, 8192, 8193, 40_000, 65_535, 65_536, 131_071];

const SIZE: u64 = 131_072 * PER_ENTRY;

fn reopen(file: &Arc<MemoryStorage>, access: Access) -> Image<MemoryStorage> {
    block_on(open(&[Arc::clone(file)], None, access, CacheLimits::STANDARD)).unwrap()
}

fn check_all_read_back(file: &Arc<MemoryStorage>, entries: &[u64]) {
    let image = reopen(file, Access::ReadOnly);
    for (number, entry) in (1..).zip(entries) {
        let mut bytes = [0; 512];
        block_on(image.read_into(GuestOffset::new(entry * PER_ENTRY), &mut bytes)).unwrap();
        assert_eq!(bytes, [number; 512], "entry {entry}");
        let next = GuestOffset::new(entry * PER_ENTRY + CLUSTER);
        block_on(image.read_into(next, &mut bytes)).unwrap();
        assert_eq!(bytes, [0; 512], "behind entry {entry}");
    }
    let header = block_on(read_header(file.as_ref())).unwrap();
    let report = block_on(check(file.as_ref(), &header, None, &())).unwrap();
    assert_eq!((report.corruptions, report.check_errors, report.leaks), (0, 0, 0));
    assert_eq!(report.allocated_clusters, entries.len() as u64);
}

#[test]
fn a_long_l1_table_with_holes_keeps_every_entry() {
    let file = Arc::new(MemoryStorage::new());
    let files = BuilderFiles { image: Arc::clone(&file), data: None };
    let options = CreateOptions::new(ByteCount::new(SIZE));
    block_on(create(files, &options, Preallocation::Off)).unwrap();
    check_all_read_back(&file, &[]);
    // Each time the tables that are there count as taken: nothing is put over them.
    for (number, entry) in (1..).zip(ENTRIES) {
        let image = reopen(&file, Access::ReadWrite);
        let at = GuestOffset::new(entry * PER_ENTRY);
        block_on(image.write_from(at, &[number; 512])).unwrap();
        block_on(image.close()).unwrap();
    }
    check_all_read_back(&file, &ENTRIES);
}

#[test]
fn a_new_image_of_a_huge_disk_has_all_of_its_tables() {
    for last in 1..=ENTRIES.len() {
        let file = Arc::new(MemoryStorage::new());
        let files = BuilderFiles { image: Arc::clone(&file), data: None };
        let options = CreateOptions::new(ByteCount::new(SIZE));
        let builder = Builder::new(files, &options).unwrap();
        for (number, entry) in (1..).zip(&ENTRIES[..last]) {
            let mut cluster = IoBuffer::zeroed(CLUSTER as usize);
            cluster[..512].fill(number);
            let at = GuestOffset::new(entry * PER_ENTRY);
            block_on(builder.write(at, cluster)).unwrap();
        }
        block_on(builder.finish(true)).unwrap();
        check_all_read_back(&file, &ENTRIES[..last]);
    }
}
