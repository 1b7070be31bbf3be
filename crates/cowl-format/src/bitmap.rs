//! Persistent dirty bitmaps: the header extension, the directory, and the tables it names.
//!
//! Directory entry, padded to 8 bytes:
//!
//! | offset | length | field              |
//! |--------|--------|--------------------|
//! |      0 |      8 | table offset       |
//! |      8 |      4 | table entries      |
//! |     12 |      4 | flags              |
//! |     16 |      1 | type, always 1     |
//! |     17 |      1 | granularity bits   |
//! |     18 |      2 | name length        |
//! |     20 |      4 | extra data length  |
//! |     24 |      n | extra data, name   |
//!
//! Bitmaps hold no guest data: whoever reads the disk goes on without them when they are broken.

use crate::bytes::{be16, be32, be64, pad8, put16, put32, put64};
use crate::extension::{expect_length, text_fault};
use crate::limits::{
    BITMAP_COUNT_MAX, BITMAP_DIRECTORY_BYTES_MAX, BITMAP_GRANULARITY_BITS_MAX,
    BITMAP_GRANULARITY_BITS_MIN, BITMAP_NAME_BYTES_MAX, BITMAP_TABLE_ENTRIES_MAX,
};
use crate::{ByteCount, Corruption, Geometry, HostOffset};

const EXTENSION_LEN: usize = 24;
const ENTRY_LEN: usize = 24;

/// Where in an entry its flags are.
const FLAGS_OFFSET: usize = 12;
const TYPE_DIRTY_TRACKING: u8 = 1;

/// The header extension that names the bitmap directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapsExtension {
    /// Number of bitmaps.
    pub count: u32,
    /// Length of the directory.
    pub directory_size: ByteCount,
    /// Start of the directory, cluster-aligned.
    pub directory_offset: HostOffset,
}

impl BitmapsExtension {
    pub(crate) fn decode(payload: &[u8], geometry: Geometry) -> Result<Self, Corruption> {
        expect_length("bitmaps", payload, EXTENSION_LEN)?;
        if be32(payload, 4) != 0 {
            return Err(Corruption::BitmapExtensionReserved);
        }
        let count = be32(payload, 0);
        if !(1..=BITMAP_COUNT_MAX).contains(&count) {
            return Err(Corruption::BitmapCount { count });
        }
        let bytes = be64(payload, 8);
        if bytes > BITMAP_DIRECTORY_BYTES_MAX || bytes < u64::from(count) * ENTRY_LEN as u64 {
            return Err(Corruption::BitmapDirectorySize { bytes });
        }
        let offset = be64(payload, 16);
        let in_range = offset.checked_add(bytes).is_some_and(|end| i64::try_from(end).is_ok());
        if offset == 0 || !in_range || !geometry.is_cluster_aligned(offset) {
            return Err(Corruption::TableOffset { table: crate::Table::BitmapDirectory, offset });
        }
        Ok(Self {
            count,
            directory_size: ByteCount::new(bytes),
            directory_offset: HostOffset::new(offset),
        })
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut payload = vec![0; EXTENSION_LEN];
        put32(&mut payload, 0, self.count);
        put64(&mut payload, 8, self.directory_size.get());
        put64(&mut payload, 16, self.directory_offset.get());
        payload
    }
}

/// Flags of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct BitmapFlags(u32);

impl BitmapFlags {
    /// Not stored since it was last opened for writing: the content cannot be trusted.
    pub const IN_USE: Self = Self(1);
    /// Records writes.
    pub const AUTO: Self = Self(2);
    const EXTRA_DATA_COMPATIBLE: u32 = 4;
    const KNOWN: u32 = 7;

    /// Whether all bits of `other` are set.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The bits of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One bitmap in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapDirectoryEntry {
    /// Start of its table, cluster-aligned.
    pub table_offset: HostOffset,
    /// Entries of its table.
    pub table_entries: u32,
    /// Its flags.
    pub flags: BitmapFlags,
    /// Binary logarithm of the bytes that one bit stands for.
    pub granularity_bits: u8,
    /// Its name: 1 to 1023 bytes.
    pub name: Vec<u8>,
}

/// The bitmap directory.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct BitmapDirectory {
    /// The bitmaps in order.
    pub entries: Vec<BitmapDirectoryEntry>,
}

