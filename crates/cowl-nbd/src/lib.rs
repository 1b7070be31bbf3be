//! Serve block devices over NBD.
//!
//! [`protocol`] is the protocol without I/O; [`Server`] moves the bytes, on one compio runtime per
//! thread. It speaks [`BlockDevice`](cowl_block::BlockDevice) and knows no image format.
#![forbid(unsafe_code)]

pub mod protocol;
mod server;

pub use protocol::handshake::TlsPolicy;
pub use server::{
    Export, Exports, FastZero, Listener, Server, ServerOptions, ServerStats, Tls, TlsError,
};
