//! The active L1 table of an open image, in memory whole.
//!
//! Lookups read it without a lock while entries change and while it grows: chunks that double in
//! size are added at its end and never move. What changed is remembered by sector, until a commit
//! takes a copy of it.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use cowl_format::L1Entry;

use crate::sync::{Mutex, MutexGuard, OnceLock};

/// Entries of the first chunk.
const FIRST: usize = 1024;

/// Enough chunks for the longest table: 4 Mi entries.
const CHUNKS: usize = 13;

/// Entries written together: one sector, which no power cut tears.
pub(crate) const SECTOR_ENTRIES: usize = 64;

/// An L1 table.
pub(crate) struct L1Table {
    chunks: [OnceLock<Box<[AtomicU64]>>; CHUNKS],
    /// Sectors that differ from the file.
    dirty: Mutex<BTreeSet<usize>>,
}

/// A sector of the table as it was when the copy was taken.
pub(crate) struct L1Sector {
    pub(crate) number: usize,
    pub(crate) bytes: Vec<u8>,
}

impl L1Table {
    /// A table of `used` entries, by index, and unallocated elsewhere.
    pub(crate) fn new(used: &[(usize, L1Entry)]) -> Self {
        let table = Self {
            chunks: [const { OnceLock::new() }; CHUNKS],
            dirty: Mutex::new(BTreeSet::new()),
        };
        for (index, entry) in used {
            table.store(*index, *entry);
        }
        table
    }

    /// The entry at `index`; unallocated past the end.
    pub(crate) fn get(&self, index: usize) -> L1Entry {
        let (chunk, within) = place(index);
        match self.chunks.get(chunk).and_then(OnceLock::get) {
            Some(entries) => L1Entry::from_raw(entries[within].load(Ordering::Acquire)),
            None => L1Entry::UNALLOCATED,
        }
    }

    /// Changes an entry, to be written by the next commit.
    pub(crate) fn set(&self, index: usize, entry: L1Entry) {
        let mut dirty = self.dirty();
        self.store(index, entry);
        dirty.insert(index / SECTOR_ENTRIES);
    }

    /// Whether a sector waits to be written.
    pub(crate) fn is_dirty(&self) -> bool {
        !self.dirty().is_empty()
    }

    /// Copies of the sectors that differ from the file; they count as written from now on.
    pub(crate) fn take_dirty(&self) -> Vec<L1Sector> {
        let mut dirty = self.dirty();
        let numbers = std::mem::take(&mut *dirty);
        numbers
            .into_iter()
            .map(|number| {
                let first = number * SECTOR_ENTRIES;
                let entries = (first..first + SECTOR_ENTRIES).map(|index| self.get(index));
                let bytes = entries.flat_map(|entry| entry.raw().to_be_bytes()).collect();
                L1Sector { number, bytes }
            })
            .collect()
    }

    /// These sectors were not written after all.
    pub(crate) fn put_back(&self, sectors: impl IntoIterator<Item = usize>) {
        self.dirty().extend(sectors);
    }

    /// The first `count` entries.
    pub(crate) fn entries(&self, count: usize) -> impl Iterator<Item = L1Entry> {
        (0..count).map(|index| self.get(index))
    }

    /// Bytes of memory.
    pub(crate) fn memory(&self) -> usize {
        self.chunks.iter().filter_map(OnceLock::get).map(|chunk| size_of_val(&**chunk)).sum()
    }

    fn store(&self, index: usize, entry: L1Entry) {
        let (chunk, within) = place(index);
        let new = || bytemuck::zeroed_slice_box(FIRST << chunk.saturating_sub(1));
        self.chunks[chunk].get_or_init(new)[within].store(entry.raw(), Ordering::Release);
    }

    fn dirty(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chunk and place in it: 0..1024, 1024..2048, 2048..4096, ...
fn place(index: usize) -> (usize, usize) {
    let doublings = (index / FIRST).checked_ilog2().map_or(0, |log| log as usize + 1);
    match doublings {
        0 => (0, index),
        chunk => (chunk, index - (FIRST << (chunk - 1))),
    }
}

#[cfg(test)]
mod tests {
    use cowl_format::L1Entry;

    use super::{CHUNKS, FIRST, L1Table, place};

    #[test]
    fn every_index_has_a_place_of_its_own() {
        let mut expected = (0, 0);
        for index in 0..5 << 20 {
            let found = place(index);
            assert_eq!(found, expected);
            let length = FIRST << found.0.saturating_sub(1);
            expected = if found.1 + 1 < length { (found.0, found.1 + 1) } else { (found.0 + 1, 0) };
        }
        assert!(place((4 << 20) - 1).0 < CHUNKS);
    }

    #[test]
    fn changes_come_back_as_sectors() {
        let table = L1Table::new(&[(0, L1Entry::from_raw(0x10000))]);
        assert!(table.take_dirty().is_empty());
        table.set(1, L1Entry::from_raw(0x20000));
        table.set(5000, L1Entry::from_raw(0x30000));
        assert_eq!(table.get(5000).raw(), 0x30000);
        assert_eq!(table.get(4999).raw(), 0);
        let sectors = table.take_dirty();
        assert_eq!(sectors.len(), 2);
        assert_eq!(sectors[0].bytes[..16], [0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0]);
        assert_eq!(sectors[1].number, 5000 / 64);
        assert!(!table.is_dirty());
        table.put_back([78]);
        assert!(table.is_dirty());
    }
}
