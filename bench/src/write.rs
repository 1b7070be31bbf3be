//! Writes of 4 KiB: to a place that is there, and to clusters that have to be allocated and linked.
//!
//! The block lies in the middle of its cluster. Afterwards every cluster is read back whole, so
//! that what was to be kept around the block was kept, and the metadata is checked after a flush.

use std::cell::{Cell, RefCell};

use cowl_block::ZeroRequest;
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{Image, Preallocation};
use cowl_storage::{Access, IoBuffer};
use pollster::block_on;

use crate::disk::{
    BLOCK, CLUSTER, File, MemoryImage, SLICE_CLUSTERS, SLICES, block_at, check_cluster,
    check_metadata, file_with_tables, fill_blocks, new_block, new_file, new_file_with, open,
    open_layer, overlay_options, scattered, size_of_slices, stamp,
};
use crate::{Body, Subject};

/// Writes to clusters of one disk, each the first one to its cluster.
const FIRST_WRITES: u64 = 1024;

/// The same where each of them moves a whole cluster.
const WHOLE_CLUSTERS: u64 = 128;

/// Clusters that are written in place again and again.
const PLACES: u64 = 500;

/// What a base holds where no block is.
const BASE_BYTE: u8 = 0xb5;

/// Writes.
pub const BODIES: &[Body] = &[
    Body {
        name: "write/in-place",
        unit: "write of 4 KiB to an allocated cluster",
        operations: 2000,
        set_up: || Box::new(Writes::new(written(PLACES), |number| number % PLACES)),
    },
    Body {
        name: "write/in-place-owned",
        unit: "the same from the request's buffer",
        operations: 2000,
        set_up: || Box::new(OwnedWrites::new()),
    },
    Body {
        name: "write/new-sequential",
        unit: "first write of 4 KiB to a cluster, image empty",
        operations: FIRST_WRITES,
        set_up: || Box::new(Writes::new(new_file(size_of_slices(SLICES)), |number| number)),
    },
    Body {
        name: "write/new-scattered",
        unit: "first write of 4 KiB to a cluster, tables exist",
        operations: FIRST_WRITES,
        set_up: || Box::new(Writes::new(file_with_tables(SLICES), scattered)),
    },
    Body {
        name: "write/over-zero",
        unit: "write of 4 KiB to a zero cluster of an overlay",
        operations: FIRST_WRITES,
        set_up: || Box::new(Writes::over_zero(FIRST_WRITES)),
    },
    Body {
        name: "write/over-backing",
        unit: "write of 4 KiB to an overlay: 60 KiB are copied",
        operations: WHOLE_CLUSTERS,
        set_up: || Box::new(Writes::over_backing(WHOLE_CLUSTERS)),
    },
    Body {
        name: "allocation/reuse",
        unit: "first write of 4 KiB, host cluster used before",
        operations: WHOLE_CLUSTERS,
        set_up: || Box::new(Writes::new(freed(WHOLE_CLUSTERS), |number| number)),
    },
    Body {
        name: "allocation/discard-write",
        unit: "discard of a cluster and write of 4 KiB to it",
        operations: FIRST_WRITES,
        set_up: || Box::new(DiscardWrites(Writes::new(written(FIRST_WRITES), |number| number))),
    },
];

/// An image whose first clusters are allocated, with a block in each.
fn written(clusters: u64) -> File {
    let file = new_file(size_of_slices(SLICES));
    fill_blocks(&file, 0..clusters);
    file
}

/// An image whose first clusters were written and discarded: the host clusters are free again, in
/// the middle of the file, and may hold anything.
fn freed(clusters: u64) -> File {
    let file = written(clusters + 1);
    let image = open(&file, Access::ReadWrite);
    let length = ByteCount::new(clusters * CLUSTER);
    block_on(image.discard(GuestOffset::ZERO, length)).expect("memory takes it");
    block_on(image.close()).expect("memory takes it");
    file
}

struct Writes {
    file: File,
    image: MemoryImage,
    /// Where each operation goes.
    cluster: fn(u64) -> u64,
    /// What every cluster reads as around the block.
    around: u8,
    block: RefCell<Vec<u8>>,
}

