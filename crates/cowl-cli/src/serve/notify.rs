//! Tells a service manager that clients can come, as systemd wants it (`NOTIFY_SOCKET`).

use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The manager's socket, connected before the sandbox closes.
pub(super) struct Manager(Option<UnixDatagram>);

impl Manager {
    /// The manager of this process, if it waits for news.
    pub(super) fn of_process() -> Self {
        Self(std::env::var_os("NOTIFY_SOCKET").and_then(|name| {
            let address = match name.as_bytes().strip_prefix(b"@") {
                Some(name) => SocketAddr::from_abstract_name(name),
                None => SocketAddr::from_pathname(&name),
            };
            let socket = UnixDatagram::unbound().ok()?;
            socket.connect_addr(&address.ok()?).ok()?;
            Some(socket)
        }))
    }

    /// Says `news`, such as `READY=1`. A manager that is gone misses nothing.
    pub(super) fn tell(&self, news: &str) {
        if let Some(socket) = &self.0 {
            socket.send(news.as_bytes()).ok();
        }
    }
}
