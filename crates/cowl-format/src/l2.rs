//! L2 entries: where one guest cluster lives.
//!
//!   63 62 61      56 55                                          9 8       1 0
//!  +--+--+----------+---------------------------------------------+---------+-+
//!  | C| Z| reserved |  host offset (its low 9 bits are zero)      | reserved|0|
//!  +--+--+----------+---------------------------------------------+---------+-+
//!    C copied: refcount is exactly one, write in place (true only in the active tables)
//!    Z compressed: the other 62 bits are a descriptor, see `compressed.rs`
//!    0 reads as zero (version 3; extended entries use a bitmap instead, see `subcluster.rs`)
//!
//! Invariants, checked by [`L2Entry::decode`]:
//!   - a host offset is cluster-aligned; zero means "not allocated", except with C set and an
//!     external data file,
//!   - version 2 has no zero flag,
//!   - with an external data file there are no compressed clusters.
//!
//! Reserved bits are ignored when reading and reported by a check, as in QEMU.
//!
//! This file does not know where a table is stored, cached, or in which order it is written.

use crate::{
    CompressedDescriptor, Corruption, Geometry, GuestOffset, HostOffset, SubclusterBitmap, Version,
};

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
const OFFSET_MASK: u64 = 0x00ff_ffff_ffff_fe00;
const RESERVED_MASK: u64 = 0x3f00_0000_0000_01fe;

/// One entry of an L2 table, as stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct L2Entry {
    /// The first or only 64 bits.
    pub raw: u64,
    /// The second 64 bits of an extended entry; zero otherwise.
    pub bitmap: u64,
}

/// What an L2 entry means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClusterMapping {
    /// Not in this image: the backing file has it.
    Unallocated,
    /// Reads as zeros. A host cluster may be reserved for it.
    Zero {
        /// The reserved host cluster.
        host: Option<HostOffset>,
    },
    /// Stored as it reads.
    Data {
        /// Its host cluster.
        host: HostOffset,
    },
    /// Compressed.
    Compressed(CompressedDescriptor),
    /// Extended entry whose subclusters differ, or are all alike: see the bitmap.
    Subclusters {
        /// The host cluster, if any.
        host: Option<HostOffset>,
        /// What each subcluster reads as.
        bitmap: SubclusterBitmap,
    },
}

/// What decoding needs to know about the image besides its geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryContext {
    pub(crate) version: Version,
    pub(crate) has_data_file: bool,
}

impl L2Entry {
    /// Decodes the entry for the cluster at `guest`.
    #[inline]
    pub fn decode(
        self,
        guest: GuestOffset,
        geometry: Geometry,
        version: Version,
        has_data_file: bool,
    ) -> Result<ClusterMapping, Corruption> {
        let context = EntryContext { version, has_data_file };
        if self.is_compressed() {
            return self.decode_compressed(guest, geometry, context);
        }
        let host = self.decode_host(guest, geometry, context)?;
        if geometry.has_extended_l2() {
            let bitmap = SubclusterBitmap::decode(self.bitmap, host.is_some())
                .ok_or(Corruption::SubclusterBitmap { guest, bitmap: self.bitmap })?;
            return Ok(ClusterMapping::Subclusters { host, bitmap });
        }
        if self.has_zero_flag() {
            if version == Version::V2 {
                return Err(Corruption::ZeroFlagInVersion2 { guest });
            }
            return Ok(ClusterMapping::Zero { host });
        }
        Ok(match host {
            Some(host) => ClusterMapping::Data { host },
            None => ClusterMapping::Unallocated,
        })
    }

    fn decode_compressed(
        self,
        guest: GuestOffset,
        geometry: Geometry,
        context: EntryContext,
    ) -> Result<ClusterMapping, Corruption> {
        if context.has_data_file {
            return Err(Corruption::CompressedWithDataFile { guest });
        }
        CompressedDescriptor::decode(self.raw, geometry)
            .map(ClusterMapping::Compressed)
            .map_err(|offset| Corruption::CompressedOffset { guest, offset })
    }

