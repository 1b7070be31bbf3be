//! Serve a block device as a file, through FUSE.
//!
//! [`protocol`] is what the kernel and a FUSE server say to each other, without I/O; [`Server`]
//! moves the bytes, on one compio runtime per thread. It speaks
//! [`BlockDevice`](cowl_block::BlockDevice) and knows no image format.
//!
//! Devices that have work of their own besides requests (the committer of a qcow2 image) need
//! somebody to run it, and closing them after [`Server::stop`] is their owner's business, too.
#![deny(unsafe_code)]

mod mount;
pub mod protocol;
mod server;
mod sys;

pub use mount::MountError;
pub use server::{Access, Caching, Ending, Export, Options, Server, Sharing, Sizing, Stats};
