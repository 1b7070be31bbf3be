//! What lies below every other body: polling a future, and the memory that stands for a host file.

use std::cell::RefCell;

use cowl_format::HostOffset;
use cowl_storage::{MemoryStorage, Purpose, Storage};
use pollster::block_on;

use crate::disk::{BLOCK, CLUSTER, new_block, stamp};
use crate::{Body, Subject};

/// Pages that exist before.
const PAGES: u64 = 512;

/// The floor.
pub const BODIES: &[Body] = &[
    Body {
        name: "floor/future",
        unit: "poll of a future that is ready",
        operations: 2000,
        set_up: || Box::new(Ready),
    },
    Body {
        name: "floor/memory-read",
        unit: "read of 4 KiB",
        operations: 2000,
        set_up: || Box::new(Memory::new(Direction::Read, PAGES)),
    },
    Body {
        name: "floor/memory-write",
        unit: "write of 4 KiB over a page",
        operations: 2000,
        set_up: || Box::new(Memory::new(Direction::Write, PAGES)),
    },
    Body {
        name: "floor/memory-write-new",
        unit: "write of 4 KiB to a hole",
        operations: 2000,
        set_up: || Box::new(Memory::new(Direction::Write, 0)),
    },
];

struct Ready;

impl Subject for Ready {
    fn operate(&self, number: u64) {
        assert_eq!(block_on(async { number }), number);
    }

    fn check(&self, _operations: u64) {}
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Read,
    Write,
}

struct Memory {
    storage: MemoryStorage,
    direction: Direction,
    /// Operations come back to the first page after so many; 0: never.
    pages: u64,
    block: RefCell<Vec<u8>>,
}

impl Memory {
    fn new(direction: Direction, pages: u64) -> Self {
        let block = RefCell::new(new_block(0));
        let memory = Self { storage: MemoryStorage::new(), direction, pages, block };
        for page in 0..pages {
            memory.write(page);
        }
        memory
    }

    fn at(&self, number: u64) -> HostOffset {
        HostOffset::new(number.checked_rem(self.pages).unwrap_or(number) * CLUSTER)
    }

    fn write(&self, number: u64) {
        let mut block = self.block.borrow_mut();
        stamp(&mut block, number);
        let written = self.storage.try_write(self.at(number), &block, Purpose::GuestData);
        written.expect("memory answers at once").expect("memory takes it");
    }

    fn read(&self, number: u64) {
        let mut block = self.block.borrow_mut();
        let read = self.storage.try_read(self.at(number), &mut block, Purpose::GuestData);
        read.expect("memory answers at once").expect("memory has it");
    }
}

impl Subject for Memory {
    fn operate(&self, number: u64) {
        match self.direction {
            Direction::Read => self.read(number),
            Direction::Write => self.write(number),
        }
    }

    fn check(&self, operations: u64) {
        let Some(last) = operations.checked_sub(1) else { return };
        let number = match self.direction {
            Direction::Read => last % self.pages,
            Direction::Write => last,
        };
        assert!(*self.block.borrow() == new_block(number));
        let mut block = vec![0; BLOCK];
        let read = self.storage.try_read(self.at(last), &mut block, Purpose::GuestData);
        read.expect("memory answers at once").expect("memory has it");
        assert!(block == new_block(number));
    }
}
