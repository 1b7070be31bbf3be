//! Serve block devices over NBD.
//!
//! [`protocol`] is the protocol without I/O; [`Server`] moves the bytes, on one compio runtime per
//! thread. It speaks [`BlockDevice`](cowl_block::BlockDevice) and knows no image format.
//! [`NbdStorage`] is the other side: somebody's export as a storage.
//!
//! Devices that have work of their own besides requests (the committer of a qcow2 image) need
//! somebody to run it, and closing them after [`Server::stop`] is their owner's business, too; so
//! is removing the file of a unix socket.
#![forbid(unsafe_code)]

mod client;
pub mod protocol;
mod server;

pub use client::{ConnectError, ListedExport, NbdStorage, NbdUri, UriError, list_exports};
pub use protocol::handshake::TlsPolicy;
pub use protocol::limits::BITMAP_COUNT_MAX;
pub use server::{
    Clients, Export, Exports, FastZero, Listener, Server, ServerOptions, ServerStats, Tls, TlsError,
};
