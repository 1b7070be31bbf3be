//! Puts an internal snapshot into an image, by hand: cowl cannot make one yet.
//!
//! The snapshot gets a copy of the L1 table; everything it reaches gets one more reference, and no
//! table says any more that a cluster has only one.

use cowl_format::{
    ByteCount, CompressedDescriptor, HeaderField, HostCluster, HostOffset, L1Entry, L2Entry,
    Snapshot, SnapshotTable,
};

use crate::subjects::fixture::Fixture;

const COPIED: u64 = 1 << 63;

/// Adds a snapshot of what the disk holds now, with this ID.
pub(super) fn add(bytes: &mut Vec<u8>, id: &str) -> Result<(), String> {
    let mut fixture = Fixture::open(bytes)?;
    let l1 = fixture.share_tree()?;
    let copy: Vec<u8> = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
    let l1_offset = if copy.is_empty() { HostOffset::ZERO } else { fixture.append(&copy)? };
    let snapshot = Snapshot {
        l1_offset: l1_offset.get(),
        l1_entries: fixture.header.l1_entries,
        id: id.as_bytes().to_vec(),
        name: b"before".to_vec(),
        date_seconds: 0,
        date_nanoseconds: 0,
        vm_clock: 0,
        vm_state_size: 0,
        disk_size: Some(fixture.header.size),
        instruction_count: None,
        unknown_extra: Vec::new(),
    };
    let table = SnapshotTable { snapshots: vec![snapshot], length: ByteCount::ZERO }.encode();
    fixture.header.snapshot_offset = fixture.append(&table)?;
    fixture.header.snapshot_count = 1;
    let (at, field) = fixture.header.encode_field(HeaderField::Snapshots);
    fixture.write(at.get(), &field);
    Ok(())
}

impl Fixture<'_> {
    /// One more reference to everything that the active L1 table reaches; its entries, shared.
    fn share_tree(&mut self) -> Result<Vec<u64>, String> {
        let mut l1 = Vec::new();
        for index in 0..u64::from(self.header.l1_entries) {
            let at = self.header.l1_offset.get() + index * 8;
            let entry = L1Entry::from_raw(self.word(at) & !COPIED);
            self.write(at, &entry.raw().to_be_bytes());
            l1.push(entry.raw());
            if entry.raw() != 0 {
                let table = HostOffset::new(entry.offset_unchecked());
                self.add_reference(self.geometry.host_cluster(table))?;
                self.share_table(table)?;
            }
        }
        Ok(l1)
    }

    fn share_table(&mut self, table: HostOffset) -> Result<(), String> {
        for index in 0..u64::from(self.geometry.l2_entries()) {
            let at = table.get() + index * self.geometry.l2_entry_len() as u64;
            let entry = L2Entry { raw: self.word(at) & !COPIED, bitmap: 0 };
            self.write(at, &entry.raw.to_be_bytes());
            if entry.is_compressed() {
                let descriptor = CompressedDescriptor::decode_unchecked(entry.raw, self.geometry);
                let (first, last) = descriptor.host_clusters(self.geometry);
                for cluster in first.get()..=last.get() {
                    self.add_reference(HostCluster::new(cluster))?;
                }
            } else if entry.offset_unchecked() != 0 {
                let host = HostOffset::new(entry.offset_unchecked());
                self.add_reference(self.geometry.host_cluster(host))?;
            }
        }
        Ok(())
    }
}
