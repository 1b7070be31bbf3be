//! From options to a process that serves, and to its end.

use std::net::SocketAddr;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use compio::runtime::Runtime;
use cowl::Access;
use cowl_nbd::{Listener, Server, ServerOptions};
use cowl_serverkit::{Stop, bind_unix};
use cowl_storage::ring_runtime;
use futures_util::future::{try_join_all, try_join3};
use rustix::fs::Mode;
use rustix::process::umask;

use crate::control::{self, Additions};
use crate::disk::{DiskRef, ServedDisk};
use crate::error::ServeError;
use crate::export::{Bitmaps, ExportOptions, explain_lock, is_same_file};
use crate::files::Files;
use crate::http::MetricsListener;
use crate::keeper::Keeper;
use crate::leftovers::Leftovers;
use crate::metrics::Metrics;
use crate::sandbox::{Needs, Sandbox};
use crate::table::{self, ExportTable};
use crate::virtual_machines;

/// When a daemon ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When it is told to.
    Stopped,
    /// Also when there was a client and the last one goes.
    LastClientGone,
}

/// How a daemon serves.
pub struct Options {
    /// Sockets on which NBD clients arrive.
    pub listeners: Vec<Listener>,
    /// Limits and TLS of the NBD server.
    pub nbd: ServerOptions,
    /// Serving threads.
    pub threads: usize,
    /// When it ends.
    pub until: Until,
    /// Where the control socket goes. Whoever can connect to it is obeyed; it is created for the
    /// user alone.
    pub control: Option<PathBuf>,
    /// Where metrics are served over HTTP, at `/metrics`.
    pub metrics: Option<SocketAddr>,
    /// What the process gives up before it serves.
    pub sandbox: Sandbox,
    /// Files, and folders with all that is in them, that exports added later may use.
    pub allowed: Vec<PathBuf>,
    /// How such exports are opened, but for what the command says.
    pub open: cowl::OpenOptions,
    /// Files that are removed at the end, or after an error: sockets, the pid file. The daemon adds
    /// those that it makes itself.
    pub leftovers: Leftovers,
}

/// Disks that are open and sockets that are bound. Belongs to the thread that opened it.
pub struct Daemon {
    options: Options,
    runtime: Runtime,
    table: Arc<ExportTable>,
    files: Files,
    disks: Vec<DiskRef>,
    control: Option<UnixListener>,
    metrics: Option<MetricsListener>,
    stop: Stop,
}

impl Daemon {
    /// Opens all that `exports` name, and the control socket. `stop` will end the daemon.
    ///
    /// After an error nothing is left behind.
    pub fn open(
        options: Options,
        exports: Vec<ExportOptions>,
        stop: Stop,
    ) -> Result<Self, ServeError> {
        let leftovers = options.leftovers.clone();
        let opened = Self::open_or_leave(options, exports, stop);
        opened.inspect_err(|_| leftovers.remove())
    }

    fn open_or_leave(
        mut options: Options,
        exports: Vec<ExportOptions>,
        stop: Stop,
    ) -> Result<Self, ServeError> {
        let runtime = ring_runtime().map_err(ServeError::host("Could not set up a ring"))?;
        let opened = runtime.block_on(open_all(exports))?;
        let mut disks: Vec<DiskRef> = Vec::new();
        for (_, disk, _) in &opened {
            if !disks.iter().any(|known| known.is_same(disk)) {
                disks.push(disk.clone());
            }
        }
        let guests = opened.iter().map(|(options, disk, _)| (options, disk));
        let threads = options.threads.max(1);
        let machines = virtual_machines::serve(guests, threads, &options.leftovers)?;
        let files = Files::mount(opened.iter().map(|(options, disk, _)| (options, disk)))?;
        let (exports, entries) = table::exports(opened);
        let listeners = std::mem::take(&mut options.listeners);
        let server = Server::new(exports, listeners, options.nbd.clone());
        let table = Arc::new(ExportTable::new(server, machines, entries));
        let metrics = options.metrics.map(MetricsListener::bind).transpose()?;
        let control = options.control.as_deref().map(bind_control).transpose()?;
        if let Some(path) = &options.control {
            options.leftovers.add(path);
        }
        Ok(Self { options, runtime, table, files, disks, control, metrics, stop })
    }

    /// Where metrics are served.
    #[must_use]
    pub fn metrics_address(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(MetricsListener::address)
    }