impl BitmapDirectory {
    /// Decodes a directory of exactly `count` entries that fills `bytes`.
    pub fn decode(bytes: &[u8], count: u32, geometry: Geometry) -> Result<Self, Corruption> {
        let mut entries: Vec<BitmapDirectoryEntry> = Vec::new();
        // A directory may have 65535 entries: comparing each with each would take minutes.
        let mut names = std::collections::BTreeSet::new();
        let mut at = 0;
        for bitmap in 0..count {
            let fault = |reason| Corruption::BitmapDirectory { bitmap, reason };
            let rest = bytes.get(at..).ok_or(fault("the directory ends before it"))?;
            let (entry, length) = BitmapDirectoryEntry::decode(rest, bitmap, geometry)?;
            if !names.insert(entry.name.clone()) {
                return Err(fault("its name appears twice"));
            }
            entries.push(entry);
            at += length;
        }
        if at != bytes.len() {
            let reason = "the directory goes on behind the last bitmap";
            return Err(Corruption::BitmapDirectory { bitmap: count, reason });
        }
        Ok(Self { entries })
    }

    /// For each bitmap that records writes and is not marked as in use: where in the directory its
    /// flags lie, four bytes, and what to store there to mark it.
    #[must_use]
    pub fn marks(&self) -> Vec<(ByteCount, [u8; 4])> {
        let mut marks = Vec::new();
        let mut at = 0;
        for entry in &self.entries {
            let is_kept = entry.flags.contains(BitmapFlags::AUTO);
            if is_kept && !entry.flags.contains(BitmapFlags::IN_USE) {
                let flags = entry.flags.union(BitmapFlags::IN_USE).0.to_be_bytes();
                marks.push((ByteCount::from_usize(at + FLAGS_OFFSET), flags));
            }
            at += pad8(ENTRY_LEN + entry.name.len());
        }
        marks
    }

    /// The directory's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for entry in &self.entries {
            entry.encode(&mut bytes);
        }
        bytes
    }
}

impl BitmapDirectoryEntry {
    fn decode(bytes: &[u8], bitmap: u32, geometry: Geometry) -> Result<(Self, usize), Corruption> {
        let fault = |reason| Corruption::BitmapDirectory { bitmap, reason };
        if bytes.len() < ENTRY_LEN {
            return Err(fault("it is cut off"));
        }
        let table_offset = be64(bytes, 0);
        let table_entries = be32(bytes, 8);
        let flags = be32(bytes, FLAGS_OFFSET);
        let granularity_bits = bytes[17];
        let name_length = be16(bytes, 18);
        if be32(bytes, 20) != 0 {
            return Err(fault("it has extra data that this version does not know"));
        }
        if bytes[16] != TYPE_DIRTY_TRACKING {
            return Err(fault("its type is not dirty tracking"));
        }
        if flags & !BitmapFlags::KNOWN != 0 || flags & BitmapFlags::EXTRA_DATA_COMPATIBLE != 0 {
            return Err(fault("it has unknown flags"));
        }
        if !(1..=BITMAP_NAME_BYTES_MAX).contains(&name_length) {
            return Err(fault("its name is empty or too long"));
        }
        let granularity = BITMAP_GRANULARITY_BITS_MIN..=BITMAP_GRANULARITY_BITS_MAX;
        if !granularity.contains(&granularity_bits) {
            return Err(fault("its granularity is out of range"));
        }
        let table_bytes = u64::from(table_entries) * 8;
        let in_range =
            table_offset.checked_add(table_bytes).is_some_and(|end| i64::try_from(end).is_ok());
        if table_offset == 0 || !in_range || !geometry.is_cluster_aligned(table_offset) {
            return Err(fault("its table offset is invalid"));
        }
        if table_entries == 0 || table_entries > BITMAP_TABLE_ENTRIES_MAX {
            return Err(fault("its table is empty or too large"));
        }
        let length = pad8(ENTRY_LEN + usize::from(name_length));
        if bytes.len() < length {
            return Err(fault("its name is cut off"));
        }
        let name = &bytes[ENTRY_LEN..ENTRY_LEN + usize::from(name_length)];
        if text_fault(name).is_some() {
            return Err(fault("its name is not text"));
        }
        let entry = Self {
            table_offset: HostOffset::new(table_offset),
            table_entries,
            flags: BitmapFlags(flags),
            granularity_bits,
            name: name.to_vec(),
        };
        Ok((entry, length))
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        bytes.resize(start + ENTRY_LEN, 0);
        let entry = &mut bytes[start..];
        put64(entry, 0, self.table_offset.get());
        put32(entry, 8, self.table_entries);
        put32(entry, FLAGS_OFFSET, self.flags.0);
        entry[16] = TYPE_DIRTY_TRACKING;
        entry[17] = self.granularity_bits;
        put16(entry, 18, u16::try_from(self.name.len()).expect("at most 1023 bytes"));
        bytes.extend(&self.name);
        bytes.resize(pad8(bytes.len()), 0);
    }

