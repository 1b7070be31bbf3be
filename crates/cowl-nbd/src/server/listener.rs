//! Sockets that wait for clients.

use std::io;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the socket of a process that was killed may live on: the kernel takes its ring apart
/// afterwards, and an accept that waits there holds the socket.
const DYING: Duration = Duration::from_secs(1);
const DYING_PAUSE: Duration = Duration::from_millis(20);

/// A listening socket, unix or TCP.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
}

impl Listener {
    /// A unix socket at `path`. A socket that is there and that nobody listens on is replaced;
    /// whether that is so may take a second to show.
    pub fn bind_unix(path: &Path) -> io::Result<Self> {
        let until = Instant::now() + DYING;
        loop {
            match UnixListener::bind(path) {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => match is_dead(path) {
                    true => std::fs::remove_file(path)?,
                    false if until <= Instant::now() => return Err(error),
                    false => std::thread::sleep(DYING_PAUSE),
                },
                outcome => return Ok(outcome?.into()),
            }
        }
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

/// Whether `path` is a socket that was left behind.
fn is_dead(path: &Path) -> bool {
    let outcome = UnixStream::connect(path);
    outcome.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}