    #[inline]
    fn decode_host(
        self,
        guest: GuestOffset,
        geometry: Geometry,
        context: EntryContext,
    ) -> Result<Option<HostOffset>, Corruption> {
        let host = self.raw & OFFSET_MASK;
        let is_plain_zero = self.has_zero_flag() && !geometry.has_extended_l2();
        let may_be_at_zero = context.has_data_file && self.is_copied() && !is_plain_zero;
        if host == 0 && !may_be_at_zero {
            return Ok(None);
        }
        if !geometry.is_cluster_aligned(host) {
            return Err(Corruption::DataUnaligned { host, guest });
        }
        let cluster_start = guest.get() & !(geometry.cluster_size() - 1);
        if context.has_data_file && host != cluster_start {
            return Err(Corruption::DataFileOffset { guest, host });
        }
        Ok(Some(HostOffset::new(host)))
    }

    /// An entry for data at `host`.
    #[must_use]
    pub fn data(host: HostOffset, copied: bool, geometry: Geometry) -> Self {
        assert!(geometry.is_cluster_aligned(host.get()));
        assert!(host.get() & !OFFSET_MASK == 0);
        let raw = host.get() | if copied { COPIED } else { 0 };
        let bitmap = match geometry.has_extended_l2() {
            true => SubclusterBitmap::ALL_DATA.raw(),
            false => 0,
        };
        Self { raw, bitmap }
    }

    /// An entry that reads as zeros, with a host cluster reserved or not.
    #[must_use]
    pub fn zero(host: Option<HostOffset>, geometry: Geometry) -> Self {
        let raw = match host {
            Some(host) => {
                assert!(geometry.is_cluster_aligned(host.get()));
                assert!(host.get() & !OFFSET_MASK == 0);
                host.get() | COPIED
            }
            None => 0,
        };
        match geometry.has_extended_l2() {
            true => Self { raw, bitmap: SubclusterBitmap::ALL_ZERO.raw() },
            false => Self { raw: raw | ZERO, bitmap: 0 },
        }
    }

    /// An extended entry with a host cluster and a bitmap of its own.
    #[must_use]
    pub fn subclusters(host: HostOffset, bitmap: SubclusterBitmap, geometry: Geometry) -> Self {
        assert!(geometry.has_extended_l2());
        assert!(geometry.is_cluster_aligned(host.get()));
        Self { raw: host.get() | COPIED, bitmap: bitmap.raw() }
    }

    /// An entry for a compressed cluster.
    #[must_use]
    pub fn compressed(descriptor: CompressedDescriptor, geometry: Geometry) -> Self {
        Self { raw: descriptor.encode(geometry) | COMPRESSED, bitmap: 0 }
    }

    /// Whether bit 62 is set.
    #[must_use]
    pub const fn is_compressed(self) -> bool {
        self.raw & COMPRESSED != 0
    }

    /// Whether bit 63 is set.
    #[must_use]
    pub const fn is_copied(self) -> bool {
        self.raw & COPIED != 0
    }

    /// The same entry for a cluster that somebody else refers to as well.
    #[must_use]
    pub const fn without_copied(self) -> Self {
        Self { raw: self.raw & !COPIED, bitmap: self.bitmap }
    }

    /// The same host cluster, if any, with another bitmap: an extended entry that is not
    /// compressed.
    #[must_use]
    pub fn with_bitmap(self, bitmap: SubclusterBitmap) -> Self {
        assert!(!self.is_compressed());
        Self { raw: self.raw, bitmap: bitmap.raw() }
    }

    /// Whether bit 0 is set. It means nothing in extended and compressed entries.
    #[must_use]
    pub const fn has_zero_flag(self) -> bool {
        self.raw & ZERO != 0
    }

    /// The offset field of a standard entry without any check, for checkers.
    #[must_use]
    pub const fn offset_unchecked(self) -> u64 {
        self.raw & OFFSET_MASK
    }

    /// Whether a standard entry has bits set that mean nothing yet.
    #[must_use]
    pub const fn has_reserved_bits(self) -> bool {
        self.raw & RESERVED_MASK != 0
    }
}

#[cfg(test)]
mod tests {
    use super::{ClusterMapping, L2Entry};
    use crate::{
        ByteCount, CompressedDescriptor, Corruption, Geometry, GuestOffset, HostOffset,
        SubclusterBitmap, Version,
    };

    const GUEST: GuestOffset = GuestOffset::new(0x20000);

    fn standard() -> Geometry {
        Geometry::new(16, 4, false).unwrap()
    }

