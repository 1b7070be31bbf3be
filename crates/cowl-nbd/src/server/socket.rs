//! Connected sockets of either family.
//!
//! compio has a type for each family, and they differ in their addresses only. The unix one carries
//! both here, so that no code exists twice.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net as std_net;

use compio::BufResult;
use compio::buf::{IoBuf, IoVectoredBuf};
use compio::io::{AsyncRead, AsyncWrite};
use compio::net::{UnixListener, UnixStream};
use cowl_storage::IoBuffer;
use rustix::net::{Shutdown, shutdown, sockopt};

/// A listening socket on the ring of this thread.
pub(crate) struct Acceptor(UnixListener);

impl Acceptor {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(UnixListener::from_std(std_net::UnixListener::from(fd))?))
    }

    /// The next client, not bound to a thread yet.
    pub(crate) async fn accept(&self) -> io::Result<OwnedFd> {
        let (stream, _address) = self.0.accept().await?;
        stream.as_fd().try_clone_to_owned()
    }
}

/// A connected socket on the ring of this thread. Clones are the same socket.
#[derive(Clone)]
pub(crate) struct Socket(UnixStream);

impl Socket {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        // Replies are sent as soon as they are ready and together; waiting for more would only
        // delay them. A unix socket has no such option.
        let _on_tcp_only = sockopt::set_tcp_nodelay(&fd, true);
        // An idle client whose machine is gone would otherwise keep its place for ever.
        let _on_tcp_only = sockopt::set_socket_keepalive(&fd, true);
        Ok(Self(UnixStream::from_std(std_net::UnixStream::from(fd))?))
    }

    /// Reads into `buffer` from byte `start` on, at most up to `end`.
    pub(crate) async fn receive(
        &self,
        buffer: IoBuffer,
        start: usize,
        end: usize,
    ) -> (io::Result<usize>, IoBuffer) {
        let BufResult(result, slice) = (&self.0).read(buffer.slice(start..end)).await;
        (result, compio::buf::IntoInner::into_inner(slice))
    }

    /// Sends a part of `bytes`, from byte `start` on.
    pub(crate) async fn send<B: IoVectoredBuf>(
        &self,
        bytes: B,
        start: usize,
    ) -> (io::Result<usize>, B) {
        let BufResult(result, slice) = (&self.0).write_vectored(bytes.slice(start)).await;
        (result, compio::buf::IntoInner::into_inner(slice))
    }

    /// Lets reading end: what has arrived can still be read, then comes the end.
    pub(crate) fn end_reading(&self) {
        let _gone_already = shutdown(&self.0, Shutdown::Read);
    }

    /// Lets sending end after what was sent: the client sees the end of it.
    pub(crate) fn end_sending(&self) {
        let _gone_already = shutdown(&self.0, Shutdown::Write);
    }

    /// Ends the connection both ways; whoever reads or sends is woken.
    pub(crate) fn cut(&self) {
        let _gone_already = shutdown(&self.0, Shutdown::Both);
    }
}
