//! A plain file or block device, read and written with plain system calls on the calling thread.
//!
//! Every future of [`FileStorage`] is complete when it is first polled, so any executor will do,
//! and is `Send`. For data in the page cache this is the fastest driver there is; a request that
//! has to wait for a disk makes its thread wait.
//!
//! Invariants:
//!   - a hot read or write is one system call: no lock, no allocation, no second call (but for a
//!     large write that was refused on its way around the page cache),
//!   - no operation shrinks the file but [`Storage::set_len`](crate::Storage::set_len),
//!   - a barrier that failed once fails for ever (see `barrier.rs`).

mod around;
mod barrier;
mod direct;
mod open_file;
mod opening;
mod options;
mod space;
mod storage;
mod transfer;
mod writeback;

pub(crate) use barrier::Barriers;
pub(crate) use open_file::{OpenFile, join};
pub(crate) use opening::FileKind;
pub use options::{Access, Caching, Existence, FileKinds, FileOptions};
pub use storage::FileStorage;
pub use writeback::Writeback;
