//! Serve block devices over NBD.
//!
//! [`protocol`] is the protocol without I/O.
#![forbid(unsafe_code)]

pub mod protocol;
