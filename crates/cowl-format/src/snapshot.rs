//! The snapshot table: internal snapshots, one record each, padded to 8 bytes.
//!
//! | offset | length | field                                            |
//! |--------|--------|--------------------------------------------------|
//! |      0 |      8 | L1 table offset                                  |
//! |      8 |      4 | L1 entries                                       |
//! |     12 |      2 | ID length                                        |
//! |     14 |      2 | name length                                      |
//! |     16 |      4 | date: seconds                                    |
//! |     20 |      4 | date: nanoseconds                                |
//! |     24 |      8 | guest clock in nanoseconds                       |
//! |     32 |      4 | VM state size, 32 bits                           |
//! |     36 |      4 | extra data length                                |
//! |     40 |      n | extra: VM state size (8), disk size (8), icount (8), … |
//! |        |        | ID, name, padding                                |
//!
//! A snapshot's L1 table is not validated here: its size limits and alignment matter when it is
//! used.

use crate::bytes::{be16, be32, be64, pad8, put16, put32, put64};
use crate::limits::{SNAPSHOT_EXTRA_BYTES_MAX, SNAPSHOT_TABLE_BYTES_MAX};
use crate::{ByteCount, Corruption, HostOffset};

const FIXED_LEN: usize = 40;
const EXTRA_VM_STATE_LEN: usize = 8;
const EXTRA_KNOWN_LEN: usize = 24;

/// One internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Start of its L1 table, as stored.
    pub l1_offset: u64,
    /// Entries of its L1 table, as stored.
    pub l1_entries: u32,
    /// The ID: decimal digits when QEMU wrote it. Bytes of a stranger.
    pub id: Vec<u8>,
    /// The name. Bytes of a stranger.
    pub name: Vec<u8>,
    /// When it was taken: seconds since 1970.
    pub date_seconds: u32,
    /// When it was taken: nanoseconds within the second.
    pub date_nanoseconds: u32,
    /// Guest clock in nanoseconds.
    pub vm_clock: u64,
    /// Size of the saved machine state in bytes.
    pub vm_state_size: u64,
    /// Size of the disk then; `None` in old tables, where it is the current size.
    pub disk_size: Option<ByteCount>,
    /// Instruction count; `None` when it was not recorded.
    pub instruction_count: Option<u64>,
    /// Extra data behind the known fields: kept as it is.
    pub unknown_extra: Vec<u8>,
}

/// All snapshots of an image.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct SnapshotTable {
    /// The snapshots in table order.
    pub snapshots: Vec<Snapshot>,
    /// Length of the table in bytes.
    pub length: ByteCount,
}

/// Where the L1 table of a snapshot lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotL1 {
    /// Start of the table.
    pub offset: HostOffset,
    /// Entries of the table.
    pub entries: u32,
}

/// A record in the bytes of a table.
#[derive(Clone, Copy)]
struct Record<'a> {
    fixed: &'a [u8],
    extra: &'a [u8],
    id: &'a [u8],
    name: &'a [u8],
}

impl SnapshotTable {
    /// Decodes `count` snapshots from `bytes`, the file from the table's start.
    ///
    /// When the bytes end before the table does, the error is [`Corruption::HeaderTruncated`] with
    /// the number of bytes, from the table's start, to call again with; `at_end` says that the file
    /// has no more, which makes it [`Corruption::SnapshotTableTruncated`].
    pub fn decode(bytes: &[u8], count: u32, at_end: bool) -> Result<Self, Corruption> {
        let decode = |_, record: Record<'_>| Ok(record.decode());
        let (snapshots, length) = Record::read_all(bytes, count, at_end, decode)?;
        Ok(Self { snapshots, length })
    }

    /// Where the L1 tables of the `count` snapshots lie, and the length of the snapshot table: for
    /// who wants nothing else of it. `bytes`, `at_end` and errors as for [`Self::decode`].
    pub fn decode_l1_tables(
        bytes: &[u8],
        count: u32,
        at_end: bool,
        geometry: crate::Geometry,
    ) -> Result<(Vec<SnapshotL1>, ByteCount), Corruption> {
        Record::read_all(bytes, count, at_end, |index, record| {
            let (offset, entries) = record.l1_table();
            let offset = valid_l1_table(offset, entries, index, geometry)?;
            Ok(SnapshotL1 { offset, entries })
        })
    }

    /// The table's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for snapshot in &self.snapshots {
            bytes.resize(pad8(bytes.len()), 0);
            snapshot.encode(&mut bytes);
        }
        bytes
    }

    /// The snapshot with this ID, or else with this name: QEMU's order.
    #[must_use]
    pub fn find(&self, id_or_name: &[u8]) -> Option<&Snapshot> {
        let by_id = self.snapshots.iter().find(|snapshot| snapshot.id == id_or_name);
        by_id.or_else(|| self.snapshots.iter().find(|snapshot| snapshot.name == id_or_name))
    }
}