    /// What is left to do where the process ends before [`run`](Self::run) returns: takes mounted
    /// files out of the tree and removes the daemon's own files. From any thread.
    pub fn last_resort(&self) -> impl Fn() + Send + use<> + 'static {
        let mounted: Vec<_> =
            self.files.servers().iter().map(cowl_fuse::Server::abandoner).collect();
        let leftovers = self.options.leftovers.clone();
        move || {
            mounted.iter().for_each(|abandon| abandon());
            leftovers.remove();
        }
    }

    /// Serves until it is to end, and ends: what was accepted is answered, everything becomes
    /// durable, disks are closed. The first thing that failed is the error; disks after it are
    /// closed nevertheless.
    ///
    /// `ready` is called when clients are served.
    pub fn run(self, ready: impl FnOnce()) -> Result<(), ServeError> {
        let Self { options, runtime, table, files, disks, control, metrics, stop } = self;
        let needs = Needs {
            allowed: &options.allowed,
            leftovers: &options.leftovers.paths(),
            control: control.is_some(),
            files: !files.servers().is_empty(),
        };
        if let Err(error) = options.sandbox.close(&needs) {
            options.leftovers.remove();
            return Err(error.into());
        }
        let counts = Metrics::new(Arc::clone(&table), Instant::now());
        let metrics = metrics.map(|listener| listener.serve(counts.clone())).transpose()?;
        let servers = Servers {
            nbd: table.server.clone(),
            machines: table.machines(),
            files: files.servers().to_vec(),
        };
        let threads = start_threads(&servers, options.threads, &stop)?;
        let additions = Additions {
            open: options.open,
            allowed: options.sandbox.is_wanted().then_some(options.allowed),
        };
        let serve = async {
            let keeper = Keeper::new(table, stop);
            disks.into_iter().for_each(|disk| keeper.keep(disk));
            let control = control.map(|listener| {
                let serve = control::serve(Rc::clone(&keeper), listener, additions, counts);
                compio::runtime::spawn(serve)
            });
            tracing::info!(threads = threads.len(), "serving");
            ready();
            keeper.until_end(options.until).await;
            tracing::info!("stopping");
            keeper.stop.request();
            files.stop();
            servers.stop();
            if let Some(control) = control {
                // It finishes what it is about; a panic of it has been reported.
                let _ended = control.await;
            }
            drop(servers);
            let ended = join(threads);
            files.end();
            keeper.table.servers_have_ended();
            ended.and(keeper.close_all().await)
        };
        let outcome = runtime.block_on(serve);
        drop(metrics);
        options.leftovers.remove();
        outcome
    }
}

async fn open_all(
    exports: Vec<ExportOptions>,
) -> Result<Vec<(ExportOptions, DiskRef, Bitmaps)>, ServeError> {
    let mut opened: Vec<(ExportOptions, DiskRef, Bitmaps)> = Vec::new();
    let all = exports.clone();
    for options in exports {
        options.check_texts()?;
        if opened.iter().any(|(known, ..)| known.name == options.name) {
            return Err(ServeError::NameTaken { name: options.name });
        }
        let shares = |(known, disk, _): &&(ExportOptions, DiskRef, Bitmaps)| {
            known.shares_disk_with(disk, &options)
        };
        let disk = match opened.iter().find(shares) {
            Some((_, disk, _)) => disk.clone(),
            None => open_for_all(&options, &all, &opened).await?,
        };
        options.check_window(cowl::BlockDevice::size(&disk.disk).get())?;
        let bitmaps = options.read_bitmaps(&disk).await?;
        opened.push((options, disk, bitmaps));
    }
    Ok(opened)
}

/// Opens the image of `options`, for writing where any export of it is for that.
async fn open_for_all(
    options: &ExportOptions,
    all: &[ExportOptions],
    opened: &[(ExportOptions, DiskRef, Bitmaps)],
) -> Result<DiskRef, ServeError> {
    let writes = |other: &&ExportOptions| {
        options.is_same_image(other) && other.open.access != Access::ReadOnly
    };
    let disk = all.iter().find(writes).unwrap_or(options).open().await;
    let is_ours = |path: &Path| opened.iter().any(|(known, ..)| is_same_file(&known.path, path));
    disk.map_err(|error| explain_lock(error, is_ours))
}

fn bind_control(path: &Path) -> Result<UnixListener, ServeError> {
    let fail = |source| ServeError::Path {
        what: "Could not create the control socket",
        path: path.to_owned(),
        source,
    };
    // From the beginning: whoever could connect in between would be obeyed later.
    let others = Mode::RWXG | Mode::RWXO | Mode::XUSR;
    let before = umask(others);
    let listener = bind_unix(path);
    umask(before);
    listener.map_err(fail)
}

/// What a serving thread runs, side by side.
#[derive(Clone)]
struct Servers {
    nbd: Server<ServedDisk>,
    machines: Option<cowl_vhost_user::Server<ServedDisk>>,
    files: Vec<cowl_fuse::Server<ServedDisk>>,
}

impl Servers {
    async fn run(&self) -> Result<(), ServeError> {
        let nbd = async {
            let served = self.nbd.run().await;
            served.map_err(ServeError::host("Could not accept clients"))
        };
        let machines = async {
            let Some(server) = &self.machines else { return Ok(()) };
            let served = server.run().await;
            served.map_err(ServeError::host("Could not serve virtual machines"))
        };
        let files = try_join_all(self.files.iter().map(async |server| {
            let served = server.run().await;
            served.map_err(ServeError::host("Could not serve a mounted file"))
        }));
        try_join3(nbd, machines, files).await.map(drop)
    }

    fn stop(&self) {
        self.nbd.stop();
        if let Some(server) = &self.machines {
            server.stop();
        }
    }
}

type Thread = JoinHandle<Result<(), ServeError>>;

fn start_threads(servers: &Servers, count: usize, stop: &Stop) -> Result<Vec<Thread>, ServeError> {
    let start = |index| {
        let (servers, stop) = (servers.clone(), stop.clone());
        let serve = move || {
            let runtime = ring_runtime().map_err(ServeError::host("Could not set up a ring"));
            let outcome = runtime.and_then(|runtime| runtime.block_on(servers.run()));
            // One thread without the others would serve some clients and let others wait.
            stop.request();
            outcome
        };
        std::thread::Builder::new().name(format!("cowl-serve-{index}")).spawn(serve)
    };
    let threads: Result<Vec<_>, _> = (0..count.max(1)).map(start).collect();
    threads.map_err(|source| {
        servers.stop();
        ServeError::Host { what: "Could not start a serving thread", source }
    })
}

fn join(threads: Vec<Thread>) -> Result<(), ServeError> {
    let mut outcome = Ok(());
    for thread in threads {
        let panicked = |_| Err(ServeError::Thread { reason: "it panicked".to_owned() });
        outcome = outcome.and(thread.join().unwrap_or_else(panicked));
    }
    outcome
}
