//! The active L1 table of an open image, in memory whole.
//!
//! Lookups read it without a lock while entries change and while it grows: pages are made when they
//! get their first entry, and never move, so a huge disk with little in it takes little. Where the
//! pages are stands in chunks that double in size. What changed is remembered by sector, until a
//! commit takes a copy of it.

use std::collections::BTreeSet;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use cowl_format::L1Entry;

use crate::sync::{Mutex, MutexGuard, OnceLock};

/// Entries of a page: half a terabyte with clusters of 64 KiB.
const PAGE: usize = 1024;

/// Enough chunks for the pages of the longest table behind the first one: 4 Mi entries.
const CHUNKS: usize = 12;

/// Entries written together: one sector, which no power cut tears.
pub(crate) const SECTOR_ENTRIES: usize = 64;

type Page = OnceLock<Box<[AtomicU64]>>;

/// An L1 table.
pub(crate) struct L1Table {
    /// All there is of most disks, one step nearer.
    first: Page,
    /// Of 1, 2, 4, ... pages.
    chunks: [OnceLock<Box<[Page]>>; CHUNKS],
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
            first: Page::new(),
            chunks: [const { OnceLock::new() }; CHUNKS],
            dirty: Mutex::new(BTreeSet::new()),
        };
        for (index, entry) in used {
            table.store(*index, *entry);
        }
        table
    }

    /// The entry at `index`; unallocated past the end.
    #[inline]
    pub(crate) fn get(&self, index: usize) -> L1Entry {
        let page = match place(index) {
            None => self.first.get(),
            Some((chunk, page)) => {
                let pages = self.chunks.get(chunk).and_then(OnceLock::get);
                pages.and_then(|pages| pages[page].get())
            }
        };
        match page {
            Some(entries) => L1Entry::from_raw(entries[index % PAGE].load(Ordering::Acquire)),
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
        let chunks = || self.chunks.iter().filter_map(OnceLock::get);
        let places: usize = chunks().map(|pages| size_of_val(&**pages)).sum();
        let pages = std::iter::once(&self.first).chain(chunks().flat_map(|pages| pages.iter()));
        places + pages.filter_map(OnceLock::get).map(|page| size_of_val(&**page)).sum::<usize>()
    }

    fn store(&self, index: usize, entry: L1Entry) {
        let page = match place(index) {
            None => &self.first,
            Some((chunk, page)) => {
                let new = || std::iter::repeat_with(Page::new).take(1 << chunk).collect();
                &self.chunks[chunk].get_or_init(new)[page]
            }
        };
        let entries = page.get_or_init(|| bytemuck::zeroed_slice_box(PAGE));
        entries[index % PAGE].store(entry.raw(), Ordering::Release);
    }

    fn dirty(&self) -> MutexGuard<'_, BTreeSet<usize>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Chunk, and page in it; `None` is the first page.
fn place(index: usize) -> Option<(usize, usize)> {
    let page = index / PAGE;
    let chunk = page.checked_ilog2()? as usize;
    Some((chunk, page - (1 << chunk)))
}

#[cfg(test)]
mod tests {
    use cowl_format::L1Entry;

    use super::{CHUNKS, L1Table, PAGE, place};

    #[test]
    fn every_page_has_a_place_of_its_own() {
        assert_eq!(place(0), None);
        assert_eq!(place(PAGE - 1), None);
        let mut expected = (0, 0);
        for page in 1..4096 {
            assert_eq!(place(page * PAGE), Some(expected));
            assert_eq!(place(page * PAGE + PAGE - 1), Some(expected));
            let is_last = expected.1 + 1 == 1 << expected.0;
            expected = if is_last { (expected.0 + 1, 0) } else { (expected.0, expected.1 + 1) };
        }
        assert_eq!(expected, (CHUNKS, 0), "the longest table ends where the chunks end");
    }

    #[test]
    fn one_entry_at_the_end_takes_one_page() {
        let last = (4 << 20) - 1;
        let table = L1Table::new(&[(last, L1Entry::from_raw(0x10000))]);
        assert_eq!(table.get(last).raw(), 0x10000);
        assert_eq!(table.get(last - PAGE).raw(), 0);
        assert_eq!(table.get(0).raw(), 0);
        assert!(table.memory() < 64 << 10);
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
