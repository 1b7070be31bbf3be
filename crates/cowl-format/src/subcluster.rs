//! Subcluster bitmaps: the second half of an extended L2 entry.
//!
//!   63                        32 31                         0
//!  +----------------------------+----------------------------+
//!  |  reads as zero, bit by     |  data in the cluster, bit  |
//!  |  subcluster                |  by subcluster             |
//!  +----------------------------+----------------------------+
//!
//! Invariants, checked by [`SubclusterBitmap::decode`]: no subcluster has both bits; without a host
//! cluster no data bit is set.

/// What one subcluster reads as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SubclusterState {
    /// Its part of the host cluster.
    Data,
    /// Zeros.
    Zero,
    /// Whatever the backing file has there.
    Unallocated,
}

/// Both bits of all 32 subclusters of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SubclusterBitmap(u64);

impl SubclusterBitmap {
    /// Every subcluster unallocated.
    pub const UNALLOCATED: Self = Self(0);
    /// Every subcluster data.
    pub const ALL_DATA: Self = Self(0xffff_ffff);
    /// Every subcluster zero.
    pub const ALL_ZERO: Self = Self(0xffff_ffff << 32);

    /// Checks the stored number; `None` when it contradicts itself.
    #[must_use]
    pub const fn decode(raw: u64, has_host_cluster: bool) -> Option<Self> {
        let (zero, data) = (raw >> 32, raw & 0xffff_ffff);
        if zero & data != 0 || (!has_host_cluster && data != 0) {
            return None;
        }
        Some(Self(raw))
    }

    /// The stored number.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The same bitmap with `count` subclusters from `first` on in another state.
    #[must_use]
    pub const fn with(self, first: u32, count: u32, state: SubclusterState) -> Self {
        assert!(0 < count && first + count <= 32);
        let data = (u32::MAX >> (32 - count)) as u64 * (1 << first);
        let cleared = self.0 & !(data | data << 32);
        Self(match state {
            SubclusterState::Data => cleared | data,
            SubclusterState::Zero => cleared | data << 32,
            SubclusterState::Unallocated => cleared,
        })
    }

    /// Whether any subcluster is in the host cluster.
    #[must_use]
    pub const fn has_data(self) -> bool {
        self.0 & 0xffff_ffff != 0
    }

    /// The state of subcluster `index`, below 32.
    #[must_use]
    pub const fn state(self, index: u32) -> SubclusterState {
        assert!(index < 32);
        if self.0 & (1 << index) != 0 {
            SubclusterState::Data
        } else if self.0 & (1 << (index + 32)) != 0 {
            SubclusterState::Zero
        } else {
            SubclusterState::Unallocated
        }
    }

    /// How many subclusters from `index` on share its state.
    #[must_use]
    pub const fn run(self, index: u32) -> u32 {
        let (data, zero) = ((self.0 & 0xffff_ffff) >> index, self.0 >> 32 >> index);
        let length = match self.state(index) {
            SubclusterState::Data => (!data).trailing_zeros(),
            SubclusterState::Zero => (!zero).trailing_zeros(),
            SubclusterState::Unallocated => (data | zero).trailing_zeros(),
        };
        if length < 32 - index { length } else { 32 - index }
    }
}

#[cfg(test)]
mod tests {
    use super::{SubclusterBitmap, SubclusterState};

    #[test]
    fn contradictions_are_refused() {
        assert_eq!(SubclusterBitmap::decode(1 | 1 << 32, true), None);
        assert_eq!(SubclusterBitmap::decode(1, false), None);
        assert!(SubclusterBitmap::decode(1 << 32, false).is_some());
    }

    #[test]
    fn runs_cover_the_cluster_for_any_bitmap() {
        for seed in 0..10_000_u64 {
            let noise = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let data = noise & 0xffff_ffff;
            let zero = (noise >> 32) & !data & 0xffff_ffff;
            let bitmap = SubclusterBitmap::decode(data | zero << 32, true).unwrap();
            let mut index = 0;
            while index < 32 {
                let run = bitmap.run(index);
                assert!(0 < run);
                for inside in index..index + run {
                    assert_eq!(bitmap.state(inside), bitmap.state(index));
                }
                index += run;
                if index < 32 {
                    assert_ne!(bitmap.state(index), bitmap.state(index - 1));
                }
            }
            assert_eq!(index, 32);
        }
    }

    #[test]
    fn changing_a_run_leaves_its_neighbours_alone() {
        let bitmap = SubclusterBitmap::ALL_ZERO.with(3, 5, SubclusterState::Data);
        assert_eq!((bitmap.state(2), bitmap.run(0)), (SubclusterState::Zero, 3));
        assert_eq!((bitmap.state(3), bitmap.run(3)), (SubclusterState::Data, 5));
        assert_eq!((bitmap.state(8), bitmap.run(8)), (SubclusterState::Zero, 24));
        let all = bitmap.with(0, 32, SubclusterState::Data);
        assert_eq!(all, SubclusterBitmap::ALL_DATA);
        let bitmap = all.with(31, 1, SubclusterState::Unallocated);
        assert_eq!(bitmap.state(31), SubclusterState::Unallocated);
        assert!(bitmap.has_data());
        assert!(!bitmap.with(0, 31, SubclusterState::Zero).has_data());
    }

    #[test]
    fn uniform_bitmaps_are_one_run() {
        assert_eq!(SubclusterBitmap::ALL_DATA.run(0), 32);
        assert_eq!(SubclusterBitmap::ALL_ZERO.state(31), SubclusterState::Zero);
        assert_eq!(SubclusterBitmap::UNALLOCATED.run(5), 27);
    }
}
