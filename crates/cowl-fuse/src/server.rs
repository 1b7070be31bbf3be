//! The server: rings and a device around the protocol.
//!
//! One [`Server`] is shared by all threads; each of them runs [`Server::run`] inside a compio
//! runtime of its own, with an end of the connection of its own. A request is answered by the
//! thread that read it, on whose ring its I/O runs, which is what `UringStorage` is made for.
//!
//! ```text
//!   /dev/fuse ─► receive ─► execute (polled once at once, a task if it has to wait) ─► /dev/fuse
//! ```
//!
//! One thread at a time watches the device; whoever finds more than one request there wakes a
//! further one (see [`baton`]), so that one request after another stays on one thread, and many at
//! once spread over all.
//!
//! Invariants:
//!   - a request's bytes are its own from when it is read until it is answered,
//!   - what callers can make the server hold is bounded by [`Options::memory_max`]; requests past
//!     it wait in the kernel, on the account of who makes them,
//!   - nothing that a caller does, being killed included, ends the server or another's request.

mod attributes;
mod baton;
mod budget;
mod data;
mod execute;
mod handshake;
mod space;
mod worker;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use async_lock::RwLock;
use cowl_block::BlockDevice;
use cowl_serverkit::Stop;

use self::attributes::Ownership;
use self::baton::Baton;
use self::budget::Budget;
use self::worker::Worker;
use crate::mount::{self, DEVICE, Manner, Mount, MountError};
use crate::protocol::init::Agreed;
use crate::sys;

/// Longest name of a file.
const NAME_MAX: usize = 255;

/// Whether the file can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Opening it for writing fails with `EROFS`.
    ReadOnly,
    /// It can, unless the device is read-only.
    ReadWrite,
}

/// Whether the file can change its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizing {
    /// No, as a disk: writes end at its end with `ENOSPC`, other sizes are refused with `EPERM`,
    /// and opening with `O_TRUNC` leaves the content alone.
    Fixed,
    /// As a plain file, in steps of 512 bytes, where the device can.
    Growable,
}

/// Where reads and writes are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// From the page cache of the kernel where it can. Who opens the file anew sees what others
    /// wrote past the mount; who has it open may not. `O_DIRECT` bypasses it.
    PageCache,
    /// By the server, always.
    Direct,
}

/// Who can use the file besides whoever runs the server; its permissions count for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody, not even root (the kernel's own threads can, such as those of loop devices).
    Owner,
    /// Root.
    OwnerAndRoot,
    /// Everybody.
    Everyone,
}

/// A device and how it is shown.
pub struct Export<E> {
    /// The device.
    pub device: Arc<E>,
    /// Its name: of the file, where the mount point is a directory; in the table of mounts.
    pub name: String,
    /// Whether it can be written.
    pub access: Access,
    /// Whether its size can change.
    pub sizing: Sizing,
}

/// How a file is mounted and served.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where reads and writes are answered.
    pub caching: Caching,
    /// Who else can use it. Callers other than root need `user_allow_other` in `/etc/fuse.conf` for
    /// anything but [`Sharing::Owner`].
    pub sharing: Sharing,
    /// Bytes of the largest read and write, as far as the kernel goes along.
    pub request_max: u32,
    /// Requests that nobody waits for one by one (readahead, asynchronous I/O); further ones wait
    /// in the kernel.
    pub background_max: u16,
    /// Bytes of requests and answers in flight.
    pub memory_max: u64,
}

impl Options {
    /// For any host.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            caching: Caching::PageCache,
            sharing: Sharing::Owner,
            // What the kernel allows without its limit for pages raised.
            request_max: 1 << 20,
            // Enough to keep any disk busy; the kernel's own 12 are not.
            background_max: 256,
            memory_max: 256 << 20,
        }
    }
}

/// How a mount came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// [`Server::stop`] unmounted it, and nobody used it any more.
    Unmounted,
    /// [`Server::stop`] took it out of the tree while somebody used it, who now gets `ENOTCONN`
    /// (`ECONNABORTED` for what he asked in that moment).
    Detached,
    /// [`Server::stop`] could not unmount it. Whoever uses it gets `ENOTCONN`, and the mount point
    /// waits for somebody who may unmount it.
    LeftBehind,
    /// Somebody else unmounted it, or cut its connection.
    Outside,
}

