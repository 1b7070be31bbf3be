//! The qcow2 on-disk format: bytes to values and back.
//!
//! Every structure of the format has one file, which decodes bytes from outside into checked values and
//! encodes values into bytes. Decoding never panics and never allocates more than its limit says;
//! encoding asserts what decoding checks.
//!
//! Not here: where a structure is stored, how it is cached, in which order it is written. No I/O.
#![forbid(unsafe_code)]

mod units;

pub use units::{
    ByteCount, GuestCluster, GuestOffset, HostCluster, HostOffset, L1Index, L2Index,
    RefcountBlockIndex, RefcountTableIndex,
};
