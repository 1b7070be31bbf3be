//! What the refcount blocks say about each host cluster.
//!
//! One byte for each cluster, larger numbers aside, as in `references.rs`. A block that cannot be
//! read or found leaves its clusters unknown.

use std::collections::HashMap;

use cowl_format::{
    ByteCount, Header, HostOffset, RefcountBlock, RefcountBlockIndex, RefcountTableEntry,
    RefcountTableIndex,
};
use cowl_storage::{IoBuffer, Purpose, Storage, StorageError};
use rustc_hash::FxBuildHasher;

use crate::Error;
use crate::check::report::Findings;

const LARGE: u8 = 255;

/// Refcounts of all host clusters, and the refcount table.
pub(crate) struct Recorded {
    counts: Vec<u8>,
    large: HashMap<u64, u64, FxBuildHasher>,
    /// Cluster ranges whose refcount cannot be known, in order.
    unknown: Vec<(u64, u64)>,
    pub(crate) table: Vec<RefcountTableEntry>,
}

/// Reads one entry of the refcount table.
pub(crate) async fn read_refcount_table_entry<S: Storage>(
    file: &S,
    at: HostOffset,
) -> Result<RefcountTableEntry, StorageError> {
    let (result, buffer) = file.read(at, IoBuffer::zeroed(8), Purpose::RefcountTable).await;
    result?;
    Ok(table_entry(&buffer))
}

fn table_entry(word: &[u8]) -> RefcountTableEntry {
    RefcountTableEntry::from_raw(u64::from_be_bytes(word.try_into().expect("8 bytes")))
}

impl Recorded {
    pub(crate) async fn read<S: Storage>(
        file: &S,
        header: &Header,
        host_clusters: u64,
        findings: &mut Findings,
    ) -> Result<Self, Error> {
        let buffer = IoBuffer::zeroed(header.refcount_table_bytes().as_usize());
        let at = header.refcount_table_offset;
        let (result, buffer) = file.read(at, buffer, Purpose::RefcountTable).await;
        result?;
        let mut table: Vec<_> = buffer.chunks_exact(8).map(table_entry).collect();
        let used = table.iter().rposition(|entry| entry.raw() != 0).map_or(0, |last| last + 1);
        table.truncate(used);
        let length = usize::try_from(host_clusters + 1).expect("limited");
        let mut recorded =
            Self { counts: vec![0; length], large: HashMap::default(), unknown: Vec::new(), table };
        for index in 0..recorded.table.len() {
            recorded.read_block(file, header, index, findings).await?;
        }
        Ok(recorded)
    }

    async fn read_block<S: Storage>(
        &mut self,
        file: &S,
        header: &Header,
        index: usize,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let geometry = header.geometry;
        let table_index = u32::try_from(index).expect("the table has at most 2^20 entries");
        let start = geometry.refcount_block_start(RefcountTableIndex::new(table_index)).get();
        if self.counts.len() as u64 <= start {
            return Ok(());
        }
        let end = (start + geometry.refcount_block_entries()).min(self.counts.len() as u64);
        let block = match self.table[index].block(geometry) {
            Ok(Some(block)) => block,
            Ok(None) => return Ok(()),
            Err(_) => {
                self.forget(start, end);
                return Ok(());
            }
        };
        // A block is read only as far as it counts clusters of the file.
        let bits = (end - start) * u64::from(geometry.refcount_bits());
        let length = ByteCount::new(bits.div_ceil(8)).as_usize();
        let buffer = IoBuffer::zeroed(length);
        let (result, buffer) = file.read(block, buffer, Purpose::RefcountBlock).await;
        if let Err(error) = result {
            findings.check_error(|| format!("ERROR: {error}"));
            self.forget(start, end);
            return Ok(());
        }
        self.store(&RefcountBlock::new(buffer, geometry), start, end);
        Ok(())
    }

    /// Notes that the refcounts of a range cannot be known. Ranges come in order.
    fn forget(&mut self, start: u64, end: u64) {
        match self.unknown.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => self.unknown.push((start, end)),
        }
    }

    fn store(&mut self, block: &RefcountBlock<IoBuffer>, start: u64, end: u64) {
        let first = usize::try_from(start).expect("limited");
        let length = usize::try_from(end - start).expect("limited");
        let counts = &mut self.counts[first..first + length];
        for (count, index) in counts.iter_mut().zip(0_u32..) {
            let value = block.get(RefcountBlockIndex::new(index));
            // Pages of clusters that are free stay untouched.
            if value == 0 {
                continue;
            }
            *count = u8::try_from(value).unwrap_or(LARGE);
            if *count == LARGE {
                self.large.insert(start + u64::from(index), value);
            }
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.counts.len() + self.table.len() * 8 + self.large.capacity() * 16) as u64
    }

    /// The low numbers, one byte each, for comparing many at once; 255 stands for more.
    pub(crate) fn small(&self, cluster: u64) -> u8 {
        self.counts.get(usize::try_from(cluster).expect("limited")).copied().unwrap_or(0)
    }

    /// The refcount of a cluster; `None` when it cannot be known.
    pub(crate) fn get(&self, cluster: u64) -> Option<u64> {
        let behind = self.unknown.partition_point(|&(start, _)| start <= cluster);
        if 0 < behind && cluster < self.unknown[behind - 1].1 {
            return None;
        }
        if self.counts.len() as u64 <= cluster {
            return Some(0);
        }
        Some(match self.small(cluster) {
            LARGE => self.large.get(&cluster).copied().unwrap_or(u64::from(LARGE)),
            count => u64::from(count),
        })
    }

    pub(crate) fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }
}