impl Writes {
    fn new(file: File, cluster: fn(u64) -> u64) -> Self {
        let image = open(&file, Access::ReadWrite);
        // Tables are in memory, as in any image in use.
        for slice in 0..SLICES {
            let at = block_at(slice * SLICE_CLUSTERS);
            block_on(image.read_into(at, &mut [0])).expect("memory has it");
        }
        Self { file, image, cluster, around: 0, block: RefCell::new(new_block(0)) }
    }

    /// An overlay over an image that has all of its clusters.
    fn over_backing(clusters: u64) -> Self {
        let base = new_file(size_of_slices(SLICES));
        let image = open(&base, Access::ReadWrite);
        let length = usize::try_from(clusters * CLUSTER).expect("it fits");
        let whole = vec![BASE_BYTE; length];
        block_on(image.write_from(GuestOffset::ZERO, &whole)).expect("memory takes it");
        block_on(image.close()).expect("memory takes it");
        Self { around: BASE_BYTE, ..Self::over(&base) }
    }

    /// An overlay whose first clusters are zero, over an image that has something there.
    fn over_zero(clusters: u64) -> Self {
        let writes = Self::over(&written(clusters));
        let length = ByteCount::new(clusters * CLUSTER);
        let zero = writes.image.zero(GuestOffset::ZERO, length, ZeroRequest::MayUnmap);
        block_on(zero).expect("memory takes it");
        block_on(writes.image.flush()).expect("memory takes it");
        writes
    }

    fn over(base: &File) -> Self {
        let options = overlay_options(size_of_slices(SLICES));
        let file = new_file_with(&options, Preallocation::Off);
        let layers = [(&file, Access::ReadWrite), (base, Access::ReadOnly)];
        let layers = layers.map(|(file, access)| open_layer(file, access));
        let image = Image::new(Vec::from(layers), None);
        let block = RefCell::new(new_block(0));
        Self { file, image, cluster: |number| number, around: 0, block }
    }
}

impl Subject for Writes {
    fn operate(&self, number: u64) {
        let mut block = self.block.borrow_mut();
        stamp(&mut block, number);
        let write = self.image.write_from(block_at((self.cluster)(number)), &block);
        block_on(write).expect("memory takes it");
    }

    fn check(&self, operations: u64) {
        let first = match (self.cluster)(PLACES) == (self.cluster)(0) {
            true => operations.saturating_sub(PLACES),
            false => 0,
        };
        for number in first..operations {
            check_cluster(&self.image, (self.cluster)(number), number, self.around);
        }
        block_on(self.image.flush()).expect("memory takes it");
        check_metadata(&self.file);
    }
}

/// Writes as servers make them.
struct OwnedWrites {
    writes: Writes,
    buffer: Cell<Option<IoBuffer>>,
}

impl OwnedWrites {
    fn new() -> Self {
        let writes = Writes::new(written(PLACES), |number| number % PLACES);
        Self { writes, buffer: Cell::new(Some(IoBuffer::from_slice(&new_block(0)))) }
    }
}

impl Subject for OwnedWrites {
    fn operate(&self, number: u64) {
        let mut buffer = self.buffer.take().expect("every request gives it back");
        assert_eq!(buffer.len(), BLOCK);
        stamp(&mut buffer, number);
        let at = block_at((self.writes.cluster)(number));
        let (result, buffer) = block_on(self.writes.image.write(at, buffer));
        result.expect("memory takes it");
        self.buffer.set(Some(buffer));
    }

    fn check(&self, operations: u64) {
        self.writes.check(operations);
    }
}

/// Each write comes behind a discard of its cluster.
struct DiscardWrites(Writes);

impl Subject for DiscardWrites {
    fn operate(&self, number: u64) {
        let at = GuestOffset::new((self.0.cluster)(number) * CLUSTER);
        block_on(self.0.image.discard(at, ByteCount::new(CLUSTER))).expect("memory takes it");
        self.0.operate(number);
    }

    fn check(&self, operations: u64) {
        self.0.check(operations);
    }
}
