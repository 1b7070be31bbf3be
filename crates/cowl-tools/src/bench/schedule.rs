//! Which request comes when: pure functions of the number of the request, so that any number of
//! lanes makes the same ones.

/// In which order the bytes of a disk are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchOrder {
    /// One behind the other; at the end of the disk it goes on at the start.
    Sequential {
        /// Where the first request is.
        offset: u64,
        /// How far the next one is behind it.
        step: u64,
    },
    /// Anywhere, at multiples of the length of a request.
    Random {
        /// Another seed gives other places.
        seed: u64,
    },
}

/// What happens to the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchWork {
    /// They are read.
    Read,
    /// They are written.
    Write,
    /// Either.
    Mixed {
        /// How many requests of a hundred read.
        read_percent: u32,
        /// Another seed gives another mix.
        seed: u64,
    },
}

impl BenchOrder {
    /// The first byte of request `index` of `length` bytes on a disk of `size` bytes.
    pub(super) fn offset(self, index: u64, length: u64, size: u64) -> u64 {
        match self {
            Self::Sequential { offset, .. } if index == 0 => offset,
            // The last place is never visited, as in qemu-img.
            Self::Sequential { offset, step } => match size.checked_sub(length) {
                None | Some(0) => 0,
                Some(places) => {
                    let at = u128::from(offset) + u128::from(index) * u128::from(step);
                    u64::try_from(at % u128::from(places)).expect("less than the places")
                }
            },
            Self::Random { seed } => match size / length {
                0 => 0,
                places => mix(seed, index) % places * length,
            },
        }
    }
}

impl BenchWork {
    /// Whether request `index` reads.
    pub(super) fn reads(self, index: u64) -> bool {
        match self {
            Self::Read => true,
            Self::Write => false,
            Self::Mixed { read_percent, seed } => {
                mix(seed ^ 0x5bd1_e995, index) % 100 < u64::from(read_percent)
            }
        }
    }
}

/// SplitMix64: number `index` of the sequence that `seed` begins.
fn mix(seed: u64, index: u64) -> u64 {
    let mut mixed = seed.wrapping_add((index + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use super::{BenchOrder, BenchWork};

    #[test]
    fn a_sequence_wraps_before_the_end() {
        let order = BenchOrder::Sequential { offset: 1024, step: 4096 };
        let at = |index| order.offset(index, 4096, 16_384);
        assert_eq!([at(0), at(1), at(2), at(3)], [1024, 5120, 9216, 1024]);
    }

    #[test]
    fn the_first_offset_is_as_given_even_behind_the_end() {
        let order = BenchOrder::Sequential { offset: 1 << 40, step: 0 };
        assert_eq!(order.offset(0, 4096, 8192), 1 << 40);
        assert_eq!(order.offset(1, 4096, 4096), 0);
        let far = BenchOrder::Sequential { offset: u64::MAX, step: u64::MAX };
        assert!(far.offset(u64::MAX, 4096, 8192) < 4096);
    }

    #[test]
    fn random_places_lie_in_the_disk_and_spread() {
        let order = BenchOrder::Random { seed: 1 };
        let places: std::collections::BTreeSet<u64> =
            (0..1000).map(|index| order.offset(index, 4096, 100 * 4096 + 5)).collect();
        assert!(places.iter().all(|at| at % 4096 == 0 && at + 4096 <= 100 * 4096));
        assert!(95 < places.len());
    }

    #[test]
    fn a_mix_of_nothing_but_reads_only_reads() {
        for (read_percent, expected) in [(100, true), (0, false)] {
            let work = BenchWork::Mixed { read_percent, seed: 3 };
            assert!((0..1000).all(|index| work.reads(index) == expected));
        }
    }
}
