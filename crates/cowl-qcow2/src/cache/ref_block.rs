//! Refcount blocks in memory.

use std::sync::Arc;

use cowl_format::{Geometry, Header, HostCluster, RefcountBlock, RefcountBlockIndex};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::Error;
use crate::cache::async_lru::{AsyncLruCacheBackend, Charge};

/// One refcount block.
pub struct RefBlock {
    block: RefcountBlock<IoBuffer>,
    charge: Charge,
}

impl RefBlock {
    /// The refcount at `index`.
    #[must_use]
    pub fn get(&self, index: RefcountBlockIndex) -> u64 {
        self.block.get(index)
    }
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
}

impl<S: Storage> AsyncLruCacheBackend for RefBlockCacheBackend<S> {
    type Key = HostCluster;
    type Value = RefBlock;

    async fn load(&self, key: HostCluster, charge: Charge) -> Result<RefBlock, Error> {
        let at = self.geometry.host_cluster_start(key);
        let buffer = IoBuffer::zeroed(self.geometry.cluster_len());
        let (result, buffer) = self.file.read(at, buffer, Purpose::RefcountBlock).await;
        result?;
        charge.add(buffer.len());
        Ok(RefBlock { block: RefcountBlock::new(buffer, self.geometry), charge })
    }

    fn charge(block: &RefBlock) -> &Charge {
        &block.charge
    }
}