/// Counts of a server so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Requests answered.
    pub requests: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes of requests and answers in flight at the moment.
    pub memory_used: u64,
    /// Files open at the moment. A close counts a little after it has returned to who closed.
    pub open_files: u64,
}

/// A mounted device. Clones are the same server; when the last one is dropped the mount goes, too.
pub struct Server<E> {
    shared: Arc<Shared<E>>,
}

impl<E> Clone for Server<E> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

pub(crate) struct Shared<E> {
    export: Export<E>,
    options: Options,
    agreed: Agreed,
    connection: Arc<Connection>,
    ownership: Ownership,
    baton: Baton,
    budget: Budget,
    counters: Counters,
    /// Requests hold it while the size must stay; `None` where it always does.
    size_gate: Option<RwLock<()>>,
}

/// What ends when the server does: everything but the device.
struct Connection {
    mount: Mount,
    /// The end that all others are cloned from. The kernel holds callers until the last end is
    /// closed.
    device: Mutex<Option<OwnedFd>>,
    workers: AtomicUsize,
    is_unmounting: AtomicBool,
    /// No request comes any more.
    stop: Stop,
    /// It is known how it ended.
    ended: Stop,
    ending: OnceLock<Ending>,
}

#[derive(Debug, Default)]
struct Counters {
    requests: AtomicU64,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    open_files: AtomicU64,
}

impl<E: BlockDevice + 'static> Server<E> {
    /// Mounts a device over the plain file `at`, or as a file of its own name in the directory
    /// `at`. Callers wait from now on until somebody calls [`run`](Self::run).
    pub fn new(export: Export<E>, at: &Path, options: Options) -> Result<Self, MountError> {
        let name = &export.name;
        if name.is_empty() || NAME_MAX < name.len() || name.contains(['/', '\0']) {
            return Err(MountError::Name { name: name.clone() });
        }
        let access = match export.device.is_read_only() {
            true => Access::ReadOnly,
            false => export.access,
        };
        let export = Export { access, ..export };
        let sharing = options.sharing;
        let request = mount::Request { at, source: &export.name, access, sharing };
        let (mount, device) = Mount::new(&request)?;
        let terms = handshake::terms(&options);
        let connection = Arc::new(Connection::new(mount, device));
        let agreed = connection.shake_hands(terms).inspect_err(|_| connection.abandon())?;
        let shared = Shared {
            size_gate: (export.sizing == Sizing::Growable).then(|| RwLock::new(())),
            ownership: Ownership::new(access),
            budget: Budget::new(options.memory_max),
            export,
            options,
            agreed,
            connection,
            baton: Baton::default(),
            counters: Counters::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Serves on this thread until [`stop`](Self::stop), or until somebody else unmounts, and
    /// returns when the last request that it took is answered. Call it on each thread that should
    /// serve, inside a compio runtime.
    ///
    /// Fails when this thread cannot have its end of the connection. What callers do wrong is no
    /// error here.
    pub async fn run(&self) -> io::Result<()> {
        let presence = Presence::new(&self.shared.connection);
        let Some(device) = self.shared.connection.another_end()? else { return Ok(()) };
        let result = Worker::new(Arc::clone(&self.shared), device)?.run().await;
        // Sleeping threads look for themselves whether there is something to do.
        self.shared.baton.call_all();
        if result.is_ok() {
            self.shared.connection.ended.requested().await;
        }
        drop(presence);
        result
    }

    /// Unmounts, answers what was asked before, and lets [`run`](Self::run) return on all threads.
    /// From any thread, at once; [`ending`](Self::ending) tells later how it went.
    ///
    /// A file that somebody uses goes out of the tree all the same; he gets `ENOTCONN` from then
    /// on. Flushing or closing the device afterwards is up to its owner.
    pub fn stop(&self) {
        self.shared.connection.begin_unmounting();
    }

    /// A way to take the file out of the tree at once, for a process that ends without answering
    /// anybody any more. It does not keep the device.
    pub fn abandoner(&self) -> impl Fn() + Send + Sync + use<E> + 'static {
        let connection = Arc::clone(&self.shared.connection);
        move || connection.abandon()
    }

    /// How the mount came to its end, once it has.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        self.shared.connection.ending.get().copied()
    }

    /// Where the device is mounted.
    #[must_use]
    pub fn mount_point(&self) -> &Path {
        self.shared.connection.mount.path()
    }

    /// What is going on.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counters = &self.shared.counters;
        Stats {
            requests: counters.requests.load(Ordering::Relaxed),
            bytes_read: counters.bytes_read.load(Ordering::Relaxed),
            bytes_written: counters.bytes_written.load(Ordering::Relaxed),
            memory_used: self.shared.budget.used(),
            open_files: counters.open_files.load(Ordering::Relaxed),
        }
    }
}

