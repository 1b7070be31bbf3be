//! Serves one queue on the thread that it was given to.
//!
//! One task holds the ring and all requests in flight, so nothing here is locked: it is woken by a
//! kick, by requests that went on, and by the wish to stop. Whatever ended by then goes into the
//! used ring, and the guest is called once for all of it.

use std::fs::File;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context as Waking, Poll};

use compio::runtime::fd::PollFd;
use cowl_block::BlockDevice;
use futures_channel::oneshot;
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};

use crate::execute::{self, Context, Done};
use crate::notifier::{self, Notifier};
use crate::request::Request;
use crate::ring::{Ring, RingFault};

/// Requests taken in a row before others on the thread get their turn and the guest is called.
const TURN_MAX: u32 = 64;

/// A queue on its way to its thread.
pub(crate) struct Assignment<E> {
    pub(crate) ring: Ring,
    pub(crate) context: ContextParts<E>,
    /// `None`: the other side gives no kicks and would have to be polled; it is looked at once.
    pub(crate) kick: Option<File>,
    pub(crate) error: Arc<Notifier>,
    /// A message, or the end of its sender: take nothing more, and end when all is answered.
    pub(crate) stop: oneshot::Receiver<()>,
    /// Where the queue stood when it ended.
    pub(crate) ended: std::sync::mpsc::Sender<u16>,
    pub(crate) counts: Arc<Counts>,
}

/// What happened on a thread; only the thread itself counts there.
#[derive(Default)]
pub(crate) struct Counts {
    /// Requests taken from queues.
    pub(crate) requests: AtomicU64,
    /// Queues given up because of what their driver did.
    pub(crate) faults: AtomicU64,
}

/// A [`Context`] before it is bound to a thread.
pub(crate) struct ContextParts<E> {
    pub(crate) served: Arc<crate::export::Served<E>>,
    pub(crate) writeback: Arc<std::sync::atomic::AtomicBool>,
}

type Running = Pin<Box<dyn Future<Output = Done>>>;

struct Serving<E> {
    ring: Ring,
    context: Rc<Context<E>>,
    kick: Option<PollFd<File>>,
    error: Arc<Notifier>,
    stop: oneshot::Receiver<()>,
    running: FuturesUnordered<Running>,
    counts: Arc<Counts>,
    /// Something may be available.
    look: bool,
    /// Nothing more is taken: the queue is to end, or it is broken.
    closed: bool,
    /// The queue is to end when all is answered.
    ending: bool,
}

/// Serves until the queue is to stop and everything that was taken is answered.
pub(crate) async fn serve<E: BlockDevice + 'static>(assignment: Assignment<E>) -> io::Result<()> {
    let Assignment { ring, context, kick, error, stop, ended, counts } = assignment;
    let memory = Arc::clone(&ring.memory);
    let ContextParts { served, writeback } = context;
    let context = Context { served, memory, writeback, bounce: Rc::default() };
    let mut serving = Serving {
        ring,
        context: Rc::new(context),
        kick: kick.map(PollFd::new).transpose()?,
        error,
        stop,
        running: FuturesUnordered::new(),
        counts,
        // What came before the kicks were listened to, and what an earlier back-end left.
        look: true,
        closed: false,
        ending: false,
    };
    poll_fn(|waking| serving.poll(waking)).await;
    // Nobody waits where the whole front-end is gone.
    let _gone = ended.send(serving.ring.base());
    Ok(())
}

impl<E: BlockDevice + 'static> Serving<E> {
    fn poll(&mut self, waking: &mut Waking<'_>) -> Poll<()> {
        if !self.ending && self.stop.poll_unpin(waking).is_ready() {
            self.ending = true;
            self.closed = true;
        }
        if !self.closed {
            self.hear_kick(waking);
        }
        if self.look && !self.closed && self.take_turn(waking).is_err() {
            self.give_up();
        }
        while let Poll::Ready(Some(done)) = self.running.poll_next_unpin(waking) {
            self.ring.finish(done);
        }
        self.ring.tell();
        match self.ending && self.running.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// Looks for kicks until there is none, so that the next one wakes the task.
    fn hear_kick(&mut self, waking: &mut Waking<'_>) {
        let Some(kick) = &self.kick else { return };
        while let Poll::Ready(outcome) = kick.poll_read_ready(waking) {
            self.look = true;
            if outcome.and_then(|()| notifier::take(kick)).is_err() {
                // Not an event counter after all.
                self.kick = None;
                return self.give_up();
            }
        }
    }

    fn take_turn(&mut self, waking: &mut Waking<'_>) -> Result<(), RingFault> {
        self.ring.hush();
        let mut taken = 0;
        while taken < TURN_MAX {
            match self.ring.take()? {
                Some(request) => {
                    taken += 1;
                    let parsed = Request::parse(&self.ring.memory, request.chain);
                    self.start(request.head, parsed, waking);
                }
                None if self.ring.listen()? => {}
                None => {
                    self.look = false;
                    break;
                }
            }
        }
        self.counts.requests.fetch_add(u64::from(taken), Ordering::Relaxed);
        if self.look {
            // Others first; the rest of the ring is looked at when it is this task's turn again.
            waking.waker().wake_by_ref();
        }
        Ok(())
    }

    /// Begins a request. What finds everything in memory ends right here.
    fn start(&mut self, head: u16, request: Request, waking: &mut Waking<'_>) {
        let mut running: Running = Box::pin(execute::run(Rc::clone(&self.context), head, request));
        match running.as_mut().poll(waking) {
            Poll::Ready(done) => self.ring.finish(done),
            Poll::Pending => self.running.push(running),
        }
    }

    /// Takes nothing more from a ring that its driver broke, and says so. What was taken before is
    /// still answered.
    fn give_up(&mut self) {
        self.closed = true;
        self.counts.faults.fetch_add(1, Ordering::Relaxed);
        self.error.notify();
    }
}
