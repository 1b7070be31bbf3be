//! A client: another server's export as a storage.
//!
//! It names no runtime. Requests are sent by whoever makes them, which waits while the socket is
//! full; a thread of the connection's own receives the replies, straight into the buffers of their
//! requests. So any number of requests are in flight, from any thread and executor, and a request
//! whose future was dropped keeps its buffer until it is answered.
//!
//! Not here: TLS, and servers that take whole blocks only.

mod line;
mod listing;
mod storage;
mod uri;

pub use listing::{ListedExport, list_exports};
pub use storage::{ConnectError, NbdStorage};
pub use uri::{NbdUri, UriError};
