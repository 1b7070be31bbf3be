//! [`Server`]: what its threads share.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowl_block::BlockDevice;
use event_listener::Event;
use rustix::event::{EventfdFlags, eventfd};

use crate::control;
use crate::export::{Export, Served};
use crate::listener::{Kind, Listener};
use crate::queue::{Assignment, Counts};
use crate::worker::{self, Handle};

/// How a server works.
#[derive(Clone, Copy, Debug)]
pub struct ServerOptions {
    /// How many threads will call [`Server::run`]. Front-ends wait until all of them have, so that
    /// queues are spread over all of them.
    pub threads: usize,
}

/// Counts of a server so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Front-ends at the moment.
    pub connections: usize,
    /// Queues that are served at the moment.
    pub queues: usize,
    /// Requests taken from queues so far.
    pub requests: u64,
    /// Queues so far that were given up because their driver broke them.
    pub faults: u64,
}

/// A server. Clones are the same server.
pub struct Server<E> {
    shared: Arc<Shared<E>>,
}

pub(crate) struct Shared<E> {
    exports: Vec<Arc<Served<E>>>,
    /// Until enough workers run.
    waiting: Mutex<Vec<(Arc<Served<E>>, Listener)>>,
    options: ServerOptions,
    workers: Mutex<Vec<Handle<E>>>,
    /// Threads that talk to front-ends, and the ones that will be started.
    controls: AtomicUsize,
    stop: AtomicBool,
    /// Something about `stop` or `controls` changed.
    changed: Event,
    /// Readable once the server is to stop.
    stop_signal: OwnedFd,
}

impl<E> Clone for Server<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<E: BlockDevice + 'static> Server<E> {
    /// A server of `exports`. Fails where the process is out of descriptors.
    pub fn new(
        exports: impl IntoIterator<Item = Export<E>>,
        options: ServerOptions,
    ) -> io::Result<Self> {
        let mut waiting = Vec::new();
        for export in exports {
            let (served, listener) = export.into_parts();
            if let Kind::Listening(listener) = &listener.kind {
                // A front-end may be gone between the look and the accept, which must not wait.
                control::set_nonblocking(listener, true)?;
            }
            waiting.push((Arc::new(served), listener));
        }
        let shared = Shared {
            exports: waiting.iter().map(|(served, _)| Arc::clone(served)).collect(),
            controls: AtomicUsize::new(waiting.len()),
            waiting: Mutex::new(waiting),
            options,
            workers: Mutex::default(),
            stop: AtomicBool::default(),
            changed: Event::new(),
            stop_signal: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Serves queues on this thread until [`stop`](Self::stop), or until no front-end can come any
    /// more because the sockets were connected ones. Call it on each thread that should serve,
    /// inside a compio runtime.
    ///
    /// Fails when threads cannot be started. What a front-end or its guest does wrong ends its own
    /// connection or queue and is no error here.
    pub async fn run(&self) -> io::Result<()> {
        worker::run(Arc::clone(&self.shared)).await
    }

    /// Accepts no front-end from now on, takes no further request, answers what was taken, and lets
    /// [`run`](Self::run) return. From any thread.
    ///
    /// Flushing or closing the devices afterwards is up to their owner.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _rung_before = rustix::io::write(&self.shared.stop_signal, &1_u64.to_ne_bytes());
        self.shared.changed.notify(usize::MAX);
    }

    /// Tells front-ends to look at the configuration again: after a device got another size.
    pub fn announce_resize(&self) {
        for served in &self.shared.exports {
            served.announce_config();
        }
    }

    /// What is going on.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        let connected = |served: &&Arc<Served<E>>| served.connected.load(Ordering::Relaxed);
        let workers = self.shared.workers();
        let sum = |of: fn(&Counts) -> &AtomicU64| {
            workers.iter().map(|worker| of(worker.counts()).load(Ordering::Relaxed)).sum()
        };
        ServerStats {
            connections: self.shared.exports.iter().filter(connected).count(),
            queues: workers.iter().map(Handle::load).sum(),
            requests: sum(|counts| &counts.requests),
            faults: sum(|counts| &counts.faults),
        }
    }
}

impl<E> Shared<E> {
    fn workers(&self) -> MutexGuard<'_, Vec<Handle<E>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    pub(crate) fn stop_signal(&self) -> &OwnedFd {
        &self.stop_signal
    }

    /// Returns once no front-end is served and none will be.
    pub(crate) async fn stopped(&self) {
        loop {
            let heard = self.changed.listen();
            if self.is_over() {
                return;
            }
            heard.await;
        }
    }

    fn is_over(&self) -> bool {
        let before_start = || !self.waiting().is_empty();
        self.controls.load(Ordering::SeqCst) == 0 || (self.is_stopping() && before_start())
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<(Arc<Served<E>>, Listener)>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a queue to the worker that has the fewest.
    pub(crate) fn assign(&self, make: impl FnOnce(&Handle<E>) -> Assignment<E>) {
        let workers = self.workers();
        if let Some(handle) = workers.iter().min_by_key(|handle| handle.load()) {
            handle.assign(make(handle));
        }
    }

    fn control_ended(&self) {
        self.controls.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify(usize::MAX);
    }
}

impl<E: BlockDevice + 'static> Shared<E> {
    /// Adds a worker. The last of them starts the threads that talk to front-ends.
    pub(crate) fn register(self: &Arc<Self>, handle: Handle<E>) -> io::Result<()> {
        let count = {
            let mut workers = self.workers();
            workers.push(handle);
            workers.len()
        };
        if count < self.options.threads || self.is_stopping() {
            return Ok(());
        }
        let waiting = std::mem::take(&mut *self.waiting());
        // Where a thread cannot be started, it and the ones behind it count as ended all the same.
        let endings = || std::iter::repeat_with(|| Ending(Arc::clone(self)));
        let endings: Vec<_> = endings().take(waiting.len()).collect();
        for ((served, listener), ending) in waiting.into_iter().zip(endings) {
            // Talking to a front-end blocks (it waits for queues to come to rest), so it must not
            // happen on a thread that serves queues.
            let thread = std::thread::Builder::new().name("vhost-user".to_owned());
            thread.spawn(move || control::run(&ending.0, &served, listener))?;
        }
        Ok(())
    }
}

/// Counts a control thread as ended, however it ends.
struct Ending<E>(Arc<Shared<E>>);

impl<E> Drop for Ending<E> {
    fn drop(&mut self) {
        self.0.control_ended();
    }
}
