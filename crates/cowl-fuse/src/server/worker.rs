//! One thread of a server: reads requests, starts them, waits for the next.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use compio::runtime::fd::PollFd;
use cowl_block::BlockDevice;
use cowl_serverkit::{Pool, is_done_at_once};
use cowl_storage::{IoBuffer, yield_now};
use futures_util::future::{Either, select};

use super::Shared;
use super::budget::{Account, Budget, Charge, Held, OVERHEAD};
use super::execute::{self, Answer, Errno};
use crate::protocol::reply;
use crate::protocol::request::{ARGUMENTS_MAX, HEAD_LENGTH, HEADER_LENGTH, Header, Request};

/// Requests served in a row before other tasks of the thread get their turn.
const TURN_MAX: u32 = 64;

/// Payloads that are not copied into a buffer of their size: the copy would cost more than what the
/// larger buffer holds back.
const COPIED_MAX: usize = 32 << 10;

/// The longest request of the kernel.
const POOLED_LENGTH_MAX: usize = 1 << 20;

/// Bytes of buffers kept by a thread.
const POOLED_BYTES_MAX: usize = 24 << 20;

/// Requests that keep a thread busy for long enough to let another one watch.
const LONG: u64 = 32 << 10;

/// The state of a thread. Belongs to it.
pub(super) struct Worker<E> {
    pub(super) shared: Arc<Shared<E>>,
    pub(super) pool: Pool,
    device: PollFd<OwnedFd>,
    held: Held,
}

impl<E> Account for Worker<E> {
    fn budget(&self) -> &Budget {
        &self.shared.budget
    }

    fn held(&self) -> &Held {
        &self.held
    }
}

/// A request as it is read: the payload of a write is alone in its buffer.
struct Input {
    head: [u8; HEAD_LENGTH],
    rest: IoBuffer,
}

/// What reading brought.
enum Received {
    /// A request of so many bytes.
    Request(usize),
    /// There is none.
    Nothing,
    /// There will be none.
    End,
}

