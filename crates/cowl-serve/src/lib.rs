//! One process that hands disks to clients.
//!
//! ```text
//!   open disks ──► bind sockets ──► close the sandbox ──► serve ──► stop: answer, commit, close
//!                                                          │ ▲
//!                             serving threads: a ring each ┘ └ keeper: upkeep, control, stop
//! ```
//!
//! [`Daemon::open`] takes everything that is needed from outside; from [`Daemon::run`] on the
//! process opens nothing any more but what [`Options::allowed`] names. The keeper is the thread
//! that calls [`Daemon::run`]: it runs what disks do besides requests, carries out the commands of
//! the control socket, and waits for the end.
//!
//! A disk is closed when the last export of it is gone; a failure to close is a failure of
//! [`Daemon::run`].
#![forbid(unsafe_code)]

mod control;
mod counters;
mod daemon;
mod disk;
mod error;
mod export;
mod files;
mod http;
mod keeper;
mod leftovers;
mod metrics;
mod offload;
mod overlay;
mod sandbox;
mod table;
mod virtual_machines;

pub use cowl_nbd::{Listener, Tls, TlsError, TlsPolicy};
pub use cowl_serverkit::Stop;
pub use daemon::{Daemon, Options, Until};
pub use disk::{DetectZeros, Rules};
pub use error::ServeError;
pub use export::{Content, ExportOptions, FuseFile, VhostUser, VhostUserPlace};
pub use leftovers::Leftovers;
pub use offload::LatePool;
pub use sandbox::{Sandbox, SandboxError};
