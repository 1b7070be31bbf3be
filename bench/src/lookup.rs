//! Finding where guest bytes live: reads whose tables are in memory, and maps of whole disks.

use std::cell::{Cell, RefCell};

use cowl_block::ExtentKind;
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{CreateOptions, Image, Preallocation};
use cowl_storage::{Access, IoBuffer};
use pollster::block_on;

use crate::disk::{
    BLOCK, CLUSTER, File, GIB, MemoryImage, SLICE_CLUSTERS, block_at, fill_blocks, new_block,
    new_file, new_file_with, open, open_layer, overlay_options,
};
use crate::{Body, Subject};

/// Clusters that are read: all in the first slice, or in the first two where entries are extended.
const READ_CLUSTERS: u64 = 500;

/// Clusters that a table describes.
const TABLE_CLUSTERS: u64 = CLUSTER / 8;

/// The cluster that each overlay of a chain has: in the slice that the reads pass through.
const OVERLAY_CLUSTER: u64 = SLICE_CLUSTERS - 1;

/// Lookups.
pub const BODIES: &[Body] = &[
    Body {
        name: "lookup/read",
        unit: "read of 4 KiB, 1 layer",
        operations: 2000,
        set_up: || Box::new(Reads::new(open(&base(false), Access::ReadOnly), 1)),
    },
    Body {
        name: "lookup/read-now",
        unit: "the same, on the calling thread",
        operations: 2000,
        set_up: || Box::new(ReadsNow(Reads::new(open(&base(false), Access::ReadOnly), 1))),
    },
    Body {
        name: "lookup/read-now-writable",
        unit: "the same, image open for writing",
        operations: 2000,
        set_up: || Box::new(ReadsNow(Reads::new(open(&base(false), Access::ReadWrite), 1))),
    },
    Body {
        name: "lookup/read-writable",
        unit: "read of 4 KiB, image open for writing",
        operations: 2000,
        set_up: || Box::new(Reads::new(open(&base(false), Access::ReadWrite), 1)),
    },
    Body {
        name: "lookup/read-owned",
        unit: "read of 4 KiB into the request's buffer",
        operations: 2000,
        set_up: || Box::new(OwnedReads::new()),
    },
    Body {
        name: "lookup/read-extended-l2",
        unit: "read of 4 KiB, 1 layer with subclusters",
        operations: 2000,
        set_up: || Box::new(Reads::new(open(&base(true), Access::ReadOnly), 1)),
    },
    Body {
        name: "lookup/read-500-tables",
        unit: "read of 4 KiB, one of 500 tables in memory",
        operations: 2000,
        set_up: || Box::new(Reads::new(open(&wide_base(), Access::ReadOnly), TABLE_CLUSTERS)),
    },
    Body {
        name: "lookup/read-chain-10",
        unit: "read of 4 KiB, found in the last of 10 layers",
        operations: 2000,
        set_up: || Box::new(Reads::new(chain(10), 1)),
    },
    Body {
        name: "lookup/read-chain-100",
        unit: "read of 4 KiB, found in the last of 100 layers",
        operations: 200,
        set_up: || Box::new(Reads::new(chain(100), 1)),
    },
    Body {
        name: "lookup/extents-1g",
        unit: "extents of 1 GiB, all of it mapped",
        operations: 4,
        set_up: || Box::new(Extents::new()),
    },
];

/// An image with a block in each cluster that is read.
fn base(extended_l2: bool) -> File {
    let options = CreateOptions { extended_l2, ..CreateOptions::new(ByteCount::new(GIB)) };
    let file = new_file_with(&options, Preallocation::Off);
    fill_blocks(&file, 0..READ_CLUSTERS);
    file
}

/// An image with a block in the first cluster of each of many tables.
fn wide_base() -> File {
    let file = new_file(READ_CLUSTERS * TABLE_CLUSTERS * CLUSTER);
    fill_blocks(&file, (0..READ_CLUSTERS).map(|table| table * TABLE_CLUSTERS));
    file
}