    /// Bytes that one bit stands for.
    #[must_use]
    pub const fn granularity(&self) -> ByteCount {
        ByteCount::new(1 << self.granularity_bits)
    }
}

/// One entry of a bitmap's table: a cluster of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BitmapTableEntry {
    /// All bits clear, nothing stored.
    AllZeros,
    /// All bits set, nothing stored.
    AllOnes,
    /// The bits are stored in this cluster.
    Stored(HostOffset),
}

impl BitmapTableEntry {
    const RESERVED_MASK: u64 = 0xff00_0000_0000_01fe;

    /// Decodes the stored number.
    pub fn decode(raw: u64, geometry: Geometry) -> Result<Self, Corruption> {
        let fault = Corruption::BitmapTableEntry { entry: raw };
        if raw & Self::RESERVED_MASK != 0 {
            return Err(fault);
        }
        let offset = raw & !1;
        match (offset, raw & 1) {
            (0, 0) => Ok(Self::AllZeros),
            (0, _) => Ok(Self::AllOnes),
            (_, 0) if geometry.is_cluster_aligned(offset) => {
                Ok(Self::Stored(HostOffset::new(offset)))
            }
            _ => Err(fault),
        }
    }

    /// The number to store.
    #[must_use]
    pub const fn encode(self) -> u64 {
        match self {
            Self::AllZeros => 0,
            Self::AllOnes => 1,
            Self::Stored(host) => host.get(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        BitmapDirectory, BitmapDirectoryEntry, BitmapFlags, BitmapTableEntry, BitmapsExtension,
    };
    use crate::{ByteCount, Corruption, Geometry, HostOffset};

    fn geometry() -> Geometry {
        Geometry::new(16, 4, false).unwrap()
    }

    fn directory() -> BitmapDirectory {
        let entry = |name: &str| BitmapDirectoryEntry {
            table_offset: HostOffset::new(0x50000),
            table_entries: 1,
            flags: BitmapFlags::AUTO,
            granularity_bits: 16,
            name: name.as_bytes().to_vec(),
        };
        BitmapDirectory { entries: vec![entry("b0"), entry("nightly backup")] }
    }

    #[test]
    fn directory_round_trips() {
        let bytes = directory().encode();
        assert_eq!(BitmapDirectory::decode(&bytes, 2, geometry()), Ok(directory()));
    }

    #[test]
    fn every_truncation_of_a_directory_is_an_error() {
        let bytes = directory().encode();
        for length in 0..bytes.len() {
            assert!(BitmapDirectory::decode(&bytes[..length], 2, geometry()).is_err());
        }
        assert!(BitmapDirectory::decode(&bytes, 1, geometry()).is_err());
        assert!(BitmapDirectory::decode(&bytes, 3, geometry()).is_err());
    }

    #[test]
    fn a_name_appears_once() {
        let mut directory = directory();
        directory.entries[1].name = b"b0".to_vec();
        let error = Corruption::BitmapDirectory { bitmap: 1, reason: "its name appears twice" };
        assert_eq!(BitmapDirectory::decode(&directory.encode(), 2, geometry()), Err(error));
    }

    #[test]
    fn extension_round_trips_and_checks_its_numbers() {
        let extension = BitmapsExtension {
            count: 2,
            directory_size: ByteCount::new(72),
            directory_offset: HostOffset::new(0x40000),
        };
        let payload = extension.encode();
        assert_eq!(BitmapsExtension::decode(&payload, geometry()), Ok(extension));
        assert!(BitmapsExtension::decode(&payload[..23], geometry()).is_err());
        for (at, value) in [(3, 0), (7, 1), (15, 1), (23, 1)] {
            let mut broken = payload.clone();
            broken[at] = value;
            assert!(BitmapsExtension::decode(&broken, geometry()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn table_entries_round_trip_and_reserved_bits_are_refused() {
        for entry in [
            BitmapTableEntry::AllZeros,
            BitmapTableEntry::AllOnes,
            BitmapTableEntry::Stored(HostOffset::new(0x70000)),
        ] {
            assert_eq!(BitmapTableEntry::decode(entry.encode(), geometry()), Ok(entry));
        }
        for raw in [2, 0x70001, 0x70200, 1 << 56] {
            assert!(BitmapTableEntry::decode(raw, geometry()).is_err());
        }
    }
}
