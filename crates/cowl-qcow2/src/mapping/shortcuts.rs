//! Where in a long chain the search for a byte may go on below the top layer.
//!
//! Layers below the top one do not change while they are open. So what one search has found out
//! stays true: that nothing above some depth has a say about a *granule*, as many bytes as every
//! lower layer maps together. The next search asks the top layer and goes on at that depth.
//!
//! One word for each granule, in a table that forgets: granules with the same place replace each
//! other. A word is whole or not there, and says nothing about any other, so no order is needed.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::Storage;

use crate::Layer;

/// Granules that are remembered: 64 KiB of words, 512 MiB of a disk with clusters of 64 KiB.
const PLACES: usize = 8192;

/// Low bits of a word, which hold the depth. The others hold the granule.
const DEPTH_BITS: u32 = 16;

/// Layers from which on a search costs more than to remember it.
const LAYERS_MIN: usize = 3;

/// What searches of one image have found out.
pub(crate) struct Shortcuts {
    granule_bits: u32,
    /// Below this offset every layer has its say about all of a granule.
    end: u64,
    /// Made when there is something to remember.
    words: OnceLock<Box<[AtomicU64]>>,
}

/// A granule, as its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Granule(u64);

impl Shortcuts {
    /// For `layers`, the top one first; `None` where there is nothing to gain.
    pub(crate) fn new<S: Storage>(layers: &[Layer<S>]) -> Option<Self> {
        let lower = layers.get(1..)?;
        let unit = lower.iter().map(|layer| layer.geometry().subcluster_size()).min()?;
        let end = lower.iter().map(|layer| layer.mapped_size().get()).min()?;
        let is_long = LAYERS_MIN <= layers.len() && layers.len() < 1 << DEPTH_BITS;
        is_long.then(|| Self::with(unit, end))
    }

    fn with(unit: u64, end: u64) -> Self {
        Self { granule_bits: unit.ilog2(), end: end / unit * unit, words: OnceLock::new() }
    }

    /// The granule that has all of a range, if there is one to remember.
    pub(crate) fn granule(&self, at: GuestOffset, length: ByteCount) -> Option<Granule> {
        let last = at.get().checked_add(length.get().checked_sub(1)?)?;
        let number = at.get() >> self.granule_bits;
        let is_one = last < self.end
            && number == last >> self.granule_bits
            && number < 1 << (u64::BITS - DEPTH_BITS);
        is_one.then_some(Granule(number))
    }

    /// The first depth below the top layer that may have a say about `granule`.
    pub(crate) fn depth(&self, granule: Granule) -> usize {
        let Some(words) = self.words.get() else { return 1 };
        let word = words[place(granule)].load(Ordering::Relaxed);
        if word >> DEPTH_BITS != granule.0 {
            return 1;
        }
        // No word yet reads as depth 0 of the first granule.
        usize::try_from(word & ((1 << DEPTH_BITS) - 1)).expect("16 bits").max(1)
    }

    /// Remembers that the layers from the second one to the one above `depth` have nothing of
    /// `granule`.
    pub(crate) fn remember(&self, granule: Granule, depth: usize) {
        let words = self.words.get_or_init(|| bytemuck::zeroed_slice_box(PLACES));
        let word = granule.0 << DEPTH_BITS | depth as u64;
        words[place(granule)].store(word, Ordering::Relaxed);
    }
}

/// Neighbours have places of their own.
fn place(granule: Granule) -> usize {
    usize::try_from(granule.0 % PLACES as u64).expect("fewer than there are places")
}

#[cfg(test)]
mod tests {
    use cowl_format::{ByteCount, GuestOffset};

    use super::{PLACES, Shortcuts};

    const UNIT: u64 = 1 << 16;

    fn granule(shortcuts: &Shortcuts, at: u64, length: u64) -> Option<super::Granule> {
        shortcuts.granule(GuestOffset::new(at), ByteCount::new(length))
    }

    #[test]
    fn only_ranges_within_one_whole_granule_have_one() {
        let shortcuts = Shortcuts::with(UNIT, 3 * UNIT + 512);
        assert!(granule(&shortcuts, 0, UNIT).is_some());
        assert!(granule(&shortcuts, UNIT + 5, 7).is_some());
        assert!(granule(&shortcuts, 1, UNIT).is_none());
        assert!(granule(&shortcuts, 0, 0).is_none());
        // The shortest layer ends within the last one.
        assert!(granule(&shortcuts, 3 * UNIT, 512).is_none());
        assert!(granule(&shortcuts, u64::MAX, 1).is_none());
    }

    #[test]
    fn a_granule_is_taken_for_no_other() {
        let shortcuts = Shortcuts::with(512, u64::MAX);
        let all = [0, 1, PLACES as u64, PLACES as u64 + 1, 1 << 40];
        let granules = all.map(|number| granule(&shortcuts, number * 512, 512).unwrap());
        for (depth, last) in (7..).zip(granules) {
            assert_eq!(shortcuts.depth(last), 1);
            shortcuts.remember(last, depth);
            assert_eq!(shortcuts.depth(last), depth);
        }
        // Replaced by the last one with the same place.
        assert_eq!(granules.map(|granule| shortcuts.depth(granule)), [1, 1, 1, 10, 11]);
    }
}