/// The base below overlays with the same slice, which have something else in it.
fn chain(layers: usize) -> MemoryImage {
    let overlay = new_file_with(&overlay_options(GIB), Preallocation::Off);
    fill_blocks(&overlay, [OVERLAY_CLUSTER].into_iter());
    let overlay = || open_layer(&File::new(overlay.snapshot()), Access::ReadOnly);
    let mut chain: Vec<_> = std::iter::repeat_with(overlay).take(layers - 1).collect();
    chain.push(open_layer(&base(false), Access::ReadOnly));
    Image::new(chain, None)
}

/// Which of the clusters a read goes to.
fn turn(number: u64) -> u64 {
    // Coprime with the number of clusters: all of them, and never two neighbours in a row.
    number * 307 % READ_CLUSTERS
}

fn misses(image: &MemoryImage) -> u64 {
    image.layers().iter().map(|layer| layer.stats().metadata_misses).sum()
}

struct Reads {
    image: MemoryImage,
    /// Clusters from one that is read to the next.
    step: u64,
    block: RefCell<Vec<u8>>,
    misses: u64,
}

impl Reads {
    fn new(image: MemoryImage, step: u64) -> Self {
        let mut block = vec![0; BLOCK];
        for cluster in (0..READ_CLUSTERS).map(|turn| turn * step) {
            block_on(image.read_into(block_at(cluster), &mut block)).expect("memory has it");
            assert!(block == new_block(cluster));
        }
        let misses = misses(&image);
        Self { image, step, block: RefCell::new(block), misses }
    }
}

impl Subject for Reads {
    fn operate(&self, number: u64) {
        let mut block = self.block.borrow_mut();
        let read = self.image.read_into(block_at(turn(number) * self.step), &mut block);
        block_on(read).expect("memory has it");
    }

    fn check(&self, operations: u64) {
        let Some(last) = operations.checked_sub(1) else { return };
        assert!(*self.block.borrow() == new_block(turn(last) * self.step));
        assert_eq!(misses(&self.image), self.misses, "every lookup was a hit");
    }
}

/// Reads as blocking callers make them.
struct ReadsNow(Reads);

impl Subject for ReadsNow {
    fn operate(&self, number: u64) {
        let Reads { image, step, block, .. } = &self.0;
        let read = image.read_now(block_at(turn(number) * step), &mut block.borrow_mut());
        read.expect("nothing to wait for").expect("memory has it");
    }

    fn check(&self, operations: u64) {
        self.0.check(operations);
    }
}

/// Reads as servers make them.
struct OwnedReads {
    image: MemoryImage,
    buffer: Cell<Option<IoBuffer>>,
}

impl OwnedReads {
    fn new() -> Self {
        let image = Reads::new(open(&base(false), Access::ReadOnly), 1).image;
        Self { image, buffer: Cell::new(Some(IoBuffer::zeroed(BLOCK))) }
    }
}

impl Subject for OwnedReads {
    fn operate(&self, number: u64) {
        let buffer = self.buffer.take().expect("every request gives it back");
        let (result, buffer) = block_on(self.image.read(block_at(turn(number)), buffer));
        result.expect("memory has it");
        self.buffer.set(Some(buffer));
    }

    fn check(&self, operations: u64) {
        let Some(last) = operations.checked_sub(1) else { return };
        let buffer = self.buffer.take().expect("every request gives it back");
        assert!(*buffer == *new_block(turn(last)));
        self.buffer.set(Some(buffer));
    }
}

struct Extents {
    image: MemoryImage,
    mapped: Cell<ByteCount>,
}

impl Extents {
    fn new() -> Self {
        let options = CreateOptions::new(ByteCount::new(GIB));
        let file = new_file_with(&options, Preallocation::Metadata);
        let subject = Self { image: open(&file, Access::ReadOnly), mapped: Cell::default() };
        subject.operate(0);
        subject
    }
}

impl Subject for Extents {
    fn operate(&self, _number: u64) {
        let whole = self.image.extents(GuestOffset::ZERO, ByteCount::new(GIB));
        let extents = block_on(whole).expect("memory has it");
        let data = extents.iter().filter(|extent| matches!(extent.kind, ExtentKind::Data { .. }));
        let length = data.fold(ByteCount::ZERO, |sum, extent| sum + extent.length);
        self.mapped.set(self.mapped.get() + length);
    }

    fn check(&self, operations: u64) {
        // One more from before.
        assert_eq!(self.mapped.get(), ByteCount::new((operations + 1) * GIB));
    }
}
