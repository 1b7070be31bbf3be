//! The first entries of a slice, as far as each is the one before it and the same step more.
//!
//! Most images were written from one end to the other, or hold nothing yet: their clusters lie in
//! the host file in the order of the disk, or no entry has anything. There an entry is a sum, and a
//! lookup need not fetch its word, which no processor cache has when the disk is large.

use crate::sync::atomic::{AtomicUsize, Ordering};

/// The first entries of a slice of standard entries.
pub(crate) struct EvenEntries {
    first: u64,
    step: u64,
    /// How many there are. Changes of entries only make it less.
    count: AtomicUsize,
}

impl EvenEntries {
    /// No entries.
    pub(crate) fn none() -> Self {
        Self { first: 0, step: 0, count: AtomicUsize::new(0) }
    }

    /// Those of `words`, from the first one on.
    pub(crate) fn of(words: impl Iterator<Item = u64>) -> Self {
        let mut words = words;
        let (Some(first), Some(second)) = (words.next(), words.next()) else { return Self::none() };
        let step = second.wrapping_sub(first);
        let mut last = second;
        let is_next = |word: &u64| word.wrapping_sub(std::mem::replace(&mut last, *word)) == step;
        let count = 2 + words.take_while(is_next).count();
        Self { first, step, count: AtomicUsize::new(count) }
    }

    /// The entry at `place`; `None` for those that have a word of their own.
    #[inline]
    pub(crate) fn get(&self, place: usize) -> Option<u64> {
        let is_one = place < self.count.load(Ordering::Acquire);
        is_one.then(|| self.first.wrapping_add(self.step.wrapping_mul(place as u64)))
    }

    /// To be called before the entry at `place` becomes `word`, by one caller at a time: unless
    /// that is what it is, it and those behind it are what their words say from now on.
    pub(crate) fn make_way(&self, place: usize, word: u64) {
        if self.get(place).is_some_and(|own| own != word) {
            self.count.store(place, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::EvenEntries;

    fn even(words: &[u64]) -> EvenEntries {
        EvenEntries::of(words.iter().copied())
    }

    fn all(entries: &EvenEntries, count: usize) -> Vec<Option<u64>> {
        (0..count).map(|place| entries.get(place)).collect()
    }

    #[test]
    fn entries_are_sums_as_far_as_the_step_is_the_same() {
        let row = even(&[10, 13, 16, 20, 23]);
        assert_eq!(all(&row, 6), [Some(10), Some(13), Some(16), None, None, None]);
        let down = even(&[1, 0, u64::MAX]);
        assert_eq!(all(&down, 4), [Some(1), Some(0), Some(u64::MAX), None]);
        let alike = even(&[0; 3]);
        assert_eq!(all(&alike, 4), [Some(0), Some(0), Some(0), None]);
        assert_eq!(all(&even(&[7]), 2), [None, None]);
        assert_eq!(all(&even(&[]), 1), [None]);
    }

    #[test]
    fn a_change_ends_them() {
        let row = even(&[10, 13, 16, 19]);
        row.make_way(2, 16);
        assert_eq!(all(&row, 4), [Some(10), Some(13), Some(16), Some(19)]);
        row.make_way(2, 17);
        assert_eq!(all(&row, 4), [Some(10), Some(13), None, None]);
        row.make_way(3, 0);
        assert_eq!(all(&row, 4), [Some(10), Some(13), None, None]);
        row.make_way(0, 0);
        assert_eq!(row.get(0), None);
    }
}
