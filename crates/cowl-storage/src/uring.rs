//! The same files as [`FileStorage`](crate::FileStorage), driven by the ring of the calling thread.
//!
//! Reads, writes and barriers are requests to the kernel that complete later; the thread serves
//! other tasks meanwhile. What has no request (zeroing, discarding, changing the length) or needs
//! several steps under a lock (unaligned `O_DIRECT` writes) runs on the worker threads of the
//! runtime.
//!
//! `try_read` takes what the page cache has (`RWF_NOWAIT`). Measured, random 4 KiB, hot: 1050 k
//! reads a second instead of 520 k one at a time, and 1065 k instead of 818 k at depth 32; cold at
//! depth 32 it costs nothing that can be seen (71 k instead of 54 k). A task that finds everything
//! there never waits, so it has to yield now and then by itself.
//!
//! Whole pages go to the page cache from the calling thread, too: ext4 takes no buffered write that
//! must not wait, and the kernel hands each one over to a worker thread of its own. The copy is
//! short; what can make it long is the kernel's brake on processes that write faster than the disk,
//! which would hold the worker up as well. (`docs/decisions/0009-buffered-writes-at-once.md`)
//!
//! The storage is `Send + Sync` and belongs to no thread: each request goes to the ring of the
//! thread that makes it. The futures stay on that thread.
//!
//! Invariants:
//!   - buffer, open file and gate of a request belong to the kernel's request, not to the future: a
//!     dropped future leaves them in place until the kernel is done,
//!   - a dropped write may be carried out wholly, in part or not at all, also while its runtime
//!     ends, which waits for those that have begun; a dropped barrier is always carried out,
//!     because a failure that nobody hears of would be taken for success later.

mod background;
mod queue;
mod ring;
mod runtime;
mod storage;

pub use runtime::{ring_runtime, yield_now};
pub use storage::UringStorage;
