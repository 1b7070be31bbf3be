//! Edits of valid images, structure by structure.
//!
//! Input: the seed's number, then records of 12 bytes:
//!
//!   { structure: u8, how: u8, index: u16, value: u64 }
//!
//! Most of what arbitrary bytes try dies in the header; an edit reaches the tables behind it.

use cowl_format::{ByteCount, Header, SnapshotTable};

use crate::image::{check, open_read};
use crate::seeds::SEEDS;

/// Edits of one input: more only dilute.
const EDITS_MAX: usize = 16;

/// Longest image that edits can make.
const LENGTH_MAX: usize = 1 << 18;

/// The header fields: offset and length.
const FIELDS: [(usize, usize); 18] = [
    (4, 4),
    (8, 8),
    (16, 4),
    (20, 4),
    (24, 8),
    (32, 4),
    (36, 4),
    (40, 8),
    (48, 8),
    (56, 4),
    (60, 4),
    (64, 8),
    (72, 8),
    (80, 8),
    (88, 8),
    (96, 4),
    (100, 4),
    (104, 1),
];

/// Where the tables of the seed are, found before the first edit.
struct Places {
    cluster: usize,
    l1: usize,
    refcount_table: usize,
    refcount_block: usize,
    snapshots: usize,
    snapshot_l1: usize,
    bitmaps: usize,
    l2: Vec<usize>,
}

impl Places {
    fn find(bytes: &[u8], header: &Header) -> Self {
        let table = |offset: u64| ByteCount::new(offset & 0x00ff_ffff_ffff_fe00).as_usize();
        let l1 = table(header.l1_offset.get());
        let l2 = (0..header.l1_entries as usize)
            .map(|index| table(word(bytes, l1 + index * 8)))
            .filter(|&offset| offset != 0 && offset < bytes.len())
            .collect();
        let refcount_table = table(header.refcount_table_offset.get());
        let snapshots = table(header.snapshot_offset.get());
        let decoded = bytes
            .get(snapshots..)
            .and_then(|bytes| SnapshotTable::decode(bytes, header.snapshot_count, true).ok());
        let snapshot_l1 = decoded
            .and_then(|table| table.snapshots.first().map(|snapshot| snapshot.l1_offset))
            .unwrap_or(0);
        let bitmaps = match &header.bitmaps {
            Some(Ok(extension)) => extension.directory_offset.get(),
            _ => 0,
        };
        Self {
            cluster: header.geometry.cluster_len(),
            l1,
            refcount_table,
            refcount_block: table(word(bytes, refcount_table)),
            snapshots,
            snapshot_l1: table(snapshot_l1),
            bitmaps: table(bitmaps),
            l2,
        }
    }

    /// Every offset that means something: the best values for a pointer.
    fn landmark(&self, number: usize, length: usize) -> u64 {
        let all = [
            0,
            self.l1,
            self.refcount_table,
            self.refcount_block,
            self.snapshots,
            self.snapshot_l1,
            self.bitmaps,
            self.l2.first().copied().unwrap_or(0),
            self.l2.last().copied().unwrap_or(0),
            length.next_multiple_of(self.cluster),
            length.saturating_sub(1) / self.cluster * self.cluster,
            512,
        ];
        all[number % all.len()] as u64
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |word| u64::from_be_bytes(word.try_into().expect("8 bytes")))
}

/// Edits a seed as `data` says, then opens, reads and checks it.
pub fn mutate(data: &[u8]) {
    let Some((&seed, edits)) = data.split_first() else { return };
    let bytes = edited(seed, edits);
    open_read(&bytes);
    check(&bytes);
}

/// A seed with these edits.
pub(crate) fn edited(seed: u8, edits: &[u8]) -> Vec<u8> {
    let mut bytes = SEEDS[usize::from(seed) % SEEDS.len()].bytes.to_vec();
    let header = Header::decode(&bytes).expect("a seed is valid");
    let places = Places::find(&bytes, &header);
    for edit in edits.chunks_exact(12).take(EDITS_MAX) {
        apply(&mut bytes, &places, edit);
    }
    bytes
}

fn apply(bytes: &mut Vec<u8>, places: &Places, edit: &[u8]) {
    let how = edit[1];
    let index = usize::from(u16::from_be_bytes([edit[2], edit[3]]));
    let value = u64::from_be_bytes(edit[4..12].try_into().expect("8 bytes"));
    let in_l2 = places.l2.get(index >> 8).or(places.l2.first()).copied().unwrap_or(0);
    let entry = |table: usize, index: usize| (table + index % (places.cluster / 8) * 8, 8);
    let (at, length) = match edit[0] % 12 {
        0 | 1 => FIELDS[index % FIELDS.len()],
        2 => entry(places.l1, index % 8),
        3 | 4 => entry(in_l2, index & 0xff),
        5 => entry(places.refcount_table, index % 8),
        6 => (places.refcount_block + index % places.cluster, 1),
        7 => (places.snapshots + index % 160, 4),
        8 => (places.bitmaps + index % 96, 4),
        9 => entry(places.snapshot_l1, index % 8),
        10 => (112 + index % 400, 4),
        _ => return resize(bytes, value),
    };
    let old = read(bytes, at, length);
    let new = match how % 6 {
        0 => value,
        1 => old ^ 1 << (value % (length as u64 * 8)),
        2 => old.wrapping_add(value % 17).wrapping_sub(8),
        3 => places.landmark(ByteCount::new(value & 0xff).as_usize(), bytes.len()),
        // A pointer with its flags kept.
        4 => {
            let landmark = places.landmark(ByteCount::new(value & 0xff).as_usize(), bytes.len());
            old & !0x00ff_ffff_ffff_fe00 | landmark
        }
        _ => old | value & 0xc000_0000_0000_0001,
    };
    write(bytes, at, length, new);
}

fn resize(bytes: &mut Vec<u8>, value: u64) {
    let length = ByteCount::new(value % (LENGTH_MAX as u64)).as_usize();
    bytes.resize(length, 0);
}

fn read(bytes: &[u8], at: usize, length: usize) -> u64 {
    bytes
        .get(at..at + length)
        .map_or(0, |part| part.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

fn write(bytes: &mut [u8], at: usize, length: usize, value: u64) {
    if let Some(part) = bytes.get_mut(at..at + length) {
        part.copy_from_slice(&value.to_be_bytes()[8 - length..]);
    }
}