impl Snapshot {
    fn encode(&self, bytes: &mut Vec<u8>) {
        let start = bytes.len();
        let extra_len = self.extra_len();
        let length16 = |length: usize| u16::try_from(length).expect("names are at most 64 KiB");
        let known_end = start + FIXED_LEN + extra_len.min(EXTRA_KNOWN_LEN);
        bytes.resize(start + FIXED_LEN + EXTRA_KNOWN_LEN, 0);
        let record = &mut bytes[start..];
        put64(record, 0, self.l1_offset);
        put32(record, 8, self.l1_entries);
        put16(record, 12, length16(self.id.len()));
        put16(record, 14, length16(self.name.len()));
        put32(record, 16, self.date_seconds);
        put32(record, 20, self.date_nanoseconds);
        put64(record, 24, self.vm_clock);
        put32(record, 32, u32::try_from(self.vm_state_size).unwrap_or(0));
        put32(record, 36, u32::try_from(extra_len).expect("checked when decoded"));
        put64(record, 40, self.vm_state_size);
        put64(record, 48, self.disk_size.map_or(0, ByteCount::get));
        put64(record, 56, self.instruction_count.unwrap_or(u64::MAX));
        bytes.truncate(known_end);
        bytes.extend(&self.unknown_extra);
        bytes.extend(&self.id);
        bytes.extend(&self.name);
    }

    /// Bytes of extra data. Without a disk size only the machine state's size is stored: a zero
    /// would say that the disk was empty then.
    fn extra_len(&self) -> usize {
        let has_more = self.instruction_count.is_some() || !self.unknown_extra.is_empty();
        match self.disk_size {
            None if !has_more => EXTRA_VM_STATE_LEN,
            _ => EXTRA_KNOWN_LEN + self.unknown_extra.len(),
        }
    }

    /// Start of the L1 table, when it could be one.
    pub fn l1_table(
        &self,
        index: u32,
        geometry: crate::Geometry,
    ) -> Result<HostOffset, Corruption> {
        valid_l1_table(self.l1_offset, self.l1_entries, index, geometry)
    }
}

fn valid_l1_table(
    offset: u64,
    entries: u32,
    snapshot: u32,
    geometry: crate::Geometry,
) -> Result<HostOffset, Corruption> {
    let bytes = u64::from(entries) * 8;
    let valid = geometry.is_cluster_aligned(offset)
        && bytes <= crate::limits::L1_BYTES_MAX
        && offset.checked_add(bytes).is_some_and(|end| i64::try_from(end).is_ok());
    match valid {
        true => Ok(HostOffset::new(offset)),
        false => Err(Corruption::SnapshotL1 { snapshot, table: offset }),
    }
}

impl<'a> Record<'a> {
    /// What `decode` makes of each of `count` records and its index, and the length of the table.
    fn read_all<T>(
        bytes: &'a [u8],
        count: u32,
        at_end: bool,
        decode: impl Fn(u32, Self) -> Result<T, Corruption>,
    ) -> Result<(Vec<T>, ByteCount), Corruption> {
        let mut found = Vec::with_capacity((count as usize).min(bytes.len() / FIXED_LEN));
        let mut at = 0_usize;
        let mut end = 0;
        for snapshot in 0..count {
            match Self::read(bytes.get(at..).unwrap_or(&[]), snapshot)? {
                Ok(record) => {
                    found.push(decode(snapshot, record)?);
                    end = at + record.length();
                    at += pad8(record.length());
                }
                Err(_) if at_end => {
                    return Err(Corruption::SnapshotTableTruncated { snapshot });
                }
                Err(needed) => {
                    let needed = ByteCount::from_usize(at + needed);
                    return Err(Corruption::HeaderTruncated { needed });
                }
            }
            if end as u64 > SNAPSHOT_TABLE_BYTES_MAX {
                return Err(Corruption::SnapshotCount { count });
            }
        }
        Ok((found, ByteCount::from_usize(end)))
    }

    /// The record that `bytes` begin with, or how many bytes it takes to see that much of it.
    fn read(bytes: &'a [u8], snapshot: u32) -> Result<Result<Self, usize>, Corruption> {
        let Some((fixed, rest)) = bytes.split_at_checked(FIXED_LEN) else {
            return Ok(Err(FIXED_LEN));
        };
        let id_len = usize::from(be16(fixed, 12));
        let name_len = usize::from(be16(fixed, 14));
        let extra_length = be32(fixed, 36);
        if extra_length > SNAPSHOT_EXTRA_BYTES_MAX {
            return Err(Corruption::SnapshotExtra { snapshot, length: extra_length });
        }
        let extra_len = extra_length as usize;
        let Some(rest) = rest.get(..extra_len + id_len + name_len) else {
            return Ok(Err(FIXED_LEN + extra_len + id_len + name_len));
        };
        let (extra, names) = rest.split_at(extra_len);
        let (id, name) = names.split_at(id_len);
        Ok(Ok(Self { fixed, extra, id, name }))
    }

