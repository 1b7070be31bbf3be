//! The two metadata caches of an image.
//!
//! This is the reading half: tables come in and go out again, nothing is ever dirty, so there is no
//! order to keep yet.

use std::sync::Arc;

use cowl_format::{Header, HostCluster, L2Index};
use cowl_storage::Storage;

use crate::Error;
use crate::cache::async_lru::AsyncLruCache;
use crate::cache::l2_table::{L2CacheBackend, L2Slice, L2Table};
use crate::cache::ref_block::{RefBlock, RefBlockCacheBackend};

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

/// Metadata caches of one image.
pub struct MetadataCaches<S: Storage> {
    l2: AsyncLruCache<HostCluster, L2Table, L2CacheBackend<S>>,
    rb: AsyncLruCache<HostCluster, RefBlock, RefBlockCacheBackend<S>>,
}

impl<S: Storage> MetadataCaches<S> {
    /// Caches for `file` with `header`, of `l2_entries` L2 tables and `rb_entries` refcount blocks.
    ///
    /// A table costs what was loaded of it, so the L2 cache may hold more tables than `l2_entries`
    /// when only parts of them are in use.
    pub fn new(file: &Arc<S>, header: &Arc<Header>, l2_entries: usize, rb_entries: usize) -> Self {
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
        }
    }

    /// The L2 table in `cluster`. Its slices are loaded when they are asked for.
    pub async fn l2_get_or_insert(&self, cluster: HostCluster) -> Result<Arc<L2Table>, Error> {
        self.l2.get_or_insert(cluster).await
    }

    /// The refcount block in `cluster`.
    pub async fn rb_get_or_insert(&self, cluster: HostCluster) -> Result<Arc<RefBlock>, Error> {
        self.rb.get_or_insert(cluster).await
    }

    /// Looks at the slice of the table in `cluster` that holds `index`, if it is in memory.
    pub(crate) fn l2_peek<R>(
        &self,
        cluster: HostCluster,
        index: L2Index,
        look: impl FnOnce(L2Slice<'_>) -> R,
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
