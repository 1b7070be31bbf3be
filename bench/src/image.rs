//! Whole images: opening one, and making one.

use std::cell::{Cell, RefCell};

use cowl_format::ByteCount;
use cowl_qcow2::{CreateOptions, Preallocation};
use cowl_storage::Access;
use pollster::block_on;

use crate::disk::{
    CLUSTER, File, GIB, TIB, check_block, check_metadata, fill_blocks, new_file, new_file_with,
    open, overlay_options, write_block,
};
use crate::{Body, Subject};

/// A size whose L1 table is a megabyte.
const HUGE: u64 = 64 * TIB;

/// Opening and making.
pub const BODIES: &[Body] = &[
    Body {
        name: "image/open-1g",
        unit: "open of an image of 1 GiB",
        operations: 40,
        set_up: || Box::new(Opens::new(GIB, Access::ReadOnly)),
    },
    Body {
        name: "image/open-1g-writable",
        unit: "the same for writing",
        operations: 40,
        set_up: || Box::new(Opens::new(GIB, Access::ReadWrite)),
    },
    Body {
        name: "image/open-64t",
        unit: "open of a sparse image of 64 TiB",
        operations: 8,
        set_up: || Box::new(Opens::new(HUGE, Access::ReadOnly)),
    },
    Body {
        name: "image/open-64t-writable",
        unit: "the same for writing",
        operations: 8,
        set_up: || Box::new(Opens::new(HUGE, Access::ReadWrite)),
    },
    Body {
        name: "image/create-overlay",
        unit: "making of an overlay of 1 GiB",
        operations: 40,
        set_up: || Box::new(Creations::new(overlay_options(GIB))),
    },
    Body {
        name: "image/create-64t",
        unit: "making of an image of 64 TiB",
        operations: 8,
        set_up: || Box::new(Creations::new(CreateOptions::new(ByteCount::new(HUGE)))),
    },
];

struct Opens {
    file: File,
    size: u64,
    access: Access,
    opened: Cell<u64>,
}

impl Opens {
    /// A disk with a block at its start and one at its end.
    fn new(size: u64, access: Access) -> Self {
        let file = new_file(size);
        fill_blocks(&file, [0, last_cluster(size)].into_iter());
        Self { file, size, access, opened: Cell::new(0) }
    }
}

impl Subject for Opens {
    fn operate(&self, _number: u64) {
        let image = open(&self.file, self.access);
        let is_right = image.size().get() == self.size;
        self.opened.set(self.opened.get() + u64::from(is_right));
    }

    fn check(&self, operations: u64) {
        assert_eq!(self.opened.get(), operations);
        let image = open(&self.file, self.access);
        for cluster in [0, last_cluster(self.size)] {
            check_block(&image, cluster, cluster);
        }
    }
}

fn last_cluster(size: u64) -> u64 {
    size / CLUSTER - 1
}

struct Creations {
    options: CreateOptions,
    last: RefCell<Option<File>>,
}

impl Creations {
    fn new(options: CreateOptions) -> Self {
        Self { options, last: RefCell::new(None) }
    }
}

impl Subject for Creations {
    fn operate(&self, _number: u64) {
        *self.last.borrow_mut() = Some(new_file_with(&self.options, Preallocation::Off));
    }

    fn check(&self, operations: u64) {
        let last = self.last.borrow();
        let Some(file) = last.as_ref() else {
            assert_eq!(operations, 0);
            return;
        };
        let image = open(file, Access::ReadWrite);
        assert_eq!(image.size(), self.options.size);
        let header = image.layers()[0].header();
        let backing = header.backing.as_ref().map(|backing| backing.name.clone());
        assert_eq!(backing, self.options.backing);
        write_block(&image, 1, 7);
        check_block(&image, 1, 7);
        block_on(image.close()).expect("memory takes it");
        check_metadata(file);
    }
}
