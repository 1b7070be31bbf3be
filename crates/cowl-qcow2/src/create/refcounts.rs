//! Refcount blocks and the refcount table of a new image.

use cowl_format::limits::REFCOUNT_TABLE_BYTES_MAX;
use cowl_format::{
    ByteCount, Geometry, HostCluster, RefcountBlock, RefcountBlockIndex, RefcountTableEntry,
};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::create::host_space::HostSpace;
use crate::create::options::CreateError;

/// Clusters of the refcount table for a file of `clusters` clusters, its own refcount blocks
/// included.
pub(super) fn table_clusters(clusters: u64, geometry: Geometry) -> Result<u32, CreateError> {
    let blocks = blocks_for(clusters, geometry);
    let bytes = blocks * 8;
    if REFCOUNT_TABLE_BYTES_MAX < bytes {
        return Err(CreateError::RefcountTableTooLarge);
    }
    Ok(u32::try_from(geometry.clusters_for(bytes).max(1)).expect("at most 8 MiB"))
}

/// Refcount blocks that count `clusters` clusters and themselves.
pub(super) fn blocks_for(clusters: u64, geometry: Geometry) -> u64 {
    let entries = geometry.refcount_block_entries();
    let mut blocks = 0;
    loop {
        let next = (clusters + blocks).div_ceil(entries);
        if next == blocks {
            return blocks;
        }
        blocks = next;
    }
}

/// Writes the table and the blocks for all clusters of `space`. Block 0 goes to `first_block`,
/// which is part of `space` already; the others are appended.
pub(super) async fn write<S: Storage>(
    file: &S,
    space: &mut HostSpace,
    table: HostCluster,
    table_clusters: u32,
    first_block: HostCluster,
    geometry: Geometry,
) -> Result<(), CreateError> {
    // Block 0 is counted in the space already, hence one less.
    let blocks = blocks_for(space.end().get() - 1, geometry);
    let rest = space.clusters(blocks - 1);
    let cluster_len = geometry.cluster_len();
    let mut table_bytes = IoBuffer::zeroed(table_clusters as usize * cluster_len);
    if table_bytes.len() as u64 / 8 < blocks {
        return Err(CreateError::RefcountTableTooLarge);
    }
    let place = |block: u64| match block {
        0 => first_block,
        block => HostCluster::new(rest.get() + block - 1),
    };
    for block in 0..blocks {
        let host = geometry.host_cluster_start(place(block));
        let entry = RefcountTableEntry::new(host, geometry);
        let at = ByteCount::new(block * 8).as_usize();
        table_bytes[at..at + 8].copy_from_slice(&entry.raw().to_be_bytes());
    }
    // Blocks 1.. lie side by side: written together, a few megabytes at a time.
    let at_once = (BATCH_BYTES / cluster_len as u64).max(1);
    let mut block = 0;
    while block < blocks {
        let count = if block == 0 { 1 } else { at_once.min(blocks - block) };
        let mut bytes = IoBuffer::zeroed(ByteCount::new(count).as_usize() * cluster_len);
        for (part, number) in bytes.chunks_exact_mut(cluster_len).zip(block..) {
            fill_block(part, number, space, geometry);
        }
        let at = geometry.host_cluster_start(place(block));
        let (result, _) = file.write(at, bytes, Purpose::RefcountBlock).await;
        result?;
        block += count;
    }
    let at = geometry.host_cluster_start(table);
    let (result, _) = file.write(at, table_bytes, Purpose::RefcountTable).await;
    Ok(result?)
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
