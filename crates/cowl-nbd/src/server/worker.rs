//! One thread of a server: accepts, takes over connections, watches them.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_lock::SemaphoreGuardArc;
use cowl_block::BlockDevice;
use cowl_serverkit::Pool;
use futures_channel::mpsc;
use futures_util::StreamExt;
use futures_util::future::{Either, select};

use super::Shared;
use super::busy_poll::Company;
use super::connection;
use super::guests::Guests;
use super::listener::Listener;
use super::socket::{Acceptor, Socket};
use super::watch::{Clock, Pace, Watch};

/// How long to leave clients waiting when the process is out of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Longer buffers cost little next to their I/O, and would pin memory.
const POOLED_LENGTH_MAX: usize = 64 << 10;

/// Bytes kept by a thread: what a few connections have in flight.
const POOLED_BYTES_MAX: usize = 16 << 20;

/// A worker as other threads see it.
pub(crate) struct Handle {
    arrivals: mpsc::UnboundedSender<Arrival>,
    load: Arc<AtomicUsize>,
}

/// A connection on its way to its thread. Counts as one from the moment it is accepted.
struct Arrival {
    fd: OwnedFd,
    count: Count,
}

/// One connection in the counts of its worker and of the server.
struct Count {
    of_worker: Arc<AtomicUsize>,
    of_server: Arc<Guests>,
    _slot: SemaphoreGuardArc,
}

impl Count {
    fn new(worker: &Handle, guests: &Arc<Guests>, slot: SemaphoreGuardArc) -> Self {
        worker.load.fetch_add(1, Ordering::Relaxed);
        guests.enter();
        Self { of_worker: Arc::clone(&worker.load), of_server: Arc::clone(guests), _slot: slot }
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.of_worker.fetch_sub(1, Ordering::Relaxed);
        self.of_server.leave();
    }
}

/// The state of a worker. Belongs to its thread.
pub(crate) struct Worker<E> {
    shared: Arc<Shared<E>>,
    pool: Rc<Pool>,
    company: Rc<Company>,
    clock: Rc<Clock>,
    watches: RefCell<BTreeMap<u64, Rc<Watch>>>,
    next_id: Cell<u64>,
}

impl<E: BlockDevice + 'static> Worker<E> {
    pub(crate) fn new(shared: Arc<Shared<E>>) -> Rc<Self> {
        Rc::new(Self {
            shared,
            pool: Rc::new(Pool::new(POOLED_LENGTH_MAX, POOLED_BYTES_MAX)),
            company: Rc::default(),
            clock: Rc::default(),
            watches: RefCell::default(),
            next_id: Cell::new(0),
        })
    }

    /// Serves until the server is to stop and the last connection has ended.
    pub(crate) async fn run(self: Rc<Self>, listeners: Vec<Listener>) -> io::Result<()> {
        let acceptors: Vec<_> = listeners
            .into_iter()
            .map(|listener| Acceptor::new(listener.into_fd()))
            .collect::<Result<_, _>>()?;
        let (arrivals, mut arriving) = mpsc::unbounded();
        self.shared.workers().push(Handle { arrivals: arrivals.clone(), load: Arc::default() });
        let accept = |acceptor| {
            let worker = Rc::clone(&self);
            compio::runtime::spawn(async move { worker.accept(acceptor).await })
        };
        let background: Vec<_> = acceptors.into_iter().map(accept).collect();
        let worker = Rc::clone(&self);
        let watching = compio::runtime::spawn(async move { worker.watch().await });
        // Whoever holds an end of this is not done yet.
        let (running, mut all_done) = mpsc::unbounded::<()>();
        loop {
            let stop = std::pin::pin!(self.shared.stop.requested());
            match select(stop, arriving.next()).await {
                Either::Left(_) | Either::Right((None, _)) => break,
                Either::Right((Some(arrival), _)) => self.take_over(arrival, running.clone()),
            }
        }
        self.shared.workers().retain(|handle| !handle.arrivals.same_receiver(&arrivals));
        // Ends accepting; clients that were not taken over yet are let go.
        drop((background, arriving));
        for watch in self.watches.borrow().values() {
            watch.socket.end_reading();
        }
        drop(running);
        while all_done.next().await.is_some() {}
        drop(watching);
        Ok(())
    }

    fn take_over(self: &Rc<Self>, arrival: Arrival, running: mpsc::UnboundedSender<()>) {
        let Ok(socket) = Socket::new(arrival.fd) else { return };
        let watch = Watch::new(socket, &self.clock);
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        self.watches.borrow_mut().insert(id, Rc::clone(&watch));
        let worker = Rc::clone(self);
        let serving = async move {
            let until_done = (running, arrival.count);
            let shared = Arc::clone(&worker.shared);
            connection::serve(shared, watch, Rc::clone(&worker.pool), &worker.company).await;
            worker.watches.borrow_mut().remove(&id);
            drop(until_done);
        };
        compio::runtime::spawn(serving).detach();
    }

    async fn accept(&self, acceptor: Acceptor) {
        loop {
            match acceptor.accept().await {
                Ok(fd) => {
                    // One client more waits for its greeting; the others wait to be accepted.
                    let slot = self.shared.slots.acquire_arc().await;
                    self.hand_over(fd, slot);
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept");
                    compio::runtime::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Gives a new connection to the thread that has the fewest.
    fn hand_over(&self, fd: OwnedFd, slot: SemaphoreGuardArc) {
        let shared = &self.shared;
        let workers = shared.workers();
        let load = |handle: &&Handle| handle.load.load(Ordering::Relaxed);
        let Some(handle) = workers.iter().min_by_key(load) else { return };
        let count = Count::new(handle, &shared.guests, slot);
        // A thread that is ending lets the client go; the server is stopping.
        let _ending = handle.arrivals.unbounded_send(Arrival { fd, count });
    }

    /// Cuts connections that wait too long, and all of them when the end takes too long.
    async fn watch(&self) {
        let options = &self.shared.options;
        let pace = Pace::new(options.handshake_timeout, options.stall_timeout);
        let mut looks_since_stop = 0;
        loop {
            compio::runtime::time::sleep(pace.interval).await;
            self.clock.advance();
            looks_since_stop += u32::from(self.shared.stop.is_requested());
            let time_is_up = pace.is_too_long(looks_since_stop);
            let memory_is_short = self.shared.budget.is_short();
            for watch in self.watches.borrow().values() {
                let is_overdue = watch.is_overdue(pace, memory_is_short);
                if is_overdue || time_is_up || watch.is_revoked() {
                    tracing::info!(is_overdue, "a client was cut");
                    watch.socket.cut();
                }
            }
        }
    }
}
