//! The two metadata caches of an image, and the order in which they reach the file.
//!
//! When a cluster is allocated, its refcount has to be durable before the L2 entry that points to
//! it; when one is freed, the entry's removal has to be durable before the refcount goes down.
//!
//! The engine keeps that order table by table: a changed slice carries what it waits for
//! ([`After`]), a changed refcount block is always safe to write (decrements are made in memory
//! only once the unlink is durable), and a commit writes blocks, a barrier, slices, a barrier. The
//! two announcing methods, [`MetadataCaches::l2_depends_on_rb`] and
//! [`MetadataCaches::rb_depends_on_l2`], are the cheap summary for whoever uses the caches alone.

use std::sync::Arc;

use cowl_format::{Header, HostCluster, L2Entry, L2Index};
use cowl_storage::Storage;

use crate::Error;
use crate::cache::async_lru::AsyncLruCache;
use crate::cache::dirty::{Dirty, Taken};
use crate::cache::l2_slice::L2Slice;
use crate::cache::l2_table::{HasLeft, L2CacheBackend, L2Table};
use crate::cache::ref_block::{RefBlock, RefBlockCacheBackend};
use crate::cache::write_back;
use crate::flush::{After, Barriers, Latch};
use crate::sync::atomic::{AtomicU8, Ordering};
use crate::sync::{AsyncMutex, AsyncMutexGuard};

/// How much memory the caches of one image may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheLimits {
    /// Bytes of L2 tables. 32 MiB describe 256 GiB of disk at 64 KiB clusters.
    pub l2_bytes: usize,
    /// Bytes of refcount blocks.
    pub refcount_bytes: usize,
    /// Bytes of decoded compressed clusters.
    pub decoded_bytes: usize,
}

impl CacheLimits {
    /// QEMU's limit for L2 tables; room for the compressed clusters of a few parallel readers.
    pub const STANDARD: Self =
        Self { l2_bytes: 32 << 20, refcount_bytes: 1 << 20, decoded_bytes: 16 << 20 };
}

/// Which cache has to be durable before the other one is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum CacheDependency {
    /// Neither.
    None = 0,
    /// Refcount blocks first: clusters were allocated.
    L2AfterRefcounts = 1,
    /// L2 tables first: clusters were freed.
    RefcountsAfterL2 = 2,
}

/// Metadata caches of one image.
pub struct MetadataCaches<S: Storage> {
    l2: AsyncLruCache<HostCluster, L2Table, L2CacheBackend<S>>,
    rb: AsyncLruCache<HostCluster, RefBlock, RefBlockCacheBackend<S>>,
    direction: AtomicU8,
    file: Arc<S>,
    dirty: Dirty,
    barriers: Barriers<S>,
    latch: Latch,
    /// One write-back at a time.
    write_back: AsyncMutex<()>,
}

impl<S: Storage> MetadataCaches<S> {
    /// Caches for `file` with `header`, of `l2_entries` L2 tables and `rb_entries` refcount blocks.
    ///
    /// A table costs what was loaded of it, so the L2 cache may hold more tables than `l2_entries`
    /// when only parts of them are in use.
    pub fn new(file: &Arc<S>, header: &Arc<Header>, l2_entries: usize, rb_entries: usize) -> Self {
        Self::with_files(file, header, l2_entries, rb_entries, vec![Arc::clone(file)])
    }

    /// As [`Self::new`], with barriers over all of `files`.
    pub(crate) fn with_files(
        file: &Arc<S>,
        header: &Arc<Header>,
        l2_entries: usize,
        rb_entries: usize,
        files: Vec<Arc<S>>,
    ) -> Self {
        let cluster = header.geometry.cluster_len();
        Self {
            l2: AsyncLruCache::new(
                L2CacheBackend::new(file, header),
                l2_entries.saturating_mul(cluster),
            ),
            rb: AsyncLruCache::new(
                RefBlockCacheBackend::new(file, header),
                rb_entries.saturating_mul(cluster),
            ),
            direction: AtomicU8::new(CacheDependency::None as u8),
            file: Arc::clone(file),
            dirty: Dirty::default(),
            barriers: Barriers::new(files),
            latch: Latch::default(),
            write_back: AsyncMutex::new(()),
        }
    }

