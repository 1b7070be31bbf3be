//! A part of an L2 table in memory: the unit that is loaded, changed and written back.
//!
//! Lookups read entries without a lock. Changes go one at a time for each slice, under its lock,
//! which also holds what the write-back has to know: whether the slice differs from the file, and
//! which barrier has to have returned before it may be written.
//!
//! An extended entry has two words. A reader that meets a change half done reads again: the version
//! is odd meanwhile.

use std::sync::PoisonError;

use cowl_format::L2Entry;

use crate::cache::even_entries::EvenEntries;
use crate::flush::After;
use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use crate::sync::{Mutex, MutexGuard, spin_loop};

/// Entries of an L2 table, one after another.
pub(crate) struct L2Slice {
    words: Box<[AtomicU64]>,
    /// What of it needs no look at the words; none of extended entries.
    even: EvenEntries,
    entry_words: usize,
    /// Number of the first entry in its table.
    first: u32,
    version: AtomicU32,
    changes: Mutex<Changes>,
}

/// What the file does not have yet.
#[derive(Clone, Copy)]
struct Changes {
    is_dirty: bool,
    is_written_now: bool,
    after: After,
}

/// A slice as it was when the copy was taken.
pub(crate) struct SliceCopy {
    pub(crate) bytes: Vec<u8>,
    pub(crate) after: After,
}

/// What a change did to the state of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Became {
    /// The slice was clean, and is dirty now.
    Unclean,
    /// The slice is being written, and has to be once more.
    DirtyAgain,
    /// The slice was dirty already.
    Same,
}

impl L2Slice {
    /// The slice whose first entry is number `first`; `bytes` are as in the file.
    pub(crate) fn new(bytes: &[u8], entry_words: usize, first: u32) -> Self {
        let words = bytes.as_chunks().0.iter().map(|bytes| u64::from_be_bytes(*bytes));
        let even =
            if entry_words == 1 { EvenEntries::of(words.clone()) } else { EvenEntries::none() };
        Self {
            words: words.map(AtomicU64::new).collect(),
            even,
            entry_words,
            first,
            version: AtomicU32::new(0),
            changes: Mutex::new(Changes {
                is_dirty: false,
                is_written_now: false,
                after: After::NOTHING,
            }),
        }
    }

    /// The entry at `index` of the table; `None` outside the slice.
    #[inline]
    pub(crate) fn entry(&self, index: u32) -> Option<L2Entry> {
        let place = index.checked_sub(self.first)? as usize;
        if let Some(raw) = self.even.get(place) {
            return Some(L2Entry { raw, bitmap: 0 });
        }
        let word = place * self.entry_words;
        if self.entry_words == 1 {
            let raw = self.words.get(word)?.load(Ordering::Acquire);
            return Some(L2Entry { raw, bitmap: 0 });
        }
        let pair = self.words.get(word..word + 2)?;
        loop {
            let before = self.version.load(Ordering::Acquire);
            let raw = pair[0].load(Ordering::Relaxed);
            let bitmap = pair[1].load(Ordering::Relaxed);
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return Some(L2Entry { raw, bitmap });
            }
            spin_loop();
        }
    }

    /// Replaces the entry at `index`, which lies in the slice. The slice is not written before
    /// `after`. `became_unclean` is asked before a clean slice changes, and may forbid it.
    pub(crate) fn set(
        &self,
        index: u32,
        entry: L2Entry,
        after: After,
        became_unclean: impl FnOnce() -> bool,
    ) -> Option<Became> {
        let mut changes = self.changes();
        let became = match (changes.is_dirty, changes.is_written_now) {
            (true, _) => Became::Same,
            (false, true) => Became::DirtyAgain,
            (false, false) => Became::Unclean,
        };
        if became == Became::Unclean && !became_unclean() {
            return None;
        }
        changes.is_dirty = true;
        changes.after = changes.after.max(after);
        let word = (index - self.first) as usize * self.entry_words;
        if self.entry_words == 1 {
            self.even.make_way(word, entry.raw);
            self.words[word].store(entry.raw, Ordering::Release);
        } else {
            let version = self.version.load(Ordering::Relaxed);
            self.version.store(version.wrapping_add(1), Ordering::Relaxed);
            fence(Ordering::Release);
            self.words[word].store(entry.raw, Ordering::Relaxed);
            self.words[word + 1].store(entry.bitmap, Ordering::Relaxed);
            self.version.store(version.wrapping_add(2), Ordering::Release);
        }
        Some(became)
    }

    /// Sets an entry of a slice that nobody else has yet.
    pub(crate) fn fill(&self, index: u32, entry: L2Entry) {
        let word = (index - self.first) as usize * self.entry_words;
        self.even.make_way(word, entry.raw);
        self.words[word].store(entry.raw, Ordering::Relaxed);
        if self.entry_words == 2 {
            self.words[word + 1].store(entry.bitmap, Ordering::Relaxed);
        }
    }

    /// A copy to write, if the slice differs from the file. Changes from now on are the next
    /// copy's.
    pub(crate) fn take_copy(&self) -> Option<SliceCopy> {
        let mut changes = self.changes();
        // A slice that was copied with its new table and changed since is on the next list already.
        if !changes.is_dirty || changes.is_written_now {
            return None;
        }
        changes.is_dirty = false;
        changes.is_written_now = true;
        let after = std::mem::replace(&mut changes.after, After::NOTHING);
        Some(SliceCopy { bytes: self.bytes(), after })
    }

    /// The copy taken last is in the file. Returns whether the slice is clean now.
    pub(crate) fn written(&self) -> bool {
        let mut changes = self.changes();
        changes.is_written_now = false;
        !changes.is_dirty
    }

    /// The copy taken last did not get into the file, or nobody knows. Returns whether the slice
    /// has to be put on the list again.
    pub(crate) fn not_written(&self, after: After) -> bool {
        let mut changes = self.changes();
        changes.is_written_now = false;
        changes.after = changes.after.max(after);
        !std::mem::replace(&mut changes.is_dirty, true)
    }

    /// The content in the order of the file.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.words.len() * 8];
        for (place, word) in bytes.as_chunks_mut().0.iter_mut().zip(&self.words) {
            *place = word.load(Ordering::Relaxed).to_be_bytes();
        }
        bytes
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
