//! The qcow2 engine: an open image.
//!
//! [`Layer`] is one open qcow2 file; [`Image`] is a layer with the chain of layers below it, and is
//! what a guest reads. The engine names no runtime, clock, thread or source of randomness: storage
//! comes from the embedder, CPU-heavy work goes through [`Offload`].
//!
//! Reading top-down: `image` routes a request, `mapping` finds where bytes live, `cache` keeps
//! tables,
//! `request` moves the bytes, `check` judges the metadata, `create` makes
//! new images.
#![deny(unsafe_code)]

mod image;
mod layer;
mod open;
mod writable;

mod background;
mod bitmap;
mod close;
mod first_write;
mod resize;
mod stats;
mod writer;

mod host;
mod mapping;
mod sync;

mod cache;

mod request;

mod allocator;
mod flush;

mod check;

mod create;

mod error;
mod offload;

#[cfg(all(test, feature = "interleavings"))]
mod interleavings;
#[cfg(all(test, not(feature = "interleavings")))]
mod weak_memory;

pub use bitmap::BitmapError;
pub use cache::{
    AsyncLruCache, AsyncLruCacheBackend, CacheDependency, CacheLimits, Charge, L2CacheBackend,
    L2Table, MetadataCaches, RefBlock, RefBlockCacheBackend,
};
pub use check::{CheckProgress, CheckReport, Finding, FindingKind, check};
pub use create::{
    Builder, BuilderFiles, CompressedCluster, CreateError, CreateOptions, Preallocation, create,
};
pub use error::Error;
#[cfg(feature = "canary")]
pub use flush::ignore_edge;
pub use flush::{Edge, ORDER, Rule};
pub use image::Image;
pub use layer::{Layer, LayerStats};
pub use mapping::{Run, RunKind};
pub use offload::{Inline, Offload, OffloadJob};
pub use open::{BeyondEnd, LayerFiles, LayerOptions, read_bitmaps, read_header, read_snapshots};
pub use request::{Compressor, HostPlace};
pub use stats::ImageStats;
