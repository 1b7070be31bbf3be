//! What is kept in memory: metadata tables and decoded clusters.

mod async_lru;
mod decoded;
mod dirty;
mod even_entries;
mod l2_slice;
mod l2_table;
mod metadata_caches;
#[cfg(test)]
mod promises;
mod ref_block;
mod sys;
mod write_back;

pub use async_lru::{AsyncLruCache, AsyncLruCacheBackend, Charge};
pub(crate) use decoded::{DecodedBackend, DecodedCluster, DecodedKey};
pub(crate) use dirty::Taken;
#[cfg(all(test, feature = "interleavings"))]
pub(crate) use l2_slice::Became;
#[cfg(test)]
pub(crate) use l2_slice::L2Slice;
pub use l2_table::{L2CacheBackend, L2Table};
pub use metadata_caches::{CacheDependency, CacheLimits, MetadataCaches};
pub use ref_block::{RefBlock, RefBlockCacheBackend};
pub(crate) use write_back::{Batch, slices as batch_slices, tables as batch_tables};
