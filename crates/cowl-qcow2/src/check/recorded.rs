//! What the refcount blocks say about each host cluster.
//!
//! One byte for each cluster. A block with larger numbers is kept whole, once for all entries of
//! the table that name it: a sparse file of terabytes whose entries all name one block of large
//! numbers must not cost more memory than the block. A block that cannot be read or found leaves
//! its clusters unknown.

use std::collections::HashMap;
use std::sync::Arc;

use cowl_format::{
    ByteCount, Geometry, Header, HostCluster, HostOffset, RefcountBlock, RefcountBlockIndex,
    RefcountTableEntry, RefcountTableIndex,
};
use cowl_storage::{IoBuffer, Purpose, Storage, StorageError};
use rustc_hash::FxBuildHasher;

use crate::Error;
use crate::check::report::Findings;

const LARGE: u8 = 255;

type Block = Arc<RefcountBlock<IoBuffer>>;

/// The blocks that are kept, by place and length: the last one is read only in part.
type Kept = HashMap<(HostOffset, usize), Block, FxBuildHasher>;

/// Refcounts past the end of the file that are kept: enough for a file that lost its tail, little
/// enough for one that was made to have many.
const PAST_END_MAX: usize = 16_384;

/// Refcounts of all host clusters, and the refcount table.
pub(crate) struct Recorded {
    counts: Vec<u8>,
    /// Blocks with larger numbers, by index in the table.
    large: HashMap<u32, Block, FxBuildHasher>,
    large_bytes: usize,
    geometry: Geometry,
    /// Cluster ranges whose refcount cannot be known, in order.
    unknown: Vec<(u64, u64)>,
    /// Refcounts of clusters behind the end of the file.
    past_end: HashMap<u64, u64, FxBuildHasher>,
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
        let at = header.refcount_table_offset;
        // The part past the end of the file names no block, and costs no memory.
        let present = file.len().await?.get().saturating_sub(at.get()).next_multiple_of(8);
        let bytes = header.refcount_table_bytes().get().min(present);
        let buffer = IoBuffer::zeroed(ByteCount::new(bytes).as_usize());
        let (result, buffer) = file.read(at, buffer, Purpose::RefcountTable).await;
        result?;
        let mut table: Vec<_> = buffer.chunks_exact(8).map(table_entry).collect();
        let used = table.iter().rposition(|entry| entry.raw() != 0).map_or(0, |last| last + 1);
        table.truncate(used);
        let length = usize::try_from(host_clusters + 1).expect("limited");
        let mut recorded = Self {
            counts: vec![0; length],
            large: HashMap::default(),
            large_bytes: 0,
            geometry: header.geometry,
            unknown: Vec::new(),
            table,
            past_end: HashMap::default(),
        };
        let mut kept = Kept::default();
        for index in 0..recorded.table.len() {
            recorded.read_block(file, index, &mut kept, findings).await?;
        }
        recorded.large_bytes = kept.keys().map(|(_, length)| length).sum();
        Ok(recorded)
    }

    async fn read_block<S: Storage>(
        &mut self,
        file: &S,
        index: usize,
        kept: &mut Kept,
        findings: &mut Findings,
    ) -> Result<(), Error> {
        let geometry = self.geometry;
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
                self.unknown.push((start, end));
                return Ok(());
            }
        };
        // The block in which the file ends is read whole: a file that was cut has entries for
        // clusters past its end, and their refcounts are needed to judge them.
        let length = geometry.cluster_len();
        let buffer = IoBuffer::zeroed(length);
        let (result, buffer) = file.read(block, buffer, Purpose::RefcountBlock).await;
        if let Err(error) = result {
            findings.check_error(|| format!("ERROR: {error}"));
            self.unknown.push((start, end));
            return Ok(());
        }
        let counts = RefcountBlock::new(buffer, geometry);
        self.store_past_end(&counts, start, end);
        if self.store(&counts, start, end) {
            let whole = kept.entry((block, length)).or_insert_with(|| Arc::new(counts));
            self.large.insert(table_index, Arc::clone(whole));
        }
        Ok(())
    }

    /// Whether some number is too large for its byte.
    fn store(&mut self, block: &RefcountBlock<IoBuffer>, start: u64, end: u64) -> bool {
        let mut has_large = false;
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
            has_large |= *count == LARGE;
        }
        has_large
    }

    /// Keeps what the block says about clusters past the end of the file, as far as it says
    /// anything.
    fn store_past_end(&mut self, block: &RefcountBlock<IoBuffer>, start: u64, end: u64) {
        for cluster in end..start + block.entries() {
            let index = self.geometry.refcount_block_index(HostCluster::new(cluster));
            let value = block.get(index);
            if value != 0 && self.past_end.len() < PAST_END_MAX {
                self.past_end.insert(cluster, value);
            }
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        (self.counts.len() + self.table.len() * 8 + self.large_bytes) as u64
    }

    /// The low numbers, one byte each, for comparing many at once; 255 stands for more.
    pub(crate) fn small(&self, cluster: u64) -> u8 {
        self.counts.get(usize::try_from(cluster).expect("limited")).copied().unwrap_or(0)
    }

    /// The refcount of a cluster; `None` when it cannot be known.
    pub(crate) fn get(&self, cluster: u64) -> Option<u64> {
        // As many ranges as the file has broken blocks: a walk for each cluster would be quadratic.
        let behind = self.unknown.partition_point(|&(start, _)| start <= cluster);
        if self.unknown[..behind].last().is_some_and(|&(_, end)| cluster < end) {
            return None;
        }
        if self.counts.len() as u64 <= cluster {
            return Some(self.past_end.get(&cluster).copied().unwrap_or(0));
        }
        Some(match self.small(cluster) {
            LARGE => self.large_count(HostCluster::new(cluster)),
            count => u64::from(count),
        })
    }

    fn large_count(&self, cluster: HostCluster) -> u64 {
        let index = self.geometry.refcount_table_index(cluster).expect("the table has its block");
        self.large[&index.get()].get(self.geometry.refcount_block_index(cluster))
    }

    pub(crate) fn has_unknown(&self) -> bool {
        !self.unknown.is_empty()
    }
}
