//! Puts an internal snapshot into an image, by hand: cowl cannot make one yet.
//!
//! The snapshot gets a copy of the L1 table; everything it reaches gets one more reference, and no
//! table says any more that a cluster has only one. Space comes from behind the end of the file.

use cowl_format::{
    ByteCount, CompressedDescriptor, Geometry, Header, HeaderField, HostCluster, HostOffset,
    L1Entry, L2Entry, RefcountBlock, RefcountTableEntry, Snapshot, SnapshotTable,
};

const COPIED: u64 = 1 << 63;

struct Fixture<'a> {
    bytes: &'a mut Vec<u8>,
    header: Header,
    geometry: Geometry,
}

/// Adds a snapshot of what the disk holds now, with this ID.
pub(super) fn add(bytes: &mut Vec<u8>, id: &str) -> Result<(), String> {
    let header = Header::decode(bytes).map_err(|error| error.to_string())?;
    let geometry = header.geometry;
    let mut fixture = Fixture { bytes, header, geometry };
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
    fn index(offset: u64) -> usize {
        ByteCount::new(offset).as_usize()
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let start = Self::index(at);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    fn word(&self, at: u64) -> u64 {
        let start = Self::index(at);
        let word = self.bytes.get(start..start + 8).unwrap_or(&[0; 8]);
        u64::from_be_bytes(word.try_into().expect("8 bytes"))
    }

    /// Stores bytes in new clusters of refcount one.
    fn append(&mut self, bytes: &[u8]) -> Result<HostOffset, String> {
        let cluster = self.geometry.cluster_len();
        let start = self.bytes.len().next_multiple_of(cluster);
        self.bytes.resize(start, 0);
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(cluster), 0);
        let start = start as u64;
        for at in (start..self.bytes.len() as u64).step_by(cluster) {
            self.add_reference(self.geometry.host_cluster(HostOffset::new(at)))?;
        }
        Ok(HostOffset::new(start))
    }

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

    fn add_reference(&mut self, cluster: HostCluster) -> Result<(), String> {
        let geometry = self.geometry;
        let block = self.block(cluster)?;
        let start = Self::index(block.get());
        let bytes = &mut self.bytes[start..start + geometry.cluster_len()];
        let mut block = RefcountBlock::new(bytes, geometry);
        let index = geometry.refcount_block_index(cluster);
        let count = block.get(index) + 1;
        block.set(index, count);
        Ok(())
    }

    /// The refcount block of a cluster; a new one, which counts itself where it can, if need be.
    fn block(&mut self, cluster: HostCluster) -> Result<HostOffset, String> {
        let geometry = self.geometry;
        let index = geometry.refcount_table_index(cluster).ok_or("past every refcount")?;
        let place = u64::from(index.get()) * 8;
        if self.header.refcount_table_bytes().get() <= place {
            return Err("the refcount table is full".to_owned());
        }
        let at = self.header.refcount_table_offset.get() + place;
        let entry = RefcountTableEntry::from_raw(self.word(at));
        if let Some(block) = entry.block(geometry).map_err(|error| error.to_string())? {
            return Ok(block);
        }
        // The cluster is new, so it and those behind it are not in use: the block comes after it.
        let own = self.bytes.len().next_multiple_of(geometry.cluster_len()) as u64;
        self.bytes.resize(Self::index(own) + geometry.cluster_len(), 0);
        let block = HostOffset::new(own);
        self.write(at, &RefcountTableEntry::new(block, geometry).raw().to_be_bytes());
        self.add_reference(geometry.host_cluster(block))?;
        Ok(block)
    }
}
