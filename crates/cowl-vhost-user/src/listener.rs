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
    /// A socket at `path`. A socket that is there and that nobody listens on is replaced; whether
    /// that is so may take a second to show.
    pub fn bind(path: &Path) -> io::Result<Self> {
        Ok(cowl_serverkit::bind_unix(path)?.into())
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
