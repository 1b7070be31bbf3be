//! The thread of one export: accepts a front-end, does what it says, and takes the next.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cowl_block::BlockDevice;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, Shutdown, recvmsg,
};
use vhost::vhost_user::BackendReqHandler;

use crate::export::Served;
use crate::listener::{Kind, Listener};
use crate::server::Shared;
use crate::session::Session;

/// How long a front-end may take over a message that it began, or to read a reply.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait before looking again whether the rest of a message has come.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// Bytes of the head of a message.
const MESSAGE_HEAD: usize = 12;

/// How long to leave front-ends waiting when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// SET_BACKEND_REQ_FD.
const SET_CHANNEL: u32 = 21;

/// Serves front-ends one after another until the server is to stop.
pub(crate) fn run<E: BlockDevice + 'static>(
    shared: &Arc<Shared<E>>,
    served: &Arc<Served<E>>,
    listener: Listener,
) {
    match listener.kind {
        Kind::Connected(stream) => serve(shared, served, stream),
        Kind::Listening(listener) => {
            while await_readable(shared, &listener) {
                accept(shared, served, &listener);
            }
        }
    }
}

fn accept<E: BlockDevice + 'static>(
    shared: &Arc<Shared<E>>,
    served: &Arc<Served<E>>,
    listener: &UnixListener,
) {
    match listener.accept() {
        Ok((stream, _)) => serve(shared, served, stream),
        // It went away before it was accepted, or another process took it.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(_) => std::thread::sleep(ACCEPT_PAUSE),
    }
}

/// By `fcntl`: the standard library's way is an `ioctl`, which a sandbox may refuse.
pub(crate) fn set_nonblocking(socket: &impl AsFd, nonblocking: bool) -> io::Result<()> {
    let mut flags = fcntl_getfl(socket)?;
    flags.set(OFlags::NONBLOCK, nonblocking);
    Ok(fcntl_setfl(socket, flags)?)
}

/// Waits for something to read; `false` when the server is to stop, or waiting fails.
fn await_readable<E>(shared: &Shared<E>, socket: &impl AsFd) -> bool {
    loop {
        let stop = shared.stop_signal().as_fd();
        let mut fds = [
            PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(stop, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) if shared.is_stopping() => return false,
            Ok(_) if !fds[0].revents().is_empty() => return true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Serves a front-end to its end. Its mistakes end its connection and nothing else.
fn serve<E: BlockDevice + 'static>(
    shared: &Arc<Shared<E>>,
    served: &Arc<Served<E>>,
    stream: UnixStream,
) {
    served.connected.store(true, Ordering::Relaxed);
    let _outcome = converse(shared, served, stream);
    served.set_channel(None);
    served.connected.store(false, Ordering::Relaxed);
}

fn converse<E: BlockDevice + 'static>(
    shared: &Arc<Shared<E>>,
    served: &Arc<Served<E>>,
    stream: UnixStream,
) -> io::Result<()> {
    set_nonblocking(&stream, false)?;
    // A message that stops in its middle would keep the server from stopping.
    stream.set_read_timeout(Some(MESSAGE_TIMEOUT))?;
    stream.set_write_timeout(Some(MESSAGE_TIMEOUT))?;
    let socket = stream.try_clone()?;
    let session = Arc::new(Mutex::new(Session::new(Arc::clone(shared), Arc::clone(served))));
    let mut handler = BackendReqHandler::from_stream(stream, session);
    while await_readable(shared, &socket) {
        if !is_whole_and_answerable(shared, &socket) {
            break;
        }
        let channel = peek_channel(&socket);
        if handler.handle_request().is_err() {
            break;
        }
        if let Some(channel) = channel {
            served.set_channel(Some(channel));
        }
    }
    // Its queues come to rest as the session goes; only then the other side sees the end.
    drop(handler);
    let _gone_before = rustix::net::shutdown(&socket, Shutdown::Both);
    Ok(())
}

/// Waits until the head of the next message is there, and room for a reply: the handler would wait
/// for both without end. `false` when that takes too long, or the server is to stop.
fn is_whole_and_answerable<E>(shared: &Shared<E>, socket: &UnixStream) -> bool {
    let until = Instant::now() + MESSAGE_TIMEOUT;
    while !shared.is_stopping() && Instant::now() < until {
        let mut head = [0; MESSAGE_HEAD];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let is_there = match rustix::net::recv(socket, &mut head[..], flags) {
            // The end; the handler finds it too.
            Ok((0, _)) => return true,
            Ok((count, _)) => count == MESSAGE_HEAD,
            Err(Errno::INTR | Errno::AGAIN) => false,
            Err(_) => return false,
        };
        let mut fds = [PollFd::new(socket, PollFlags::OUT)];
        let has_room = is_there && poll(&mut fds, Some(&Timespec::default())) == Ok(1);
        if has_room {
            return true;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
    false
}

/// The socket that the next message brings if it is SET_BACKEND_REQ_FD.
///
/// The handler keeps it to itself and cannot send what is needed here, a change of the
/// configuration; so the message is looked at before the handler takes it.
fn peek_channel(socket: &UnixStream) -> Option<UnixStream> {
    let mut number = [0; 4];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut files = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::PEEK | RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let peeked = recvmsg(socket, &mut [IoSliceMut::new(&mut number)], &mut files, flags).ok()?;
    let mut fds: Vec<OwnedFd> = files
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    let is_it = peeked.bytes == number.len()
        && u32::from_le_bytes(number) == SET_CHANNEL
        && !peeked.flags.contains(ReturnFlags::CTRUNC);
    fds.pop().filter(|_| is_it && fds.is_empty()).map(UnixStream::from)
}