    /// Which cache is written first.
    #[must_use]
    pub fn direction(&self) -> CacheDependency {
        match self.direction.load(Ordering::SeqCst) {
            0 => CacheDependency::None,
            1 => CacheDependency::L2AfterRefcounts,
            _ => CacheDependency::RefcountsAfterL2,
        }
    }

    /// Makes sure that refcount blocks are durable before any L2 table is written. To be called
    /// before clusters are allocated. Refcounts that wait for L2 tables are settled first.
    pub async fn l2_depends_on_rb(&self) -> Result<(), Error> {
        // Read before written: nearly always it is so already, and the line stays shared.
        if self.direction() != CacheDependency::L2AfterRefcounts {
            if self.direction() == CacheDependency::RefcountsAfterL2 {
                self.flush_all().await?;
            }
            self.set_direction(CacheDependency::L2AfterRefcounts);
        }
        Ok(())
    }

    /// Makes sure that L2 tables are durable before any refcount block is written. To be called
    /// before clusters are freed: L2 changes made so far are durable when it returns, so what is
    /// freed afterwards has nothing left to wait for.
    pub async fn rb_depends_on_l2(&self) -> Result<(), Error> {
        if !self.dirty.is_empty() {
            self.flush_all().await?;
        }
        self.set_direction(CacheDependency::RefcountsAfterL2);
        Ok(())
    }

    fn set_direction(&self, direction: CacheDependency) {
        self.direction.store(direction as u8, Ordering::SeqCst);
    }

    /// Writes what both caches changed, in order, and makes it durable.
    ///
    /// What cannot be written stays in the cache, and the next call tries again. After a failed
    /// barrier every further one fails.
    pub async fn flush_all(&self) -> Result<(), Error> {
        let _one_at_a_time = self.write_back.lock().await;
        let taken = self.dirty.take(true);
        if taken.is_empty() {
            return self.barriers.run(&self.latch).await;
        }
        write_back::write_tables(self.file.as_ref(), &taken).await?;
        self.barriers.run(&self.latch).await?;
        write_back::write_slices(self.file.as_ref(), &taken).await?;
        self.barriers.run(&self.latch).await?;
        taken.all_durable();
        Ok(())
    }

    /// Writes refcount blocks that changed, and makes them durable.
    pub async fn flush_rb(&self) -> Result<(), Error> {
        let _one_at_a_time = self.write_back.lock().await;
        let mut taken = self.dirty.take_blocks();
        write_back::write_tables(self.file.as_ref(), &taken).await?;
        self.barriers.run(&self.latch).await?;
        taken.blocks_durable();
        Ok(())
    }

    /// The L2 table in `cluster`. Its slices are loaded when they are asked for.
    pub async fn l2_get_or_insert(&self, cluster: HostCluster) -> Result<Arc<L2Table>, Error> {
        self.l2.get_or_insert(cluster).await
    }

    /// Puts a table that the file does not have yet in the place of whatever the cache has for
    /// `cluster`. It is written whole before anything that names it.
    pub async fn l2_insert(&self, cluster: HostCluster, table: Arc<L2Table>) -> Result<(), Error> {
        self.latch.check()?;
        self.dirty.add_table(&table);
        self.l2.insert(cluster, table);
        Ok(())
    }

    /// The refcount block in `cluster`.
    pub async fn rb_get_or_insert(&self, cluster: HostCluster) -> Result<Arc<RefBlock>, Error> {
        self.rb.get_or_insert(cluster).await
    }

    /// Puts a refcount block in the place of whatever the cache has for `cluster`.
    pub async fn rb_insert(&self, cluster: HostCluster, block: Arc<RefBlock>) -> Result<(), Error> {
        self.latch.check()?;
        self.rb.insert(cluster, block);
        Ok(())
    }

