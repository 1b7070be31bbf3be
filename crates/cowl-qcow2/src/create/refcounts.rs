//! Refcount blocks and the refcount table of a new image.

use cowl_format::limits::REFCOUNT_TABLE_BYTES_MAX;
use cowl_format::{
    ByteCount, Geometry, HostCluster, RefcountBlock, RefcountBlockIndex, RefcountTableEntry,
};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::create::host_space::HostSpace;
use crate::create::options::CreateError;

/// Where the refcount table went.
pub(super) struct Table {
    pub(super) first: HostCluster,
    pub(super) clusters: u32,
}

/// Where the blocks and the table go.
///
/// A table of one cluster, nearly every one, takes the `spare` cluster at the front of the file. A
/// larger one goes to the end, and the spare cluster becomes refcount block 1.
struct Plan {
    spare: HostCluster,
    first_block: HostCluster,
    blocks: u64,
    table_clusters: u64,
}

impl Plan {
    /// The plan for a file of `used` clusters, the spare and block 0 included: the smallest that
    /// counts itself too.
    fn new(used: u64, spare: HostCluster, first_block: HostCluster, geometry: Geometry) -> Self {
        let mut plan = Self { spare, first_block, blocks: 1, table_clusters: 1 };
        loop {
            let blocks =
                (used + plan.appended()).div_ceil(geometry.refcount_block_entries()).max(1);
            let table_clusters = geometry.clusters_for(blocks * 8);
            if (blocks, table_clusters) == (plan.blocks, plan.table_clusters) {
                return plan;
            }
            plan = Self { blocks, table_clusters, ..plan };
        }
    }

    fn has_small_table(&self) -> bool {
        self.table_clusters == 1
    }

    /// Blocks that have a place at the front.
    fn placed_blocks(&self) -> u64 {
        if self.has_small_table() { 1 } else { 2 }
    }

    fn appended_blocks(&self) -> u64 {
        self.blocks - self.placed_blocks()
    }

    /// Clusters that come behind the ones in use.
    fn appended(&self) -> u64 {
        self.appended_blocks() + if self.has_small_table() { 0 } else { self.table_clusters }
    }

    fn block(&self, block: u64, appended: HostCluster) -> HostCluster {
        match block {
            0 => self.first_block,
            1 if !self.has_small_table() => self.spare,
            block => HostCluster::new(appended.get() + block - self.placed_blocks()),
        }
    }

    fn table(&self, appended: HostCluster) -> HostCluster {
        match self.has_small_table() {
            true => self.spare,
            false => HostCluster::new(appended.get() + self.appended_blocks()),
        }
    }
}

/// Writes the table and the blocks for all clusters of `space`, which has the clusters `spare` and
/// `first_block` already.
pub(super) async fn write<S: Storage>(
    file: &S,
    space: &mut HostSpace,
    spare: HostCluster,
    first_block: HostCluster,
    geometry: Geometry,
) -> Result<Table, CreateError> {
    let plan = Plan::new(space.end().get(), spare, first_block, geometry);
    let table_bytes = plan.table_clusters * geometry.cluster_size();
    if REFCOUNT_TABLE_BYTES_MAX < table_bytes {
        return Err(CreateError::RefcountTableTooLarge);
    }
    let appended = space.clusters(plan.appended());
    write_blocks(file, space, &plan, appended, geometry).await?;
    let mut bytes = IoBuffer::zeroed(ByteCount::new(table_bytes).as_usize());
    for (word, block) in bytes.chunks_exact_mut(8).zip(0..plan.blocks) {
        let host = geometry.host_cluster_start(plan.block(block, appended));
        word.copy_from_slice(&RefcountTableEntry::new(host, geometry).raw().to_be_bytes());
    }
    let first = plan.table(appended);
    let at = geometry.host_cluster_start(first);
    let (result, _) = file.write(at, bytes, Purpose::RefcountTable).await;
    result?;
    let clusters = u32::try_from(plan.table_clusters).expect("at most 8 MiB");
    Ok(Table { first, clusters })
}

async fn write_blocks<S: Storage>(
    file: &S,
    space: &HostSpace,
    plan: &Plan,
    appended: HostCluster,
    geometry: Geometry,
) -> Result<(), CreateError> {
    let cluster_len = geometry.cluster_len();
    // The appended blocks lie side by side: written together, a few megabytes at a time.
    let at_once = (BATCH_BYTES / cluster_len as u64).max(1);
    let mut block = 0;
    while block < plan.blocks {
        let count = match block < plan.placed_blocks() {
            true => 1,
            false => at_once.min(plan.blocks - block),
        };
        let mut bytes = IoBuffer::zeroed(ByteCount::new(count).as_usize() * cluster_len);
        for (part, number) in bytes.chunks_exact_mut(cluster_len).zip(block..) {
            fill_block(part, number, space, geometry);
        }
        let at = geometry.host_cluster_start(plan.block(block, appended));
        let (result, _) = file.write(at, bytes, Purpose::RefcountBlock).await;
        result?;
        block += count;
    }
    Ok(())
}

const BATCH_BYTES: u64 = 4 << 20;

fn fill_block(bytes: &mut [u8], block: u64, space: &HostSpace, geometry: Geometry) {
    let entries = geometry.refcount_block_entries();
    let start = block * entries;
    let end = (start + entries).min(space.end().get());
    let mut block = RefcountBlock::new(bytes, geometry);
    for (cluster, index) in (start..end).zip(0_u32..) {
        block.set(RefcountBlockIndex::new(index), space.references(cluster));
    }
}
