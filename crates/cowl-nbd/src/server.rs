//! The server: sockets, rings and devices around the protocol.
//!
//! One [`Server`] is shared by all threads; each of them runs [`Server::run`] inside a compio
//! runtime of its own. Whichever thread accepts a connection hands it to the one with the fewest,
//! where it stays. Devices are shared by all threads (`Arc<E>`): a request runs on the ring of the
//! thread that has its connection, which is what `UringStorage` is made for.
//!
//! ```text
//!   socket ─► intake ─► judge ─► execute (polled once at once, a task if it has to wait) ─┐
//!   socket ◄─────────── outbox: everything that is ready, in one vectored send ◄──────────┘
//! ```
//!
//! Invariants:
//!   - what clients can make the server hold is bounded by [`ServerOptions`]: a budget of bytes for
//!     requests and replies, a number of connections, and time for each step of a slow client,
//!   - connections share no lock and, but for the budget, no line of memory while they run,
//!   - a reply leaves after its request has ended, in the order of completion.

mod budget;
mod busy_poll;
mod connection;
mod execute;
mod export;
mod guests;
mod intake;
mod listener;
mod outbox;
mod socket;
mod tls;
mod transport;
mod watch;
mod worker;

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_lock::Semaphore;
use cowl_block::BlockDevice;
use cowl_serverkit::Stop;

pub use self::export::{Clients, Export, Exports, FastZero};
pub use self::listener::Listener;
pub use self::tls::{Tls, TlsError};

use self::budget::Budget;
use self::guests::Guests;
use self::worker::{Handle, Worker};

/// How much clients may make a server hold and wait.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Bytes of requests and replies in flight over all connections. Past it, connections wait with
    /// reading further requests. A connection that has nothing in flight always gets one request
    /// of up to 1 MiB, so that none starves; that comes on top.
    pub memory_max: u64,
    /// How much of it one connection can take.
    pub memory_per_connection_max: u64,
    /// Connections at a time; more wait until others have gone.
    pub connections_max: usize,
    /// From accepting to the end of the handshake, TLS included.
    pub handshake_timeout: Duration,
    /// How long a client may take none of a reply, or send nothing of a request that it began.
    /// While other clients wait for memory: how long it may need for all of it.
    pub stall_timeout: Duration,
    /// TLS, if any.
    pub tls: Option<Tls>,
}

impl ServerOptions {
    /// For any network.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            // Four connections with the 32 MiB requests of convert, or tens of thousands of 4 KiB.
            memory_max: 256 << 20,
            memory_per_connection_max: 96 << 20,
            connections_max: 1024,
            handshake_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(30),
            tls: None,
        }
    }
}

/// Counts of a server so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Connections at the moment.
    pub connections: usize,
    /// Connections since the server began, those of the moment included.
    pub connections_ever: u64,
    /// Bytes of requests and replies in flight at the moment.
    pub memory_used: u64,
}

/// A server. Clones are the same server.
pub struct Server<E> {
    shared: Arc<Shared<E>>,
}

pub(crate) struct Shared<E> {
    pub(crate) exports: Exports<E>,
    pub(crate) options: ServerOptions,
    pub(crate) budget: Arc<Budget>,
    pub(crate) stop: Stop,
    pub(crate) guests: Arc<Guests>,
    /// Places for connections.
    pub(crate) slots: Arc<Semaphore>,
    /// Threads that run; touched when a connection comes, not while it works.
    workers: Mutex<Vec<Handle>>,
    listeners: Mutex<Vec<Listener>>,
}

impl<E> Clone for Server<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<E: BlockDevice + 'static> Server<E> {
    /// A server of `exports` that accepts from `listeners`.
    #[must_use]
    pub fn new(exports: Exports<E>, listeners: Vec<Listener>, options: ServerOptions) -> Self {
        let budget = Budget::new(options.memory_max, options.memory_per_connection_max);
        let slots = Arc::new(Semaphore::new(options.connections_max));
        let shared = Shared {
            exports,
            options,
            budget: Arc::new(budget),
            stop: Stop::default(),
            guests: Arc::default(),
            slots,
            workers: Mutex::default(),
            listeners: Mutex::new(listeners),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Serves on this thread until [`stop`](Self::stop), and returns when the last reply of its
    /// connections is sent. Call it on each thread that should serve, inside a compio runtime.
    ///
    /// Fails when the sockets cannot be had on this thread. What a client does wrong ends its own
    /// connection and is no error here.
    pub async fn run(&self) -> io::Result<()> {
        let listeners = self.shared.clone_listeners()?;
        Worker::new(Arc::clone(&self.shared)).run(listeners).await
    }

    /// Accepts nothing from now on, reads no further request, answers what was read, and lets
    /// [`run`](Self::run) return. From any thread.
    ///
    /// Flushing or closing the devices afterwards is up to their owner.
    pub fn stop(&self) {
        self.shared.stop.request();
    }

    /// The exports; adding and removing them changes what new connections see.
    #[must_use]
    pub fn exports(&self) -> &Exports<E> {
        &self.shared.exports
    }

    /// Returns when there was a client and none is left.
    pub async fn all_gone(&self) {
        self.shared.guests.all_gone().await;
    }

    /// What is going on.
    #[must_use]
    pub fn stats(&self) -> ServerStats {
        ServerStats {
            connections: self.shared.guests.present(),
            connections_ever: self.shared.guests.ever(),
            memory_used: self.shared.budget.used(),
        }
    }
}

impl<E> Shared<E> {
    fn clone_listeners(&self) -> io::Result<Vec<Listener>> {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.iter().map(Listener::try_clone).collect()
    }

    fn workers(&self) -> std::sync::MutexGuard<'_, Vec<Handle>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