    fn decode(entry: L2Entry, geometry: Geometry) -> Result<ClusterMapping, Corruption> {
        entry.decode(GUEST, geometry, Version::V3, false)
    }

    fn raw(raw: u64) -> L2Entry {
        L2Entry { raw, bitmap: 0 }
    }

    #[test]
    fn every_kind_of_standard_entry_round_trips() {
        let geometry = standard();
        let host = HostOffset::new(0x70000);
        let stream = CompressedDescriptor::new(host, ByteCount::new(100), geometry).unwrap();
        let cases = [
            (raw(0), ClusterMapping::Unallocated),
            (L2Entry::data(host, true, geometry), ClusterMapping::Data { host }),
            (L2Entry::zero(None, geometry), ClusterMapping::Zero { host: None }),
            (L2Entry::zero(Some(host), geometry), ClusterMapping::Zero { host: Some(host) }),
            (L2Entry::compressed(stream, geometry), ClusterMapping::Compressed(stream)),
        ];
        for (entry, mapping) in cases {
            assert_eq!(decode(entry, geometry), Ok(mapping));
        }
    }

    #[test]
    fn extended_entries_carry_a_bitmap() {
        let geometry = Geometry::new(16, 4, true).unwrap();
        let host = HostOffset::new(0x70000);
        let entry = L2Entry::data(host, true, geometry);
        let bitmap = SubclusterBitmap::ALL_DATA;
        let mapping = ClusterMapping::Subclusters { host: Some(host), bitmap };
        assert_eq!(decode(entry, geometry), Ok(mapping));
        let broken = L2Entry { bitmap: 1 | 1 << 32, ..entry };
        let error = Corruption::SubclusterBitmap { guest: GUEST, bitmap: 1 | 1 << 32 };
        assert_eq!(decode(broken, geometry), Err(error));
    }

    #[test]
    fn a_zero_flag_in_version_2_is_corruption() {
        let error = Corruption::ZeroFlagInVersion2 { guest: GUEST };
        assert_eq!(raw(1).decode(GUEST, standard(), Version::V2, false), Err(error));
    }

    #[test]
    fn copied_without_offset_means_data_only_with_a_data_file() {
        let copied = raw(1 << 63);
        assert_eq!(decode(copied, standard()), Ok(ClusterMapping::Unallocated));
        let at_zero = copied.decode(GuestOffset::ZERO, standard(), Version::V3, true);
        assert_eq!(at_zero, Ok(ClusterMapping::Data { host: HostOffset::ZERO }));
        let zero = raw(1 << 63 | 1).decode(GuestOffset::ZERO, standard(), Version::V3, true);
        assert_eq!(zero, Ok(ClusterMapping::Zero { host: None }));
    }

    #[test]
    fn a_data_file_maps_every_cluster_to_its_own_offset() {
        let entry = L2Entry::data(HostOffset::new(0x70000), true, standard());
        let error = Corruption::DataFileOffset { guest: GUEST, host: 0x70000 };
        assert_eq!(entry.decode(GUEST, standard(), Version::V3, true), Err(error));
        let compressed = raw(1 << 62);
        let error = Corruption::CompressedWithDataFile { guest: GUEST };
        assert_eq!(compressed.decode(GUEST, standard(), Version::V3, true), Err(error));
    }

    #[test]
    fn an_unaligned_host_offset_is_corruption() {
        let error = Corruption::DataUnaligned { host: 0x70200, guest: GUEST };
        assert_eq!(decode(raw(0x70200), standard()), Err(error));
    }

    #[test]
    fn decoding_any_bits_never_panics() {
        for extended in [false, true] {
            for bits in 14..=21 {
                let geometry = Geometry::new(bits, 4, extended).unwrap();
                let mut noise = 0x1234_5678_9abc_def0_u64;
                for _ in 0..20_000 {
                    noise ^= noise << 13;
                    noise ^= noise >> 7;
                    noise ^= noise << 17;
                    let entry = L2Entry { raw: noise, bitmap: noise.rotate_left(29) };
                    for version in [Version::V2, Version::V3] {
                        for has_data_file in [false, true] {
                            // Only that it returns is asserted: any bits are an answer or an error.
                            drop(entry.decode(GUEST, geometry, version, has_data_file));
                        }
                    }
                }
            }
        }
    }
}
