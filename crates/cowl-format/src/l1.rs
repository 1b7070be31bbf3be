//! L1 entries: where an L2 table lives.
//!
//!   63 62      56 55                                           9 8        0
//!  +--+----------+----------------------------------------------+----------+
//!  | C| reserved |  L2 table offset (its low 9 bits are zero)   | reserved |
//!  +--+----------+----------------------------------------------+----------+
//!    C copied: the L2 table's refcount is exactly one (true only in the active L1 table)
//!
//! QEMU ignores reserved bits when it reads and reports them in a check; so does this file.

use crate::{Corruption, Geometry, HostOffset};

const COPIED: u64 = 1 << 63;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const RESERVED_MASK: u64 = 0x7f00_0000_0000_01ff;

/// One entry of an L1 table, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct L1Entry(u64);

impl L1Entry {
    /// The entry that names no L2 table.
    pub const UNALLOCATED: Self = Self(0);

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

    /// An entry for the table at `table`.
    #[must_use]
    pub fn new(table: HostOffset, copied: bool, geometry: Geometry) -> Self {
        assert!(geometry.is_cluster_aligned(table.get()));
        assert!(table.get() & !OFFSET_MASK == 0);
        assert!(0 < table.get());
        Self(table.get() | if copied { COPIED } else { 0 })
    }

    /// The L2 table it names; `None` when it names none.
    #[inline]
    pub fn table(self, geometry: Geometry) -> Result<Option<HostOffset>, Corruption> {
        let offset = self.0 & OFFSET_MASK;
        if !geometry.is_cluster_aligned(offset) {
            return Err(Corruption::L2TableUnaligned { offset });
        }
        Ok((offset != 0).then_some(HostOffset::new(offset)))
    }

    /// The offset field without any check, for checkers.
    #[must_use]
    pub const fn offset_unchecked(self) -> u64 {
        self.0 & OFFSET_MASK
    }

    /// Whether the table's refcount is exactly one.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        self.0 & COPIED != 0
    }

    /// Whether bits are set that mean nothing yet.
    #[must_use]
    pub const fn has_reserved_bits(self) -> bool {
        self.0 & RESERVED_MASK != 0
    }
}

#[cfg(test)]
mod tests {
    use super::L1Entry;
    use crate::{Corruption, Geometry, HostOffset};

    #[test]
    fn entries_round_trip() {
        let geometry = Geometry::new(16, 4, false).unwrap();
        let entry = L1Entry::new(HostOffset::new(0x50000), true, geometry);
        assert_eq!(entry.raw(), 0x8000_0000_0005_0000);
        assert_eq!(entry.table(geometry), Ok(Some(HostOffset::new(0x50000))));
        assert!(entry.is_copied() && !entry.has_reserved_bits());
        assert_eq!(L1Entry::UNALLOCATED.table(geometry), Ok(None));
    }

    #[test]
    fn an_unaligned_table_is_corruption() {
        let geometry = Geometry::new(16, 4, false).unwrap();
        let entry = L1Entry::from_raw(0x8000_0000_0005_0200);
        assert_eq!(entry.table(geometry), Err(Corruption::L2TableUnaligned { offset: 0x50200 }));
    }

    #[test]
    fn reserved_bits_are_seen_and_ignored() {
        let geometry = Geometry::new(16, 4, false).unwrap();
        let entry = L1Entry::from_raw(0x4000_0000_0005_0001);
        assert!(entry.has_reserved_bits());
        assert_eq!(entry.table(geometry), Ok(Some(HostOffset::new(0x50000))));
    }
}
