//! Refcount blocks in memory.
//!
//! A block in memory is safe to write at any time: an increment may always be durable early, and a
//! decrement is made in memory only once the removal of the pointer is durable (see
//! `allocator/quarantine.rs`). Who points to a cluster has to know that its increment is durable: a
//! change has a number, and the block knows up to which number the file has its changes for good.

use std::sync::{Arc, PoisonError};

use cowl_format::{Geometry, Header, HostCluster, HostOffset, RefcountBlock, RefcountBlockIndex};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::Error;
use crate::cache::async_lru::{AsyncLruCacheBackend, Charge};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard};

/// One refcount block.
pub struct RefBlock {
    host: HostOffset,
    content: Mutex<Content>,
    /// Changes up to this number are durable.
    durable: AtomicU64,
    charge: Charge,
}

struct Content {
    block: RefcountBlock<IoBuffer>,
    /// Number of the last change.
    change: u64,
    is_dirty: bool,
    is_written_now: bool,
    has_left: bool,
}

/// A block as it was when the copy was taken.
pub(crate) struct BlockCopy {
    pub(crate) bytes: IoBuffer,
    /// The last change in it.
    pub(crate) change: u64,
}

impl RefBlock {
    pub(crate) fn new(
        cluster: HostCluster,
        bytes: IoBuffer,
        geometry: Geometry,
        charge: Charge,
    ) -> Self {
        charge.add(bytes.len());
        Self {
            host: geometry.host_cluster_start(cluster),
            content: Mutex::new(Content {
                block: RefcountBlock::new(bytes, geometry),
                change: 0,
                is_dirty: false,
                is_written_now: false,
                has_left: false,
            }),
            durable: AtomicU64::new(0),
            charge,
        }
    }

    /// Where the block starts.
    #[must_use]
    pub fn host(&self) -> HostOffset {
        self.host
    }

    /// The refcount at `index`.
    #[must_use]
    pub fn get(&self, index: RefcountBlockIndex) -> u64 {
        self.content().block.get(index)
    }

    /// How many entries from `first` on are zero, up to `count_max`.
    pub(crate) fn zero_run(&self, first: u64, count_max: u64) -> u64 {
        let content = self.content();
        let end = content.block.entries().min(first + count_max);
        (first..end).take_while(|index| content.block.get(entry(*index)) == 0).count() as u64
    }

    /// The first entry from `first` on that is zero.
    pub(crate) fn next_zero(&self, first: u64) -> Option<u64> {
        let content = self.content();
        (first..content.block.entries()).find(|index| content.block.get(entry(*index)) == 0)
    }

    /// Sets `count` refcounts from `first` on. Returns the number of the change and whether the
    /// block was clean; `None` when the block has left the cache.
    pub(crate) fn set_run(&self, first: u64, count: u64, value: u64) -> Option<(u64, bool)> {
        let mut content = self.content();
        if content.has_left {
            return None;
        }
        for index in first..first + count {
            content.block.set(entry(index), value);
        }
        content.change += 1;
        let was_dirty = std::mem::replace(&mut content.is_dirty, true);
        Some((content.change, !was_dirty))
    }

    /// Whether the change is durable.
    pub(crate) fn is_durable(&self, change: u64) -> bool {
        change <= self.durable.load(Ordering::Acquire)
    }

    /// A copy to write, if the block differs from the file.
    pub(crate) fn take_copy(&self) -> Option<BlockCopy> {
        let mut content = self.content();
        if !content.is_dirty {
            return None;
        }
        assert!(!content.is_written_now, "one write-back at a time");
        content.is_dirty = false;
        content.is_written_now = true;
        let bytes = IoBuffer::from_slice(content.block.bytes());
        Some(BlockCopy { bytes, change: content.change })
    }

    /// The copy is in the file.
    pub(crate) fn written(&self) {
        self.content().is_written_now = false;
    }

    /// What was written up to `change` is durable.
    pub(crate) fn made_durable(&self, change: u64) {
        self.durable.fetch_max(change, Ordering::AcqRel);
    }

    /// The copy did not get into the file, or nobody knows. Returns whether the block has to be put
    /// on the list again.
    pub(crate) fn not_written(&self) -> bool {
        let mut content = self.content();
        content.is_written_now = false;
        !std::mem::replace(&mut content.is_dirty, true)
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn entry(index: u64) -> RefcountBlockIndex {
    RefcountBlockIndex::new(u32::try_from(index).expect("a block has at most 2^24 entries"))
}

/// Loads refcount blocks of one image.
pub struct RefBlockCacheBackend<S> {
    file: Arc<S>,
    geometry: Geometry,
}

impl<S: Storage> RefBlockCacheBackend<S> {
    pub(crate) fn new(file: &Arc<S>, header: &Arc<Header>) -> Self {
        Self { file: Arc::clone(file), geometry: header.geometry }
    }

    /// What a block is found by.
    pub(crate) fn key_of(&self, block: &RefBlock) -> HostCluster {
        self.geometry.host_cluster(block.host)
    }
}

impl<S: Storage> AsyncLruCacheBackend for RefBlockCacheBackend<S> {
    type Key = HostCluster;
    type Value = RefBlock;

    async fn load(&self, key: HostCluster, charge: Charge) -> Result<RefBlock, Error> {
        let at = self.geometry.host_cluster_start(key);
        let buffer = IoBuffer::zeroed(self.geometry.cluster_len());
        let (result, buffer) = self.file.read(at, buffer, Purpose::RefcountBlock).await;
        result?;
        Ok(RefBlock::new(key, buffer, self.geometry, charge))
    }

    fn charge(block: &RefBlock) -> &Charge {
        &block.charge
    }

    fn retire(block: &RefBlock) -> bool {
        let mut content = block.content();
        if !content.is_dirty && !content.is_written_now {
            content.has_left = true;
        }
        content.has_left
    }
}
