//! New images: a file that nobody reads before it is finished.
//!
//!   header | refcount table | refcount block 0 | L1 table | data ... | L2 tables | blocks 1..
//!
//! The first four are where QEMU puts them. A [`Builder`] takes clusters from any number of
//! threads, keeps the tables in memory, and writes them when it finishes; the header comes last,
//! behind a barrier, so a file whose header is there is whole.
//!
//! Not here: changing an image that exists.

mod builder;
mod header;
mod host_space;
mod options;
mod preallocate;
mod refcounts;

pub use builder::{Builder, BuilderFiles, CompressedCluster};
pub use options::{CreateError, CreateOptions};
pub use preallocate::{Preallocation, create};
