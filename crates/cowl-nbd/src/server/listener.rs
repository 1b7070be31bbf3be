//! Sockets that wait for clients.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;

/// A listening socket, unix or TCP.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

impl Listener {
    /// A unix socket at `path`. A socket that is there and that nobody listens on is replaced;
    /// whether that is so may take a second to show.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        Ok(cowl_serverkit::bind_unix(path)?.into())
    }

    /// A TCP socket at `address`, such as `127.0.0.1:10809`.
    pub fn bind_tcp(address: impl std::net::ToSocketAddrs) -> io::Result<Self> {
        Ok(TcpListener::bind(address)?.into())
    }

    /// The sockets that a service manager hands over (`LISTEN_FDS`, as systemd does it). Empty
    /// where there are none. The second call finds none.
    pub fn inherited() -> io::Result<Vec<Self>> {
        let mut handed_over = listenfd::ListenFd::from_env();
        let mut listeners = Vec::new();
        for index in 0..handed_over.len() {
            // Which kind it is shows when it is taken.
            let taken = match handed_over.take_unix_listener(index) {
                Ok(unix) => unix.map(Self::from),
                Err(_) => handed_over.take_tcp_listener(index)?.map(Self::from),
            };
            listeners.extend(taken);
        }
        Ok(listeners)
    }

    /// Its TCP port, which the system chose where port 0 was asked for.
    #[must_use]
    pub fn tcp_port(&self) -> Option<u16> {
        let address = rustix::net::getsockname(&self.fd).ok()?;
        SocketAddr::try_from(address).ok().map(|address| address.port())
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { fd: self.fd.try_clone()? })
    }

    /// The socket itself.
    #[must_use]
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

impl From<UnixListener> for Listener {
    fn from(listener: UnixListener) -> Self {
        Self { fd: listener.into() }
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self { fd: listener.into() }
    }
}
