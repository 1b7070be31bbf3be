//! The FUSE protocol as bytes and values, without I/O.
//!
//! The kernel speaks first: it sends [`init`], and then requests, each of which is answered once,
//! in any order, but for those that want no answer. Numbers have the byte order of the host.
//!
//! Invariants:
//!   - any bytes decode to a value or to an error, never to a panic: nothing stops a caller from
//!     sending what no kernel sends,
//!   - a request that is too short for its kind is malformed; one that is longer is read as far as
//!     it is known, because newer kernels append fields.

pub mod init;
pub mod reply;
pub mod request;
mod wire;

pub use wire::Malformed;
