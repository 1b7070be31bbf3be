//! What is kept in memory: metadata tables and decoded clusters.

mod async_lru;
mod decoded;
mod l2_table;
mod metadata_caches;
mod ref_block;

pub use async_lru::{AsyncLruCache, AsyncLruCacheBackend, Charge};
pub(crate) use decoded::{DecodedBackend, DecodedCluster, DecodedKey};
pub use l2_table::{L2CacheBackend, L2Table};
pub use metadata_caches::{CacheLimits, MetadataCaches};
pub use ref_block::{RefBlock, RefBlockCacheBackend};