impl<E> Drop for Shared<E> {
    fn drop(&mut self) {
        self.connection.abandon();
    }
}

impl Connection {
    fn new(mount: Mount, device: OwnedFd) -> Self {
        Self {
            mount,
            device: Mutex::new(Some(device)),
            workers: AtomicUsize::new(0),
            is_unmounting: AtomicBool::new(false),
            stop: Stop::default(),
            ended: Stop::default(),
            ending: OnceLock::new(),
        }
    }

    fn device(&self) -> std::sync::MutexGuard<'_, Option<OwnedFd>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when the connection has ended.
    fn another_end(&self) -> io::Result<Option<OwnedFd>> {
        let device = self.device();
        let Some(device) = device.as_ref() else { return Ok(None) };
        let end = match sys::clone_device(DEVICE, device) {
            Ok(end) => end,
            // Those who needed the helper may lack the device itself. One end does for many, only
            // that they share its list of unanswered requests.
            Err(_) => device.as_fd().try_clone_to_owned()?,
        };
        rustix::io::ioctl_fionbio(&end, true)?;
        Ok(Some(end))
    }

    /// Somebody else ended it.
    fn is_gone(&self) {
        // While it is being unmounted here, the one who does it knows more.
        if !self.is_unmounting.load(Ordering::SeqCst) {
            self.end(Ending::Outside);
        }
        self.stop.request();
    }

    fn end(&self, ending: Ending) {
        self.ending.get_or_init(|| ending);
        self.stop.request();
        self.ended.request();
        if self.workers.load(Ordering::SeqCst) == 0 {
            drop(self.device().take());
        }
    }

    /// On a thread of its own: unmounting waits for requests that the calling thread may serve.
    fn begin_unmounting(self: &Arc<Self>) {
        if self.is_unmounting.swap(true, Ordering::SeqCst) || self.ending.get().is_some() {
            return;
        }
        let connection = Arc::clone(self);
        let unmount = move || connection.end(connection.unmount());
        let thread = std::thread::Builder::new().name("cowl-fuse-unmount".to_owned());
        if thread.spawn(unmount).is_err() {
            // This much does not wait.
            self.abandon();
        }
    }

    fn unmount(&self) -> Ending {
        if self.mount.unmount(Manner::Plain).is_ok() {
            return Ending::Unmounted;
        }
        if !self.mount.is_there() {
            return Ending::Outside;
        }
        mount::write_back(self.mount.path());
        match self.mount.unmount(Manner::Lazy) {
            Ok(()) => Ending::Detached,
            Err(_) => Ending::LeftBehind,
        }
    }

    /// Nobody serves any more: takes the file system away without asking it.
    fn abandon(&self) {
        if self.ending.get().is_some() {
            return;
        }
        self.end(match self.mount.unmount(Manner::Lazy) {
            Ok(()) => Ending::Detached,
            Err(_) => Ending::LeftBehind,
        });
    }
}

/// A thread that serves. The last one to leave an ended connection closes it.
struct Presence<'a> {
    connection: &'a Connection,
}

impl<'a> Presence<'a> {
    fn new(connection: &'a Connection) -> Self {
        connection.workers.fetch_add(1, Ordering::SeqCst);
        Self { connection }
    }
}

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        let was_last = self.connection.workers.fetch_sub(1, Ordering::SeqCst) == 1;
        if was_last && self.connection.ending.get().is_some() {
            drop(self.connection.device().take());
        }
    }
}
