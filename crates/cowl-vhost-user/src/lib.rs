//! Serve block devices to virtual machines: a back-end of vhost-user-blk.
//!
//! ```text
//!   front-end ─► control thread of the export ─► session: memory, rings, permissions
//!                                                   │ a queue that has all it needs
//!                                                   ▼
//!   guest kick ─► queue on its thread ─► chain ─► request ─► device ─► used ring, one call
//! ```
//!
//! One [`Server`] is shared by all threads; each of them runs [`Server::run`] inside a compio
//! runtime of its own and serves the queues that it was given, start to end. A request runs on the
//! ring of the thread that has its queue, which is what `UringStorage` is made for. Data goes
//! between the guest's memory and the device without a copy wherever that pays (`execute.rs`).
//!
//! Invariants:
//!   - this crate knows [`BlockDevice`](cowl_block::BlockDevice) and no image format,
//!   - what guests and front-ends write gives an error status, a queue that is not served any
//!     further, or the end of the connection; and what they can make the server hold is bounded:
//!     requests by the length of their queue, copies by `bounce.rs`,
//!   - a request is answered once: by this server, or where it died, by the next (`inflight.rs`),
//!   - a queue that is to rest answers what it took first.
//!
//! Devices that have work of their own besides requests (the committer of a qcow2 image) need
//! somebody to run it, and flushing and closing them after [`Server::stop`] is their owner's
//! business, too; so is removing the file of a socket.
//!
//! A front-end is trusted with one thing: not to cut the file of its guest's memory while it is
//! mapped, which would end the process (SIGBUS). Memory files of QEMU are sealed against it.
//!
//! A server that takes the place of a killed one may find the image locked although its process is
//! gone: the kernel gives the locks back when the last write in the ring of that process has ended.
//! Open it again a little later, and not without the lock: such a write would overwrite newer data.
//!
//! A change is answered when it outlives this process
//! ([`persist`](cowl_block::BlockDevice::persist)): the guest goes on under the next server and
//! does not know. For a qcow2 image that is a commit of its tables wherever a write changed them,
//! which those in flight share, and nothing for a write in place.
//!
//! Not offered: migration with a log of dirty pages (the front-end has to stop the disk), packed
//! rings, secure erase, zones.
#![forbid(unsafe_code)]

mod server;

mod export;
mod listener;

mod control;
mod messages;
mod session;

mod config;
mod inflight;
mod memory;
mod notifier;

mod queue;
mod ring;
mod worker;

mod bounce;
mod chain;
mod execute;
mod request;

pub use export::Export;
pub use listener::Listener;
pub use server::{Server, ServerOptions, ServerStats};
