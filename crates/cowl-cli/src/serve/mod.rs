//! From words to a daemon: what the commands `serve` and `qemu-nbd` share.
//!
//! The commands read their options into a [`Request`]; [`run`] opens everything, goes into the
//! background where that is wanted, and serves. What serving is lives in the crate `cowl-serve`.

mod address;
mod image;
mod limits;
mod logging;
mod notify;
mod run;
mod tls;

pub(crate) use address::Address;
pub(crate) use image::{ImageRequest, detect_zeros};
pub(crate) use limits::{
    CONNECTIONS_MAX, HANDSHAKE_TIMEOUT, connections, handshake_limit, within_limit,
};
pub(crate) use logging::{Log, LogFormat};
pub(crate) use run::{RunError, run};
pub(crate) use tls::{TlsFolder, TlsObject};

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use cowl_serve::{Sandbox, TlsPolicy, Until};

/// What is to be served, and how.
pub(crate) struct Request {
    pub(crate) images: Vec<ImageRequest>,
    pub(crate) addresses: Vec<Address>,
    /// Connections at a time.
    pub(crate) connections_max: usize,
    pub(crate) until: Until,
    /// `None` for as long as it takes.
    pub(crate) handshake_timeout: Option<Duration>,
    pub(crate) tls: Option<(TlsFolder, TlsPolicy)>,
    pub(crate) threads: Option<usize>,
    pub(crate) control: Option<PathBuf>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) sandbox: Sandbox,
    pub(crate) allowed: Vec<PathBuf>,
    pub(crate) pid_file: Option<PathBuf>,
    pub(crate) log: Log,
    /// Whether to say on standard output where clients find what.
    pub(crate) announces: bool,
}
