//! Changes an image by hand in ways that cowl cannot yet: space comes from behind the end of the
//! file, and every cluster is counted.

use cowl_format::{
    ByteCount, Geometry, Header, HostCluster, HostOffset, RefcountBlock, RefcountTableEntry,
};

/// The bytes of an image, and its header, which the caller writes back.
pub(super) struct Fixture<'a> {
    pub(super) bytes: &'a mut Vec<u8>,
    pub(super) header: Header,
    pub(super) geometry: Geometry,
}

impl<'a> Fixture<'a> {
    pub(super) fn open(bytes: &'a mut Vec<u8>) -> Result<Self, String> {
        let header = Header::decode(bytes).map_err(|error| error.to_string())?;
        let geometry = header.geometry;
        Ok(Self { bytes, header, geometry })
    }

    fn index(offset: u64) -> usize {
        ByteCount::new(offset).as_usize()
    }

    pub(super) fn write(&mut self, at: u64, bytes: &[u8]) {
        let start = Self::index(at);
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn word(&self, at: u64) -> u64 {
        let start = Self::index(at);
        let word = self.bytes.get(start..start + 8).unwrap_or(&[0; 8]);
        u64::from_be_bytes(word.try_into().expect("8 bytes"))
    }

    /// Stores bytes in new clusters of refcount one.
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<HostOffset, String> {
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

    pub(super) fn add_reference(&mut self, cluster: HostCluster) -> Result<(), String> {
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