    /// Bytes without padding.
    fn length(&self) -> usize {
        self.fixed.len() + self.extra.len() + self.id.len() + self.name.len()
    }

    /// Start and entries of the L1 table, as stored.
    fn l1_table(&self) -> (u64, u32) {
        (be64(self.fixed, 0), be32(self.fixed, 8))
    }

    fn decode(&self) -> Snapshot {
        let (l1_offset, l1_entries) = self.l1_table();
        let extra = |at: usize| (at + 8 <= self.extra.len()).then(|| be64(self.extra, at));
        Snapshot {
            l1_offset,
            l1_entries,
            id: self.id.to_vec(),
            name: self.name.to_vec(),
            date_seconds: be32(self.fixed, 16),
            date_nanoseconds: be32(self.fixed, 20),
            vm_clock: be64(self.fixed, 24),
            vm_state_size: extra(0).unwrap_or_else(|| u64::from(be32(self.fixed, 32))),
            disk_size: extra(8).map(ByteCount::new),
            instruction_count: extra(16).filter(|count| *count != u64::MAX),
            unknown_extra: self.extra.get(EXTRA_KNOWN_LEN..).unwrap_or(&[]).to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Snapshot, SnapshotL1, SnapshotTable};
    use crate::{ByteCount, Corruption, Geometry, HostOffset};

    fn sample(name: &str) -> Snapshot {
        Snapshot {
            l1_offset: 0x60000,
            l1_entries: 4,
            id: b"12".to_vec(),
            name: name.as_bytes().to_vec(),
            date_seconds: 1_700_000_000,
            date_nanoseconds: 5,
            vm_clock: 77,
            vm_state_size: 1 << 40,
            disk_size: Some(ByteCount::new(1 << 30)),
            instruction_count: None,
            unknown_extra: vec![3; 5],
        }
    }

    fn table() -> SnapshotTable {
        let snapshots = vec![sample("one"), sample("a longer name")];
        let mut table = SnapshotTable { snapshots, length: ByteCount::ZERO };
        table.length = ByteCount::from_usize(table.encode().len());
        table
    }

    #[test]
    fn l1_tables_are_found_as_in_the_whole_table() {
        let geometry = Geometry::new(16, 4, false).unwrap();
        let table = table();
        let bytes = table.encode();
        let found = |bytes: &[u8]| SnapshotTable::decode_l1_tables(bytes, 2, false, geometry);
        let one = SnapshotL1 { offset: HostOffset::new(0x60000), entries: 4 };
        assert_eq!(found(&bytes), Ok((vec![one; 2], table.length)));
        for length in 0..bytes.len() {
            let whole = SnapshotTable::decode(&bytes[..length], 2, false);
            assert_eq!(found(&bytes[..length]).err(), whole.err());
        }
        let mut odd = table.clone();
        odd.snapshots[1].l1_offset = 0x60200;
        let fault = Corruption::SnapshotL1 { snapshot: 1, table: 0x60200 };
        assert_eq!(found(&odd.encode()), Err(fault));
    }

    #[test]
    fn tables_round_trip_with_unknown_extra_data() {
        let table = table();
        assert_eq!(SnapshotTable::decode(&table.encode(), 2, true), Ok(table));
    }

    #[test]
    fn a_snapshot_that_does_not_know_its_disk_size_stays_so() {
        let old = Snapshot { disk_size: None, unknown_extra: Vec::new(), ..sample("old") };
        let bytes = SnapshotTable { snapshots: vec![old.clone()], ..table() }.encode();
        assert_eq!(SnapshotTable::decode(&bytes, 1, true).unwrap().snapshots, [old]);
    }

    #[test]
    fn every_truncation_asks_for_more_or_is_an_error() {
        let bytes = table().encode();
        for length in 0..bytes.len() {
            let part = &bytes[..length];
            match SnapshotTable::decode(part, 2, false) {
                Err(Corruption::HeaderTruncated { needed }) => {
                    assert!(length < needed.as_usize());
                }
                other => panic!("{other:?}"),
            }
            let error = SnapshotTable::decode(part, 2, true);
            assert!(matches!(error, Err(Corruption::SnapshotTableTruncated { .. })));
        }
    }

    #[test]
    fn too_much_extra_data_is_refused() {
        let mut bytes = table().encode();
        bytes[36..40].copy_from_slice(&1025_u32.to_be_bytes());
        let error = Corruption::SnapshotExtra { snapshot: 0, length: 1025 };
        assert_eq!(SnapshotTable::decode(&bytes, 2, true), Err(error));
    }

    #[test]
    fn an_id_wins_over_a_name() {
        let mut table = table();
        table.snapshots[0].name = b"7".to_vec();
        table.snapshots[1].id = b"7".to_vec();
        assert_eq!(table.find(b"7").unwrap().name, b"a longer name");
        assert!(table.find(b"none").is_none());
    }
}
