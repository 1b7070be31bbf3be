//! Sockets on which front-ends connect.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// A listening unix socket, or one that a front-end is connected to already.
#[derive(Debug)]
pub struct Listener {
    pub(crate) kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// One front-end after another.
    Listening(UnixListener),
    /// This front-end only.
    Connected(UnixStream),
}

impl Listener {
    /// A socket at `path`. A socket that is there and that nobody listens on is replaced.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && is_dead(path) => {
                std::fs::remove_file(path)?;
                Ok(UnixListener::bind(path)?.into())
            }
            outcome => Ok(outcome?.into()),
        }
    }

    /// A socket that was inherited (`--fd` of the vhost-user conventions): listening or connected,
    /// whichever it is.
    pub fn inherited(fd: OwnedFd) -> io::Result<Self> {
        match rustix::net::sockopt::socket_acceptconn(&fd)? {
            true => Ok(UnixListener::from(fd).into()),
            false => Ok(UnixStream::from(fd).into()),
        }
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self { kind: Kind::Listening(listener) }
    }
}

impl From<UnixStream> for Listener {
    fn from(stream: UnixStream) -> Self {
        Self { kind: Kind::Connected(stream) }
    }
}

/// Whether `path` is a socket that was left behind.
fn is_dead(path: &Path) -> bool {
    let outcome = UnixStream::connect(path);
    outcome.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
