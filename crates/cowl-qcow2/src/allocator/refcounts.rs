//! Refcounts of single clusters, behind the refcount table.

use std::sync::Arc;

use cowl_format::{
    ByteCount, Corruption, HostCluster, HostOffset, RefcountTableEntry, RefcountTableIndex,
};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::allocator::space::Space;
use crate::cache::RefBlock;
use crate::flush::Edge;
use crate::writer::Writer;
use crate::{Error, Layer};

impl<S: Storage> Layer<S> {
    /// The block that counts `cluster`; `None` when there is none.
    pub(super) async fn refcount_block(
        &self,
        space: &Space,
        cluster: u64,
    ) -> Result<Option<Arc<RefBlock>>, Error> {
        let index = self.block_index(cluster)?;
        let entry = space.table.get(index.get() as usize).copied().unwrap_or_default();
        let geometry = self.geometry();
        let Some(host) = entry.block(geometry).map_err(|fault| self.corrupt(fault))? else {
            return Ok(None);
        };
        let cluster = geometry.host_cluster(host);
        Ok(Some(self.metadata().rb_get_or_insert(cluster).await?))
    }

    /// Which entry of the refcount table counts `cluster`.
    pub(super) fn block_index(&self, cluster: u64) -> Result<RefcountTableIndex, Error> {
        let index = self.geometry().refcount_table_index(HostCluster::new(cluster));
        index.ok_or_else(|| Error::ImageFull { path: self.file().name().to_owned() })
    }

    /// The refcount of `cluster`.
    pub(crate) async fn refcount_in(&self, space: &Space, cluster: u64) -> Result<u64, Error> {
        let block = self.refcount_block(space, cluster).await?;
        let index = self.geometry().refcount_block_index(HostCluster::new(cluster));
        Ok(block.map_or(0, |block| block.get(index)))
    }

    /// Sets the refcount of `cluster`, whose block exists. Returns the block and the number of the
    /// change.
    pub(crate) async fn set_refcount(
        &self,
        space: &Space,
        cluster: u64,
        value: u64,
    ) -> Result<(Arc<RefBlock>, u64), Error> {
        let index = cluster % self.geometry().refcount_block_entries();
        loop {
            let Some(block) = self.refcount_block(space, cluster).await? else {
                let what = "cluster without a refcount block";
                let at = self.geometry().host_cluster_start(HostCluster::new(cluster));
                return Err(self.corrupt(Corruption::PointsIntoMetadata { what, at }));
            };
            // A block that has just left the cache is got anew.
            if let Some(change) = self.metadata().set_refcounts(&block, index, 1, value) {
                return Ok((block, change));
            }
        }
    }

    /// Makes the missing block that counts `cluster`, in `cluster` itself. Returns the next cluster
    /// to use.
    ///
    /// The block is durable before the entry that names it, and the entry before this returns. If
    /// the entry's fate is unknown, the cluster is never used for anything else.
    pub(super) async fn make_block(&self, space: &mut Space, cluster: u64) -> Result<u64, Error> {
        let writer = self.writer()?;
        let index = self.block_index(cluster)?.get() as usize;
        if space.table.len() <= index {
            return self.grow_refcount_table(space, cluster).await;
        }
        let geometry = self.geometry();
        let host_cluster = HostCluster::new(cluster);
        let mut content = IoBuffer::zeroed(geometry.cluster_len());
        let mut counts = cowl_format::RefcountBlock::new(&mut content[..], geometry);
        counts.set(geometry.refcount_block_index(host_cluster), 1);
        let host = geometry.host_cluster_start(host_cluster);
        let block =
            self.metadata().new_block(host_cluster, IoBuffer::from_slice(&content), geometry);
        let entry = RefcountTableEntry::new(host, geometry);
        space.burnt.push(cluster);
        // An entry that a dropped request is writing must not land on top of ours.
        self.settle().await;
        writer.change(self.file().write(host, content, Purpose::RefcountBlock)).await.0?;
        self.barrier_for(Edge::TableBeforeEntry).await?;
        self.write_table_entry(writer, space, index, entry).await?;
        self.barrier_for(Edge::RefcountBeforePointer).await?;
        space.burnt.pop();
        space.table[index] = entry;
        space.end = space.end.max(cluster + 1);
        writer.roles.add(host_cluster, 1);
        self.metadata().rb_insert(host_cluster, block).await?;
        Ok(cluster + 1)
    }

    async fn write_table_entry(
        &self,
        writer: &Writer<S>,
        space: &Space,
        index: usize,
        entry: RefcountTableEntry,
    ) -> Result<(), Error> {
        let at: HostOffset = space.table_at + ByteCount::from_usize(index * 8);
        let bytes = IoBuffer::from_slice(&entry.raw().to_be_bytes());
        writer.change(self.file().write(at, bytes, Purpose::RefcountTable)).await.0?;
        Ok(())
    }
}
