//! Opening for writing: what a layer needs in addition.
//!
//! Nothing in the file changes here (see `first_write.rs`), but for an image that was not closed
//! while its refcounts were delayed: they are brought up to date first.

use cowl_format::{
    CompatibleFeatures, Corruption, HostCluster, HostOffset, IncompatibleFeatures, L1Entry,
    RefcountTableEntry,
};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::allocator::{RoleMap, Space};
use crate::check::{StaleRefcount, stale_refcounts};
use crate::open::{read_snapshot_l1_tables, used_words};
use crate::writer::Writer;
use crate::{Error, Layer};

impl<S: Storage> Layer<S> {
    /// Turns a layer that was just opened into one that can be changed. `used_l1` is what its L1
    /// table holds.
    pub(crate) async fn make_writable(
        &mut self,
        used_l1: &[(usize, L1Entry)],
    ) -> Result<(), Error> {
        let file = self.file();
        let header = self.header().clone();
        let needs_repair = |what| Error::NeedsRepair { path: file.name().to_owned(), what };
        if file.capabilities().read_only || self.data_file().capabilities().read_only {
            return Err(Error::ReadOnly);
        }
        if header.incompatible.contains(IncompatibleFeatures::CORRUPT) {
            return Err(needs_repair("is marked as corrupt"));
        }
        let mut stale = Vec::new();
        if header.incompatible.contains(IncompatibleFeatures::DIRTY) {
            let found = stale_refcounts(file.as_ref(), &header, self.offload().cloned()).await?;
            stale = found.ok_or_else(|| needs_repair("was not closed, and is damaged"))?;
        }
        let needed = self.geometry().l1_entries_for(self.size().get());
        if u64::from(header.l1_entries) < needed {
            let entries = header.l1_entries;
            return Err(self.corrupt(Corruption::L1TooSmall { entries, needed }));
        }
        let (table, used_blocks) = self.read_refcount_table().await?;
        let roles = self.roles(&used_blocks, used_l1).await?;
        let end = self.geometry().clusters_for(file.len().await?.get());
        let space = Space::new(table, header.refcount_table_offset, end);
        let is_lazy = header.compatible.contains(CompatibleFeatures::LAZY_REFCOUNTS);
        let is_dirty = header.incompatible.contains(IncompatibleFeatures::DIRTY);
        self.add_writer(Writer::new(header, roles, space, is_lazy));
        if is_dirty {
            self.correct_refcounts(&stale).await?;
        }
        Ok(())
    }

    /// Brings refcounts up to date that a process delayed and never wrote. Where a power cut
    /// interrupts this, the dirty bit is still set.
    async fn correct_refcounts(&self, stale: &[StaleRefcount]) -> Result<(), Error> {
        let space = self.writer()?.space.lock().await;
        for wrong in stale {
            self.set_refcount(&space, wrong.cluster, wrong.references).await?;
        }
        drop(space);
        self.commit_refcounts().await?;
        self.mark_clean().await
    }

    /// The refcount table, and those of its entries that are not zero.
    async fn read_refcount_table(
        &self,
    ) -> Result<(Vec<RefcountTableEntry>, Vec<RefcountTableEntry>), Error> {
        let header = self.header();
        let buffer = IoBuffer::zeroed(header.refcount_table_bytes().as_usize());
        let at = header.refcount_table_offset;
        let (result, buffer) = self.file().read(at, buffer, Purpose::RefcountTable).await;
        result?;
        let mut table = vec![RefcountTableEntry::default(); buffer.len() / 8];
        let mut used = Vec::new();
        for (index, word) in used_words(&buffer) {
            table[index] = RefcountTableEntry::from_raw(word);
            used.push(table[index]);
        }
        Ok((table, used))
    }

    /// Where metadata lies.
    async fn roles(
        &self,
        used_blocks: &[RefcountTableEntry],
        used_l1: &[(usize, L1Entry)],
    ) -> Result<RoleMap, Error> {
        let header = self.header();
        let geometry = self.geometry();
        let roles = RoleMap::new();
        let add = |at: HostOffset, bytes: u64| {
            let first = geometry.host_cluster(at).get();
            let end = geometry.clusters_for(at.get() + bytes);
            roles.add(HostCluster::new(first), end.saturating_sub(first));
        };
        add(HostOffset::ZERO, 1);
        add(header.l1_offset, u64::from(header.l1_entries) * 8);
        add(header.refcount_table_offset, header.refcount_table_bytes().get());
        for entry in used_blocks {
            if let Some(block) = entry.block(geometry).map_err(|fault| self.corrupt(fault))? {
                add(block, geometry.cluster_size());
            }
        }
        for (_, entry) in used_l1 {
            if let Some(table) = entry.table(geometry).map_err(|fault| self.corrupt(fault))? {
                add(table, geometry.cluster_size());
            }
        }
        let (tables, length) = read_snapshot_l1_tables(self.file().as_ref(), header).await?;
        add(header.snapshot_offset, length.get());
        for table in tables {
            add(table.offset, u64::from(table.entries) * 8);
        }
        if let Some(Ok(bitmaps)) = &header.bitmaps {
            add(bitmaps.directory_offset, bitmaps.directory_size.get());
        }
        Ok(roles)
    }
}
