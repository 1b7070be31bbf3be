//! The connection of a client: requests out, replies to whom they belong.

use std::collections::HashMap;
use std::io::{self, Read};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use cowl_storage::IoBuffer;
use event_listener::Event;
use futures_channel::oneshot;
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown};

use super::storage::ConnectError;
use crate::protocol::answer::{AnswerHead, Content, decode_status};
use crate::protocol::asking::{Asking, Offer};
use crate::protocol::request::{Headers, Request};
use crate::protocol::wire::{chunk, command};

/// How long a server may think before each answer of the handshake. Later it may take its time:
/// disks do.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// A request and what it moves.
pub(crate) struct Order {
    pub(crate) request: Request,
    /// Where read bytes go or written ones come from; empty for other commands.
    pub(crate) buffer: IoBuffer,
    /// Which part of the buffer takes part.
    pub(crate) part: Range<usize>,
}

/// The reply to come, and the buffer of a write.
type Sent = (oneshot::Receiver<Finished>, Option<IoBuffer>);

/// How a request ended.
pub(crate) struct Finished {
    pub(crate) outcome: io::Result<()>,
    pub(crate) buffer: IoBuffer,
    /// Lengths and flags that a block status told.
    pub(crate) descriptors: Vec<(u64, u64)>,
}

struct Pending {
    order: Order,
    covered: usize,
    error: Option<u32>,
    descriptors: Vec<(u64, u64)>,
    finished: oneshot::Sender<Finished>,
}

#[derive(Default)]
struct Book {
    open: HashMap<u64, Pending>,
    next_cookie: u64,
    /// Nothing more comes.
    is_dead: bool,
}

struct Shared {
    /// compio's and std's types of both families differ in their addresses only.
    stream: UnixStream,
    headers: Headers,
    sending: Mutex<()>,
    book: Mutex<Book>,
    ended: Event,
}

/// A connection past its handshake.
pub(crate) struct Line {
    shared: Arc<Shared>,
    receiver: Option<JoinHandle<()>>,
}

impl Line {
    /// Takes `fd` through the handshake for `export`. Waits for the server meanwhile.
    pub(crate) fn open(fd: OwnedFd, export: &[u8]) -> Result<(Self, Offer), ConnectError> {
        let mut stream = UnixStream::from(fd);
        stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        let offer = shake_hands(&mut stream, export)?;
        stream.set_read_timeout(None)?;
        let shared = Arc::new(Shared {
            stream,
            headers: offer.headers,
            sending: Mutex::default(),
            book: Mutex::default(),
            ended: Event::new(),
        });
        let receiving = Arc::clone(&shared);
        let receiver = std::thread::Builder::new()
            .name("cowl-nbd-client".to_owned())
            .spawn(move || receiving.receive())?;
        Ok((Self { shared, receiver: Some(receiver) }, offer))
    }

    /// Sends a request and waits for its reply. Once it is sent, dropping the future changes
    /// nothing.
    pub(crate) async fn run(&self, order: Order) -> Finished {
        let (reply, payload) = match self.shared.send(order) {
            Ok(sent) => sent,
            Err(buffer) => return lost(buffer),
        };
        let mut finished = reply.await.unwrap_or_else(|_| lost(IoBuffer::zeroed(0)));
        if let Some(payload) = payload {
            finished.buffer = payload;
        }
        finished
    }

