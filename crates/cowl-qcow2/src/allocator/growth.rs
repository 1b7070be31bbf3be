//! A larger refcount table, when the file outgrows the old one.
//!
//! The new table and the blocks that count its clusters lie side by side, behind everything else,
//! and count themselves. They are durable before the header names the table, and the header before
//! anybody uses a cluster that only the new table counts.

use cowl_format::limits::REFCOUNT_TABLE_BYTES_MAX;
use cowl_format::{
    ByteCount, HeaderField, HostCluster, RefcountBlock, RefcountBlockIndex, RefcountTableEntry,
};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::allocator::space::Space;
use crate::allocator::{Granted, Reference};
use crate::flush::Edge;
use crate::{Error, Layer};

/// Blocks at the start of what they count, and behind them what needs them.
struct Plan {
    /// Index of the first block, which lies in the first cluster.
    first_index: u64,
    first: u64,
    blocks: u64,
    /// Clusters behind the blocks.
    table_clusters: u64,
}

impl<S: Storage> Layer<S> {
    /// Grows the refcount table so that it counts `cluster` and what lies around it. Returns the
    /// next cluster to use.
    pub(super) async fn grow_refcount_table(
        &self,
        space: &mut Space,
        cluster: u64,
    ) -> Result<u64, Error> {
        let geometry = self.geometry();
        let plan = self.plan_growth(space, cluster)?;
        let mut table = space.table.clone();
        let capacity = plan.table_clusters * geometry.cluster_size() / 8;
        table.resize(ByteCount::new(capacity).as_usize(), RefcountTableEntry::default());
        for block in 0..plan.blocks {
            let host = geometry.host_cluster_start(HostCluster::new(plan.first + block));
            let index = ByteCount::new(plan.first_index + block).as_usize();
            table[index] = RefcountTableEntry::new(host, geometry);
        }
        // Whatever happens, nobody else uses these clusters.
        space.end = plan.first + plan.blocks + plan.table_clusters;
        self.write_grown(&plan, &table).await?;
        self.barrier_for(Edge::TableBeforeEntry).await?;
        let table_first = HostCluster::new(plan.first + plan.blocks);
        let table_at = geometry.host_cluster_start(table_first);
        let clusters = u32::try_from(plan.table_clusters).expect("at most 8 MiB");
        let mut old = None;
        self.update_header(HeaderField::RefcountTable, |header| {
            let first = geometry.host_cluster(header.refcount_table_offset);
            old = Some((first, u64::from(header.refcount_table_clusters)));
            header.refcount_table_offset = table_at;
            header.refcount_table_clusters = clusters;
        })
        .await?;
        let writer = self.writer()?;
        writer.roles.add(HostCluster::new(plan.first), plan.blocks + plan.table_clusters);
        (space.table, space.table_at) = (table, table_at);
        if let Some((first, count)) = old {
            writer.quarantine.add_unused(Reference::Clusters { first, count }, &writer.epochs);
        }
        Ok(space.end)
    }

