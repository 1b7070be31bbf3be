//! Commits: what a flush plans and writes for so many dirty slices of L2 tables.
//!
//! Before each flush one cluster of each slice is written, which does not count. Afterwards the
//! bytes in the file are opened as another image, which has to hold all of the blocks.

use cowl_storage::Access;
use pollster::block_on;

use crate::disk::{
    File, MemoryImage, SLICE_CLUSTERS, SLICES, check_block, check_metadata, file_with_tables, open,
    write_block,
};
use crate::{Body, Subject};

/// Flushes of one subject: a cluster of each slice for each, and some to spare.
const FLUSHES: u64 = 16;

const _: () = assert!(FLUSHES < SLICE_CLUSTERS);

/// Flushes.
pub const BODIES: &[Body] = &[
    Body {
        name: "flush/nothing",
        unit: "flush, no write since the last one",
        operations: FLUSHES,
        set_up: || Box::new(Flushes::new(0)),
    },
    Body {
        name: "flush/slices-1",
        unit: "flush of 1 dirty slice",
        operations: FLUSHES,
        set_up: || Box::new(Flushes::new(1)),
    },
    Body {
        name: "flush/slices-16",
        unit: "flush of 16 dirty slices, one table",
        operations: FLUSHES,
        set_up: || Box::new(Flushes::new(16)),
    },
    Body {
        name: "flush/slices-256",
        unit: "flush of 256 dirty slices, 16 tables",
        operations: FLUSHES,
        set_up: || Box::new(Flushes::new(256)),
    },
];

struct Flushes {
    file: File,
    image: MemoryImage,
    /// Slices that are dirty before each flush.
    slices: u64,
    commits: u64,
}

impl Flushes {
    fn new(slices: u64) -> Self {
        let file = file_with_tables(SLICES);
        let image = open(&file, Access::ReadWrite);
        // The first change of an open image is another story.
        for slice in 0..SLICES {
            write_block(&image, slice * SLICE_CLUSTERS + 1, 0);
        }
        block_on(image.flush()).expect("memory takes it");
        let commits = image.stats().commits;
        Self { file, image, slices, commits }
    }

    fn clusters(&self, number: u64) -> impl Iterator<Item = u64> {
        (0..self.slices).map(move |slice| slice * SLICE_CLUSTERS + 2 + number)
    }
}

impl Subject for Flushes {
    fn prepare(&self, number: u64) {
        self.clusters(number).for_each(|cluster| write_block(&self.image, cluster, number));
    }

    fn operate(&self, _number: u64) {
        block_on(self.image.flush()).expect("memory takes it");
    }

    fn check(&self, operations: u64) {
        let commits = self.image.stats().commits - self.commits;
        assert_eq!(commits, if self.slices == 0 { 0 } else { operations });
        let durable = File::new(self.file.snapshot());
        check_metadata(&durable);
        let image = open(&durable, Access::ReadOnly);
        for number in 0..operations {
            self.clusters(number).for_each(|cluster| check_block(&image, cluster, number));
        }
    }
}
