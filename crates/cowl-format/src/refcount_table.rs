//! Refcount table entries: where a refcount block lives.
//!
//! Bits 9 to 63 are the block's offset, cluster-aligned; bits 0 to 8 are reserved. Zero means that
//! all clusters of the block have refcount 0.

use crate::{Corruption, Geometry, HostOffset};

const OFFSET_MASK: u64 = !0x1ff;

/// One entry of the refcount table, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RefcountTableEntry(u64);

impl RefcountTableEntry {
    /// Wraps the stored number.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Self {
        Self(raw)
    }

    /// The stored number.
    #[must_use]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// An entry for the block at `block`.
    #[must_use]
    pub fn new(block: HostOffset, geometry: Geometry) -> Self {
        assert!(0 < block.get());
        assert!(geometry.is_cluster_aligned(block.get()));
        Self(block.get())
    }

    /// The refcount block it names; `None` when it names none.
    pub fn block(self, geometry: Geometry) -> Result<Option<HostOffset>, Corruption> {
        let offset = self.0 & OFFSET_MASK;
        if !geometry.is_cluster_aligned(offset) {
            return Err(Corruption::RefcountBlockUnaligned { offset });
        }
        Ok((offset != 0).then_some(HostOffset::new(offset)))
    }

    /// The offset field without any check, for checkers.
    #[must_use]
    pub const fn offset_unchecked(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// Whether bits are set that mean nothing yet.
    #[must_use]
    pub const fn has_reserved_bits(self) -> bool {
        self.0 & !OFFSET_MASK != 0
    }
}

#[cfg(test)]
mod tests {
    use super::RefcountTableEntry;
    use crate::{Corruption, Geometry, HostOffset};

    #[test]
    fn entries_round_trip_and_alignment_is_checked() {
        let geometry = Geometry::new(12, 4, false).unwrap();
        let block = HostOffset::new(0x3000);
        let entry = RefcountTableEntry::new(block, geometry);
        assert_eq!(entry.block(geometry), Ok(Some(block)));
        assert_eq!(RefcountTableEntry::from_raw(0).block(geometry), Ok(None));
        let unaligned = RefcountTableEntry::from_raw(0x3200);
        let error = Corruption::RefcountBlockUnaligned { offset: 0x3200 };
        assert_eq!(unaligned.block(geometry), Err(error));
        assert!(RefcountTableEntry::from_raw(0x3001).has_reserved_bits());
    }
}