impl<E: BlockDevice + 'static> Worker<E> {
    pub(super) fn new(shared: Arc<Shared<E>>, device: OwnedFd) -> io::Result<Rc<Self>> {
        let device = PollFd::new(device)?;
        Ok(Rc::new(Self {
            shared,
            pool: Pool::new(POOLED_LENGTH_MAX, POOLED_BYTES_MAX),
            device,
            held: Held::default(),
        }))
    }

    /// Serves until the connection ends and the last request is answered.
    pub(super) async fn run(self: Rc<Self>) -> io::Result<()> {
        let result = self.receive_all().await;
        self.shared.budget.returned(&self.held).await;
        result
    }

    async fn receive_all(self: &Rc<Self>) -> io::Result<()> {
        let shared = &self.shared;
        let mut input = Input { head: [0; HEAD_LENGTH], rest: self.payload_buffer() };
        let mut turn = 0;
        while !shared.connection.stop.is_requested() {
            shared.budget.room(&self.held).await;
            match self.receive(&mut input)? {
                Received::Request(length) => {
                    turn += 1;
                    self.start(&mut input, length, turn).await;
                    if turn % TURN_MAX == 0 {
                        yield_now().await;
                    }
                }
                Received::Nothing => {
                    turn = 0;
                    let stop = pin!(shared.connection.stop.requested());
                    let readable = pin!(shared.baton.wait(self.device.read_ready()));
                    if let Either::Right((result, _)) = select(stop, readable).await {
                        result?;
                    }
                }
                Received::End => shared.connection.is_gone(),
            }
        }
        Ok(())
    }

    fn payload_buffer(&self) -> IoBuffer {
        self.pool.take(usize::try_from(self.shared.agreed.write_max).unwrap_or(usize::MAX))
    }

    fn receive(&self, input: &mut Input) -> io::Result<Received> {
        use rustix::io::Errno;
        let parts = &mut [IoSliceMut::new(&mut input.head), IoSliceMut::new(&mut input.rest)];
        match rustix::io::readv(&*self.device, parts) {
            Ok(length) => Ok(Received::Request(length)),
            Err(Errno::AGAIN) => Ok(Received::Nothing),
            // A request that its caller took back just now, or a signal: the next one.
            Err(Errno::NOENT | Errno::INTR) => Ok(Received::Request(0)),
            Err(Errno::NODEV | Errno::NOTCONN) => Ok(Received::End),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Runs a request: here and now as far as it goes, and as a task of its own from where it has
    /// to wait.
    async fn start(self: &Rc<Self>, input: &mut Input, length: usize, turn: u32) {
        let Ok(header) = Header::decode(&input.head, length) else { return };
        let request = decode(&header, input, length);
        let bytes = request.as_ref().map_or(0, memory_of);
        if turn != 1 || LONG <= bytes {
            self.shared.baton.call_one();
        }
        let request = match request {
            Ok(Request::Forget) => return,
            Ok(request) => request,
            Err(errno) => return self.reply(header.unique, Err(errno)),
        };
        let payload = match request {
            Request::Write { length, .. } => self.payload(input, length),
            _ => IoBuffer::zeroed(0),
        };
        let charge = Charge::new(self, OVERHEAD + bytes.max(payload.capacity() as u64));
        let worker = Rc::clone(self);
        let mut work = Box::pin(async move {
            let answer = execute::run(&worker, &header, request, payload).await;
            worker.reply(header.unique, answer);
            drop(charge);
        });
        if !is_done_at_once(work.as_mut()).await {
            compio::runtime::spawn(work).detach();
        }
    }

    /// The payload of a write, in a buffer that belongs to it.
    fn payload(&self, input: &mut Input, length: u32) -> IoBuffer {
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(input.rest.len());
        if length <= COPIED_MAX {
            let mut payload = self.pool.take(length);
            payload.copy_from_slice(&input.rest[..length]);
            return payload;
        }
        let mut payload = std::mem::replace(&mut input.rest, self.payload_buffer());
        payload.truncate(length);
        payload
    }

    /// Answers a request. A caller who is gone, or a connection, gets nothing.
    fn reply(&self, unique: u64, answer: Result<Answer, Errno>) {
        self.shared.counters.requests.fetch_add(1, Ordering::Relaxed);
        let sent = match &answer {
            Ok(Answer::Bytes(bytes)) => self.send(unique, 0, bytes),
            Ok(Answer::Data(buffer)) => self.send(unique, 0, buffer),
            Err(errno) => self.send(unique, errno.0, &[]),
        };
        if let Ok(Answer::Data(buffer)) = answer {
            self.pool.put(buffer);
        }
        if matches!(sent, Err(rustix::io::Errno::NOMEM | rustix::io::Errno::FAULT)) {
            // The kernel could not take that much; without any answer the caller waits for ever.
            self.send(unique, Errno::IO.0, &[]).ok();
        }
    }

    fn send(&self, unique: u64, errno: i32, body: &[u8]) -> rustix::io::Result<usize> {
        let head = reply::header(unique, errno, body.len());
        let parts = [IoSlice::new(&head), IoSlice::new(body)];
        rustix::io::retry_on_intr(|| rustix::io::writev(&*self.device, &parts))
    }
}

fn decode(header: &Header, input: &Input, length: usize) -> Result<Request, Errno> {
    let malformed = |_| Errno::INVAL;
    if length <= HEAD_LENGTH {
        return Request::decode(header, &input.head[HEADER_LENGTH..length]).map_err(malformed);
    }
    let request = Request::decode(header, &input.head[HEADER_LENGTH..]);
    if let Ok(request @ Request::Write { .. }) = request {
        return Ok(request);
    }
    let rest = &input.rest[..(length - HEAD_LENGTH).min(ARGUMENTS_MAX)];
    let arguments = [&input.head[HEADER_LENGTH..], rest].concat();
    Request::decode(header, &arguments).map_err(malformed)
}

/// Bytes that a request and its answer take.
fn memory_of(request: &Request) -> u64 {
    match request {
        Request::Read { length, .. } | Request::Write { length, .. } => u64::from(*length),
        _ => 0,
    }
}