    /// A table without mappings, to be inserted for `cluster`.
    pub(crate) fn new_table(&self, cluster: HostCluster) -> Arc<L2Table> {
        Arc::new(self.l2.backend().new_table(cluster, self.l2.charge()))
    }

    /// A block with these bytes, to be inserted for `cluster`.
    pub(crate) fn new_block(
        &self,
        cluster: HostCluster,
        bytes: cowl_storage::IoBuffer,
        geometry: cowl_format::Geometry,
    ) -> Arc<RefBlock> {
        Arc::new(RefBlock::new(cluster, bytes, geometry, self.rb.charge()))
    }

    /// Changes an entry of a slice that is loaded. Fails for a table that has left the cache: the
    /// next one to ask gets another.
    pub(crate) fn set_entry(
        &self,
        table: &Arc<L2Table>,
        index: L2Index,
        entry: L2Entry,
        after: After,
    ) -> Result<(), HasLeft> {
        let became = table.set(index, entry, after).inspect_err(|HasLeft| {
            self.l2.remove_retired(self.l2.backend().key_of(table), table);
        })?;
        self.dirty.slice_changed(table, table.slice_number(index), became);
        Ok(())
    }

    /// Sets `count` refcounts of `block` from `first` on. Returns the number of the change; `None`
    /// when the block has left the cache.
    pub(crate) fn set_refcounts(
        &self,
        block: &Arc<RefBlock>,
        first: u64,
        count: u64,
        value: u64,
    ) -> Option<u64> {
        let Some((change, was_clean)) = block.set_run(first, count, value) else {
            self.rb.remove_retired(self.rb.backend().key_of(block), block);
            return None;
        };
        if was_clean {
            self.dirty.block_changed(block);
        }
        Some(change)
    }

    /// Looks at the slice of the table in `cluster` that holds `index`, if it is in memory.
    pub(crate) fn l2_peek<R>(
        &self,
        cluster: HostCluster,
        index: L2Index,
        look: impl FnOnce(&L2Slice) -> R,
    ) -> Option<R> {
        self.l2.peek(cluster, |table| table.slice(index).map(look)).flatten()
    }

    /// The table in `cluster` with the slice that holds `index` loaded.
    pub(crate) async fn l2_load(
        &self,
        cluster: HostCluster,
        index: L2Index,
    ) -> Result<Arc<L2Table>, Error> {
        let table = self.l2.get_or_insert(cluster).await?;
        if self.l2.backend().load_slice(&table, index).await? {
            self.l2.grown();
        }
        Ok(table)
    }

    pub(crate) fn dirty(&self) -> &Dirty {
        &self.dirty
    }

    pub(crate) fn barriers(&self) -> &Barriers<S> {
        &self.barriers
    }

    pub(crate) fn latch(&self) -> &Latch {
        &self.latch
    }

    /// Everything that is dirty, for a commit. Fails to compile without holding the lock.
    pub(crate) fn take_dirty(
        &self,
        _one_at_a_time: &AsyncMutexGuard<'_, ()>,
        with_blocks: bool,
    ) -> Taken<'_> {
        self.dirty.take(with_blocks)
    }

    /// The lock of whoever writes back.
    pub(crate) fn write_back_lock(&self) -> &AsyncMutex<()> {
        &self.write_back
    }

    /// A table that the header names has moved.
    pub(crate) fn header_changed(&self, header: &Header) {
        self.l2.backend().header_changed(header);
    }

    pub(crate) fn forget_l2(&self) {
        self.l2.clear();
    }

    pub(crate) fn forget_rb(&self) {
        self.rb.clear();
    }

    /// Bytes held by both caches.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.l2.weight() + self.rb.weight()
    }

    /// Loads of tables, slices and blocks so far.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.l2.misses() + self.rb.misses()
    }
}
