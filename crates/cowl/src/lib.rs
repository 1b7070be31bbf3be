//! Open, read and create disk images.
//!
//! ```no_run
//! use cowl::{Disk, OpenOptions};
//!
//! let disk = Disk::open("vm.qcow2".as_ref(), &OpenOptions::local())?;
//! let mut sector = [0; 512];
//! disk.read_at(&mut sector, 0)?;
//! # Ok::<(), cowl::Error>(())
//! ```
//!
//! What an image names (backing files, an external data file) is opened only as far as [`Follow`]
//! allows. [`Disk`] is `Send + Sync`: any number of threads read one disk at once. The blocking
//! calls do plain reads on the calling thread, the fastest way to hot data; servers and tools that
//! want many requests in flight use the asynchronous ones through [`BlockDevice`].
#![forbid(unsafe_code)]

mod disk;
mod inspect;

mod open;
mod policy;

mod error;
mod format;
mod worker_pool;

pub use cowl_block::{
    BlockDevice, BlockError, DirtyBitmap, Extent, ExtentKind, Growth, ZeroRequest,
};
pub use cowl_format::{ByteCount, Corruption, GuestOffset, Header, HostOffset};
pub use cowl_qcow2::{
    BeyondEnd, CacheLimits, CheckProgress, CheckReport, Finding, FindingKind, Inline, Layer,
    LayerStats, Offload, Preallocation,
};
pub use cowl_storage::{
    Access, Allocation, Caching, FileOptions, FileStorage, LockMode, StorageError, Writeback,
};
pub use disk::Disk;
pub use error::{Error, Refusal};
pub use format::{Format, has_image_magic};
pub use inspect::{Inspection, Qcow2Inspection, check, check_with, inspect, inspect_with};
pub use open::{Backing, Files, OpenOptions, Rings, Sharing, StorageOpener};
pub use policy::{Follow, local_path, remote_uri, resolve_backing_name, resolve_data_file_name};
pub use worker_pool::WorkerPool;
