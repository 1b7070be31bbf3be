//! Host side of cowl: files, block devices and memory behind one trait.
//!
//! [`Storage`] is what the engine reads and writes. Drivers implement it ([`FileStorage`],
//! [`UringStorage`], [`MemoryStorage`]), layers wrap it ([`TraceStorage`], [`FaultStorage`],
//! [`ReadOnlyStorage`]). All system calls of the project are made in this crate.
//!
//! Invariant: every I/O names its [`Purpose`], so that faults, traces and tests can address it.
#![deny(unsafe_code)]

mod buffer;
mod error;
mod file;
mod file_identity;
mod layers;
mod lock;
mod memory;
mod purpose;
mod replacement;
mod storage;
mod sys;
mod uring;

pub use buffer::IoBuffer;
pub use error::{Operation, StorageError};
pub use file::{Access, Caching, Existence, FileKinds, FileOptions, FileStorage, Writeback};
pub use file_identity::FileIdentity;
pub use layers::{
    FaultEffect, FaultRule, FaultStorage, ReadOnlyStorage, Trace, TraceRecord, TraceStorage,
};
pub use lock::{LockConflict, LockHolder, LockMode, Permission};
pub use memory::MemoryStorage;
pub use purpose::Purpose;
pub use replacement::{Durability, Replacement, remove_unfinished};
pub use storage::{Allocation, Blocking, Capabilities, HostExtent, IoResult, Storage, ZeroMode};
pub use sys::SharedMemory;
pub use uring::{UringStorage, ring_runtime, yield_now};
