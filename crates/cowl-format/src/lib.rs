//! The qcow2 on-disk format: bytes to values and back.
//!
//! Every structure of the format has one file, which decodes bytes from outside into checked values
//! and encodes values into bytes. Decoding never panics and never allocates more than its limit
//! says; encoding asserts what decoding checks.
//!
//! Not here: where a structure is stored, how it is cached, in which order it is written. No I/O.
#![forbid(unsafe_code)]

mod units;

mod corruption;
mod geometry;
pub mod limits;

mod bytes;

mod extension;
mod feature;
mod header;

mod compressed;
mod l1;
mod l2;
mod subcluster;

mod refcount_block;
mod refcount_table;

mod bitmap;
mod snapshot;

pub use bitmap::{
    BitmapDirectory, BitmapDirectoryEntry, BitmapFlags, BitmapTableEntry, BitmapsExtension,
};
pub use compressed::CompressedDescriptor;
pub use corruption::{Corruption, CorruptionClass, Table};
pub use extension::{CryptoHeaderPointer, Extension, ExtensionKind};
pub use feature::{
    AutoclearFeatures, CompatibleFeatures, FeatureClass, FeatureName, FeatureNameTable,
    IncompatibleFeatures,
};
pub use geometry::Geometry;
pub use header::{
    BackingReference, CompressionType, CryptMethod, Header, HeaderField, MAGIC, UncheckedHeader,
    Version,
};
pub use l1::L1Entry;
pub use l2::{ClusterMapping, L2Entry};
pub use refcount_block::RefcountBlock;
pub use refcount_table::RefcountTableEntry;
pub use snapshot::{Snapshot, SnapshotL1, SnapshotTable};
pub use subcluster::{SubclusterBitmap, SubclusterState};
pub use units::{
    ByteCount, GuestCluster, GuestOffset, HostCluster, HostOffset, L1Index, L2Index,
    RefcountBlockIndex, RefcountTableIndex,
};
