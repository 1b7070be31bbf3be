//! What the caches hold that the file does not have yet.
//!
//! Lists of what to write, not of what to keep: a slice or block is on its list once, from its
//! first change until a write-back takes it.

use std::sync::{Arc, PoisonError};

use cowl_storage::IoBuffer;

use crate::cache::l2_slice::{Became, SliceCopy};
use crate::cache::l2_table::L2Table;
use crate::cache::ref_block::{BlockCopy, RefBlock};
use crate::flush::After;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// The lists of one image.
#[derive(Default)]
pub(crate) struct Dirty {
    slices: Mutex<Vec<(Arc<L2Table>, usize)>>,
    new_tables: Mutex<Vec<Arc<L2Table>>>,
    blocks: Mutex<Vec<Arc<RefBlock>>>,
    /// Bytes of all of them.
    bytes: AtomicUsize,
}

/// Copies of everything that was dirty at one moment, on their way to the file.
///
/// What is not reported as written goes back to the lists when this is dropped.
pub(crate) struct Taken<'a> {
    dirty: &'a Dirty,
    pub(crate) slices: Vec<TakenSlice>,
    pub(crate) tables: Vec<TakenTable>,
    pub(crate) blocks: Vec<TakenBlock>,
}

pub(crate) struct TakenSlice {
    pub(crate) table: Arc<L2Table>,
    pub(crate) number: usize,
    pub(crate) copy: SliceCopy,
}

pub(crate) struct TakenTable {
    pub(crate) table: Arc<L2Table>,
    pub(crate) bytes: IoBuffer,
    /// Slices whose changes are in `bytes`, with what they wait for.
    dirty_slices: Vec<(usize, After)>,
}

pub(crate) struct TakenBlock {
    pub(crate) block: Arc<RefBlock>,
    pub(crate) copy: BlockCopy,
}

impl Dirty {
    /// Bytes that wait to be written.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// A slice changed.
    pub(crate) fn slice_changed(&self, table: &Arc<L2Table>, number: usize, became: Became) {
        if became == Became::Same {
            return;
        }
        self.bytes.fetch_add(4096, Ordering::Relaxed);
        lock(&self.slices).push((Arc::clone(table), number));
    }

    /// A table that the file does not have yet. It is written whole, before any entry for it.
    pub(crate) fn add_table(&self, table: &Arc<L2Table>) {
        assert!(table.add_unclean(), "a new table has not left the cache");
        self.bytes.fetch_add(4096 * table.slice_count(), Ordering::Relaxed);
        lock(&self.new_tables).push(Arc::clone(table));
    }

    /// A block changed that was clean before.
    pub(crate) fn block_changed(&self, block: &Arc<RefBlock>) {
        self.bytes.fetch_add(4096, Ordering::Relaxed);
        lock(&self.blocks).push(Arc::clone(block));
    }

    /// Whether nothing waits to be written.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.slices).is_empty()
            && lock(&self.new_tables).is_empty()
            && lock(&self.blocks).is_empty()
    }

    /// Copies of the refcount blocks alone.
    pub(crate) fn take_blocks(&self) -> Taken<'_> {
        let mut taken =
            Taken { dirty: self, slices: Vec::new(), tables: Vec::new(), blocks: Vec::new() };
        taken.take_blocks();
        taken
    }

    /// Copies of everything. The order matters: whatever a copied slice points to is in a block
    /// copied later, because an increment comes before the pointer.
    pub(crate) fn take(&self, with_blocks: bool) -> Taken<'_> {
        let mut taken =
            Taken { dirty: self, slices: Vec::new(), tables: Vec::new(), blocks: Vec::new() };
        let slices = std::mem::take(&mut *lock(&self.slices));
        let tables = std::mem::take(&mut *lock(&self.new_tables));
        taken.tables.extend(tables.into_iter().map(take_table));
        for (table, number) in slices {
            // A slice of a new table was taken with it.
            if let Some(copy) = table.loaded_slice(number).take_copy() {
                taken.slices.push(TakenSlice { table, number, copy });
            }
        }
        if with_blocks {
            taken.take_blocks();
        }
        // Blocks that are left, because their writing is delayed, must not press for a write-back.
        self.bytes.store(0, Ordering::Relaxed);
        taken
    }
}

impl Taken<'_> {
    fn take_blocks(&mut self) {
        let blocks = std::mem::take(&mut *lock(&self.dirty.blocks));
        let copies = blocks
            .into_iter()
            .filter_map(|block| block.take_copy().map(|copy| TakenBlock { block, copy }));
        self.blocks.extend(copies);
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.slices.is_empty() && self.tables.is_empty() && self.blocks.is_empty()
    }

    /// What the slices wait for.
    pub(crate) fn after(&self) -> After {
        let after = self.slices.iter().map(|slice| slice.copy.after).max();
        after.unwrap_or(After::NOTHING)
    }

    /// Everything is in the file, and durable.
    pub(crate) fn all_durable(mut self) {
        for slice in self.slices.drain(..) {
            if slice.table.loaded_slice(slice.number).written() {
                slice.table.remove_unclean();
            }
        }
        self.stage_a_durable();
    }

    /// Blocks and new tables are in the file, and durable: from now on a table is one like any
    /// other, whatever becomes of the entry that names it.
    pub(crate) fn stage_a_durable(&mut self) {
        for taken in self.tables.drain(..) {
            for (number, _) in taken.dirty_slices {
                if taken.table.loaded_slice(number).written() {
                    taken.table.remove_unclean();
                }
            }
            taken.table.remove_unclean();
        }
        self.blocks_durable();
    }

    /// The blocks are in the file, and durable.
    pub(crate) fn blocks_durable(&mut self) {
        for taken in self.blocks.drain(..) {
            taken.block.written();
            taken.block.made_durable(taken.copy.change);
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        for slice in self.slices.drain(..) {
            if slice.table.loaded_slice(slice.number).not_written(slice.copy.after) {
                lock(&self.dirty.slices).push((slice.table, slice.number));
            }
        }
        for taken in self.tables.drain(..) {
            for (number, after) in taken.dirty_slices {
                if taken.table.loaded_slice(number).not_written(after) {
                    lock(&self.dirty.slices).push((Arc::clone(&taken.table), number));
                }
            }
            // It has its reason to stay already.
            lock(&self.dirty.new_tables).push(taken.table);
        }
        for taken in self.blocks.drain(..) {
            if taken.block.not_written() {
                lock(&self.dirty.blocks).push(taken.block);
            }
        }
    }
}

fn take_table(table: Arc<L2Table>) -> TakenTable {
    let mut dirty_slices = Vec::new();
    let mut bytes = Vec::new();
    for number in 0..table.slice_count() {
        let slice = table.loaded_slice(number);
        match slice.take_copy() {
            Some(copy) => {
                dirty_slices.push((number, copy.after));
                bytes.extend(copy.bytes);
            }
            None => bytes.extend(slice.bytes()),
        }
    }
    TakenTable { table, bytes: IoBuffer::from_slice(&bytes), dirty_slices }
}

fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