    /// Waits for the end of every request that is under way.
    pub(crate) async fn settle(&self) {
        let before = self.shared.book().next_cookie;
        let is_settled = || !self.shared.book().open.keys().any(|&cookie| cookie < before);
        while !is_settled() {
            let ended = self.shared.ended.listen();
            if !is_settled() {
                ended.await;
            }
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let goodbye = Request { flags: 0, command: command::DISC, cookie: 0, offset: 0, length: 0 };
        // A server that takes nothing any more must not keep us.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let _gone = send(&self.shared.stream, &goodbye.encode(self.shared.headers), flags);
        let _gone = shutdown(&self.shared.stream, Shutdown::Both);
        if let Some(receiver) = self.receiver.take() {
            // It ends with the connection.
            drop(receiver.join());
        }
    }
}

/// What becomes of a request whose connection ended.
fn lost(buffer: IoBuffer) -> Finished {
    Finished { outcome: Err(Errno::NOTCONN.into()), buffer, descriptors: Vec::new() }
}

fn shake_hands(stream: &mut UnixStream, export: &[u8]) -> Result<Offer, ConnectError> {
    let mut asking = Asking::new(export);
    let (mut input, mut out) = (Vec::new(), Vec::new());
    loop {
        let (taken, offer) = asking.step(&input, &mut out)?;
        input.drain(..taken);
        send_all(stream, &out, SendFlags::NOSIGNAL)?;
        out.clear();
        if let Some(offer) = offer {
            return Ok(offer);
        }
        if taken == 0 {
            let mut bytes = [0; 4096];
            match stream.read(&mut bytes) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(count) => input.extend_from_slice(&bytes[..count]),
                // A ring of the same thread interrupts calls when it has news.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn send_all(stream: &UnixStream, mut bytes: &[u8], flags: SendFlags) -> io::Result<()> {
    while !bytes.is_empty() {
        match send(stream, bytes, flags) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a request; gives its buffer back when the connection has ended. The buffer of a write
    /// is done with when it is sent, and comes back beside the reply that is to come.
    fn send(&self, mut order: Order) -> Result<Sent, IoBuffer> {
        let (finished, reply) = oneshot::channel();
        let is_write = order.request.command == command::WRITE;
        let payload = is_write.then(|| std::mem::replace(&mut order.buffer, IoBuffer::zeroed(0)));
        let part = order.part.clone();
        let head = {
            let mut book = self.book();
            if book.is_dead {
                return Err(payload.unwrap_or(order.buffer));
            }
            let cookie = book.next_cookie;
            book.next_cookie += 1;
            order.request.cookie = cookie;
            let head = order.request.encode(self.headers);
            let pending =
                Pending { order, covered: 0, error: None, descriptors: Vec::new(), finished };
            book.open.insert(cookie, pending);
            head
        };
        let bytes = payload.as_ref().map_or(&[][..], |payload| &payload[part]);
        let in_turn = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        if self.send_bytes(&head, bytes).is_err() {
            // Half a request may be out there: the receiver is woken and ends everything.
            let _gone = shutdown(&self.stream, Shutdown::Both);
        }
        drop(in_turn);
        Ok((reply, payload))
    }

    fn send_bytes(&self, head: &[u8], payload: &[u8]) -> io::Result<()> {
        let more = if payload.is_empty() { SendFlags::empty() } else { SendFlags::MORE };
        send_all(&self.stream, head, SendFlags::NOSIGNAL | more)?;
        send_all(&self.stream, payload, SendFlags::NOSIGNAL)
    }

    /// Receives replies to the end of the connection.
    fn receive(&self) {
        let mut stream = io::BufReader::with_capacity(16 << 10, &self.stream);
        while self.receive_one(&mut stream).is_ok() {}
        let _gone = shutdown(&self.stream, Shutdown::Both);
        let open = {
            let mut book = self.book();
            book.is_dead = true;
            std::mem::take(&mut book.open)
        };
        for pending in open.into_values() {
            let _dropped = pending.finished.send(lost(pending.order.buffer));
        }
        self.ended.notify(usize::MAX);
    }

    fn receive_one(&self, stream: &mut impl Read) -> io::Result<()> {
        let magic = u32::from_be_bytes(read_array(stream)?);
        let length = AnswerHead::length_after(magic).ok_or_else(out_of_step)?;
        let mut rest = [0; 28];
        stream.read_exact(&mut rest[..length])?;
        let head =
            AnswerHead::decode(magic, &rest[..length], self.headers).map_err(|_| out_of_step())?;
        // Out of the book while its bytes come in: nobody else waits for them.
        let pending = self.book().open.remove(&head.cookie);
        let mut pending = pending.ok_or_else(out_of_step)?;
        let outcome = pending.take_in(&head, stream);
        match (outcome, head.is_last) {
            (Ok(()), false) => {
                self.book().open.insert(head.cookie, pending);
            }
            (Ok(()), true) => {
                pending.finish();
                self.ended.notify(usize::MAX);
            }
            (Err(error), _) => {
                let _dropped = pending.finished.send(lost(pending.order.buffer));
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Pending {
    /// Takes in what follows the head.
    fn take_in(&mut self, head: &AnswerHead, stream: &mut impl Read) -> io::Result<()> {
        match head.content {
            Content::Simple { error: 0 } if self.order.request.command == command::READ => {
                let at = self.order.request.offset;
                self.receive_data(at, self.order.part.len(), stream)
            }
            Content::Simple { error: 0 } => Ok(()),
            Content::Simple { error } => {
                self.error = Some(error);
                Ok(())
            }
            Content::Chunk { kind, length } => {
                let length = usize::try_from(length).map_err(|_| out_of_step())?;
                self.receive_chunk(kind, length, stream)
            }
        }
    }

    fn receive_chunk(
        &mut self,
        kind: u16,
        length: usize,
        stream: &mut impl Read,
    ) -> io::Result<()> {
        match kind {
            chunk::OFFSET_DATA if 8 < length => {
                let at = u64::from_be_bytes(read_array(stream)?);
                self.receive_data(at, length - 8, stream)
            }
            chunk::OFFSET_HOLE if length == 12 => {
                let at = u64::from_be_bytes(read_array(stream)?);
                let length = u32::from_be_bytes(read_array(stream)?);
                let length = usize::try_from(length).map_err(|_| out_of_step())?;
                self.window(at, length)?.fill(0);
                Ok(())
            }
            chunk::BLOCK_STATUS | chunk::BLOCK_STATUS_EXT => {
                let mut payload = vec![0; length];
                stream.read_exact(&mut payload)?;
                self.descriptors = decode_status(kind, &payload).ok_or_else(out_of_step)?;
                Ok(())
            }
            chunk::NONE if length == 0 => Ok(()),
            kind if kind & 1 << 15 != 0 && 4 <= length => {
                self.error = Some(u32::from_be_bytes(read_array(stream)?));
                skip(stream, length - 4)
            }
            _ => Err(out_of_step()),
        }
    }

    fn receive_data(&mut self, at: u64, length: usize, stream: &mut impl Read) -> io::Result<()> {
        stream.read_exact(self.window(at, length)?)
    }

    /// The place in the buffer of `length` bytes at offset `at`. The server may not choose others
    /// than were asked for.
    fn window(&mut self, at: u64, length: usize) -> io::Result<&mut [u8]> {
        let start = at.checked_sub(self.order.request.offset).ok_or_else(out_of_step)?;
        let start = usize::try_from(start).map_err(|_| out_of_step())?;
        self.covered = self.covered.saturating_add(length);
        let part = &mut self.order.buffer[self.order.part.clone()];
        let rest = part.get_mut(start..).ok_or_else(out_of_step)?;
        rest.get_mut(..length).ok_or_else(out_of_step)
    }

    fn finish(self) {
        let is_read = self.order.request.command == command::READ;
        let outcome = match self.error {
            // The numbers of the protocol are those of Linux.
            Some(error) => Err(i32::try_from(error).ok().filter(|&e| 0 < e)),
            None if is_read && self.covered != self.order.part.len() => Err(None),
            None => Ok(()),
        };
        let outcome =
            outcome.map_err(|error| error.map_or(Errno::IO.into(), io::Error::from_raw_os_error));
        let Order { buffer, .. } = self.order;
        let finished = Finished { outcome, buffer, descriptors: self.descriptors };
        // Whoever asked may have stopped waiting.
        let _dropped = self.finished.send(finished);
    }
}

fn read_array<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn skip(stream: &mut impl Read, length: usize) -> io::Result<()> {
    let mut rest = stream.take(length as u64);
    io::copy(&mut rest, &mut io::sink()).map(drop)
}

fn out_of_step() -> io::Error {
    io::ErrorKind::InvalidData.into()
}