    /// Takes `count` clusters side by side, however many blocks that needs to count them.
    pub(crate) async fn reserve_area(
        &self,
        space: &mut Space,
        count: u64,
    ) -> Result<Granted<'_, S>, Error> {
        let geometry = self.geometry();
        let entries = geometry.refcount_block_entries();
        // Within the block that counts the end, if it has room.
        let first = space.end;
        if first % entries + count < entries
            && let Some(grant) = self.take_free(space, first, count, None).await?
        {
            space.end = space.end.max(grant.first + grant.count);
            let granted = Granted::new(self, HostCluster::new(grant.first), grant.count);
            if grant.count == count {
                return Ok(granted);
            }
        }
        // Else behind blocks of its own, at the start of what they count.
        let mut blocks = 1;
        while blocks * entries < blocks + count {
            blocks += 1;
        }
        let mut first_index = space.end.div_ceil(entries);
        let is_free = |space: &Space, index: u64| {
            let range = ByteCount::new(index).as_usize()..ByteCount::new(index + blocks).as_usize();
            let known = range.clone().filter_map(|index| space.table.get(index));
            known.copied().all(|entry| entry == RefcountTableEntry::default())
        };
        while !is_free(space, first_index) {
            first_index += 1;
        }
        if (space.table.len() as u64) < first_index + blocks {
            let last = (first_index + blocks) * entries - 1;
            self.grow_refcount_table(space, last).await?;
            first_index = space.end.div_ceil(entries);
            if (space.table.len() as u64) < first_index + blocks {
                return Err(Error::ImageFull { path: self.file().name().to_owned() });
            }
        }
        let plan =
            Plan { first_index, first: first_index * entries, blocks, table_clusters: count };
        self.write_area(space, &plan).await?;
        Ok(Granted::new(self, HostCluster::new(plan.first + blocks), count))
    }

    /// Writes the blocks of a plan, and then the entries that name them.
    async fn write_area(&self, space: &mut Space, plan: &Plan) -> Result<(), Error> {
        let geometry = self.geometry();
        let writer = self.writer()?;
        // Whatever happens, nobody else uses these clusters.
        space.end = plan.first + plan.blocks + plan.table_clusters;
        let burnt = space.burnt.len();
        space.burnt.extend(plan.first..space.end);
        // An entry that a dropped request is writing must not land on top of ours.
        self.settle().await;
        self.write_blocks(plan).await?;
        self.barrier_for(Edge::TableBeforeEntry).await?;
        let mut bytes = Vec::new();
        let mut entries = Vec::new();
        for block in 0..plan.blocks {
            let host = geometry.host_cluster_start(HostCluster::new(plan.first + block));
            let entry = RefcountTableEntry::new(host, geometry);
            bytes.extend(entry.raw().to_be_bytes());
            entries.push(entry);
        }
        let index = ByteCount::new(plan.first_index).as_usize();
        let at = space.table_at + ByteCount::from_usize(index * 8);
        let write = self.file().write(at, IoBuffer::from_slice(&bytes), Purpose::RefcountTable);
        // Named or not, the blocks stay where they are: the clusters leak at worst. Of several
        // blocks the first one counts the others, so that none of them may be replaced alone.
        let unknown =
            (1 < plan.blocks).then(|| self.close_if_dropped("refcount blocks may be named or not"));
        writer.change(write).await.0?;
        self.barrier_for(Edge::RefcountBeforePointer).await?;
        core::mem::forget(unknown);
        space.burnt.truncate(burnt);
        space.table[index..index + entries.len()].copy_from_slice(&entries);
        writer.roles.add(HostCluster::new(plan.first), plan.blocks);
        Ok(())
    }

    fn plan_growth(&self, space: &Space, cluster: u64) -> Result<Plan, Error> {
        let geometry = self.geometry();
        let entries = geometry.refcount_block_entries();
        // The first block whose clusters are all free: nothing is counted behind the old table.
        let first_index = (cluster / entries).max(space.end.div_ceil(entries));
        let first_index = first_index.max(space.table.len() as u64);
        let mut plan =
            Plan { first_index, first: first_index * entries, blocks: 1, table_clusters: 1 };
        loop {
            let blocks = (plan.blocks + plan.table_clusters).div_ceil(entries);
            // Half as much again, so that growing stays rare.
            let wanted = (first_index + blocks + 1).max(space.table.len() as u64 * 3 / 2);
            let table_clusters = geometry.clusters_for(wanted * 8);
            if blocks <= plan.blocks && table_clusters <= plan.table_clusters {
                break;
            }
            plan.blocks = blocks.max(plan.blocks);
            plan.table_clusters = table_clusters.max(plan.table_clusters);
        }
        if REFCOUNT_TABLE_BYTES_MAX < plan.table_clusters * geometry.cluster_size() {
            return Err(Error::ImageFull { path: self.file().name().to_owned() });
        }
        Ok(plan)
    }

    async fn write_grown(&self, plan: &Plan, table: &[RefcountTableEntry]) -> Result<(), Error> {
        self.write_blocks(plan).await?;
        let writer = self.writer()?;
        let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.raw().to_be_bytes()).collect();
        let first = HostCluster::new(plan.first + plan.blocks);
        let at = self.geometry().host_cluster_start(first);
        let write = self.file().write(at, IoBuffer::from_slice(&bytes), Purpose::RefcountTable);
        writer.change(write).await.0?;
        Ok(())
    }

    /// Writes the blocks of a plan: they count themselves and what lies behind them.
    async fn write_blocks(&self, plan: &Plan) -> Result<(), Error> {
        let writer = self.writer()?;
        let geometry = self.geometry();
        let entries = geometry.refcount_block_entries();
        let mut counted = plan.blocks + plan.table_clusters;
        for block in 0..plan.blocks {
            let mut content = IoBuffer::zeroed(geometry.cluster_len());
            let mut counts = RefcountBlock::new(&mut content[..], geometry);
            let here = counted.min(entries);
            for index in 0..here {
                let index = u32::try_from(index).expect("a block has at most 2^24 entries");
                counts.set(RefcountBlockIndex::new(index), 1);
            }
            counted -= here;
            let at = geometry.host_cluster_start(HostCluster::new(plan.first + block));
            writer.change(self.file().write(at, content, Purpose::RefcountBlock)).await.0?;
        }
        Ok(())
    }
}
