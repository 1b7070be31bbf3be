//! Numbers from a seed: the only source of chance in a simulation.
//!
//! Each part of a simulation has a generator of its own, forked by name, so that one more draw in
//! one part does not change what the others draw.

/// A small generator (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

/// Scatters the bits of a number: equal numbers give equal results, close ones distant ones.
#[must_use]
pub const fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

impl Random {
    /// A sequence of its own for each seed.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The generator of the part called `name`, whatever was drawn from this one before it was
    /// made.
    #[must_use]
    pub fn of(seed: u64, name: &str) -> Self {
        Self { state: name.bytes().fold(mix(seed), |state, byte| mix(state ^ u64::from(byte))) }
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        let mixed = mix(self.state);
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed
    }

    /// A number from 0 up to and without `end`.
    ///
    /// # Panics
    /// When there is none.
    pub fn below(&mut self, end: u64) -> u64 {
        assert!(0 < end, "an empty range has no numbers");
        self.number() % end
    }

    /// An index into something of `length` items.
    ///
    /// # Panics
    /// When there is no item.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("below a usize")
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// One of `items`.
    ///
    /// # Panics
    /// When there is none.
    pub fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.index(items.len())]
    }

    /// An index, each as often as its weight says.
    ///
    /// # Panics
    /// When all weights are zero.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut left = self.below(weights.iter().sum());
        for (index, weight) in weights.iter().enumerate() {
            if left < *weight {
                return index;
            }
            left -= weight;
        }
        unreachable!("the number drawn is below the sum of the weights")
    }

    /// Any order of `items`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.index(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn parts_draw_independently() {
        let mut one = Random::of(7, "one");
        let mut again = Random::of(7, "one");
        assert_eq!(one.number(), again.number());
        assert_ne!(Random::of(7, "two").number(), Random::of(7, "one").number());
    }

    #[test]
    fn a_weight_of_zero_is_never_drawn() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| random.weighted(&[3, 0, 1]) != 1));
    }
}
