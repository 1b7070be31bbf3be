//! The process that serves: from an open image to a closed one.

use std::io;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use compio::runtime::Runtime;
use cowl::{Disk, Error, Format, OpenOptions, Rings};
use cowl_fuse::{Access, Caching, Export, MountError, Options, Server, Sharing, Sizing};
use cowl_storage::{UringStorage, ring_runtime};

use super::control::{Askers, canonical};
use super::file_system::{self, FileSystem};
use super::host::{DISK, Folder};
use super::{Plan, View, about};
use crate::background::{Leaving, is_background};
use crate::disk;
use crate::failure::{Failure, Kind};
use crate::interrupt::{self, Ending};
use crate::session::Session;

/// Threads that serve one image: more than that only wait for one another.
const THREADS_MAX: usize = 4;

/// How often somebody looks whether the file system is still in use.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Looks in a row that find the file unused before it counts as unmounted: between the loop device
/// and its file system nobody has it open for a moment.
const LOOKS_UNUSED: u32 = 2;

/// How often tables that wait are written back.
const TICK: Duration = Duration::from_secs(1);

type RingDisk = Disk<UringStorage>;

/// Why an image is not served.
pub(crate) enum OpenError {
    /// It could not be opened.
    Image(Error),
    /// The host has no rings.
    Ring(io::Error),
}

/// Words for a host without rings.
pub(crate) fn no_ring(error: &io::Error) -> Failure {
    let reason = disk::system_words(error);
    Failure::new(Kind::Open, format!("This host gives no io_uring: {reason}"))
        .hint("containers often forbid it; a sysctl is kernel.io_uring_disabled")
}

/// An image that is open for serving.
pub(crate) struct Served {
    runtime: Runtime,
    disk: RingDisk,
}

impl Served {
    /// Its format.
    pub(crate) fn format(&self) -> Format {
        self.disk.format()
    }
}

/// Opens an image on a ring.
pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Served, OpenError> {
    let runtime = ring_runtime().map_err(OpenError::Ring)?;
    let open = Disk::open_with(&Rings, path, options);
    let disk = runtime.block_on(open).map_err(OpenError::Image)?;
    Ok(Served { runtime, disk })
}

/// The wish to end, from a signal, a socket or the kernel.
#[derive(Clone, Default)]
struct End {
    wish: Arc<(Mutex<bool>, Condvar)>,
}

impl End {
    fn ask(&self) {
        *self.wish.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wish.1.notify_all();
    }

    /// Waits for it; `false` when it has not come in time. It is fulfilled by being heard.
    fn is_asked_within(&self, time: Duration) -> bool {
        let asked = self.wish.0.lock().unwrap_or_else(PoisonError::into_inner);
        let asked = self.wish.1.wait_timeout_while(asked, time, |asked| !*asked);
        let (mut asked, _) = asked.unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *asked)
    }
}

/// Mounts, serves until the end, and closes the image.
pub(crate) fn serve(
    served: Served,
    image: &Path,
    plan: &Plan,
    session: &Session,
) -> Result<(), Failure> {
    let at = canonical(&plan.at).map_err(|error| about(&plan.at, "Could not find", &error))?;
    let folder = Folder::new().map_err(|error| {
        let reason = disk::system_words(&error);
        Failure::new(Kind::Io, format!("Could not make a folder for the mount: {reason}"))
    })?;
    let leaving = is_background().then(Leaving::begin).transpose()?;
    let ready = || {
        if let Some(leaving) = leaving {
            leaving.tell_ready(session);
            // The caller's folder may go; it only stays busy where this is refused.
            std::env::set_current_dir("/").ok();
        }
    };
    let end = End::default();
    let on_signal = end.clone();
    interrupt::end_by(Ending { ask: Box::new(move || on_signal.ask()), at_once: None });
    let on_socket = end.clone();
    let askers = Askers::listen(&folder, &at, move || on_socket.ask())
        .map_err(|error| about(&at, "Could not listen for", &error))?;
    let Served { runtime, disk } = served;
    let disk = Arc::new(disk);
    let plan = Plan { at, ..plan.clone() };
    let outcome = serve_disk(&disk, &folder, image, &plan, (&end, &askers), ready);
    let closed = close(&runtime, disk);
    let outcome = outcome.and(closed);
    // The folder goes first: who is told looks for it no more, and may mount here again.
    drop(folder);
    askers.tell(&outcome);
    outcome
}

fn close(runtime: &Runtime, disk: Arc<RingDisk>) -> Result<(), Failure> {
    let failed =
        |reason: String| Failure::new(Kind::Io, format!("Could not close the image: {reason}"));
    match Arc::try_unwrap(disk) {
        Ok(disk) => runtime.block_on(disk.shut()).map_err(|error| failed(error.to_string())),
        Err(_) => Err(failed("it is still in use".to_owned())),
    }
}

fn serve_disk(
    disk: &Arc<RingDisk>,
    folder: &Folder,
    image: &Path,
    plan: &Plan,
    (end, askers): (&End, &Askers),
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    let at = match plan.view {
        View::Disk => plan.at.clone(),
        View::Files { .. } => {
            let at = folder.join(DISK);
            let made = std::fs::write(&at, []);
            made.map_err(|error| about(&at, "Could not create", &error))?;
            at
        }
    };
    let name = image.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let access = if plan.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let export = Export { device: Arc::clone(disk), name, access, sizing: Sizing::Fixed };
    let (caching, sharing) = (Caching::PageCache, Sharing::Owner);
    let options = Options { caching, sharing, ..Options::standard() };
    let server = Server::new(export, &at, options).map_err(|error| not_mounted(&error))?;
    let threads = Threads::start(&server, disk)?;
    let outcome = serve_until_end(&server, &at, plan, (end, askers), ready);
    server.stop();
    drop(server);
    outcome.and(threads.join())
}

fn not_mounted(error: &MountError) -> Failure {
    let failure = Failure::new(Kind::Open, format!("Could not mount: {error}"));
    match error {
        MountError::Device { .. } => {
            failure.hint("load the module fuse; containers need /dev/fuse given to them")
        }
        MountError::Helper { .. } => failure.hint("mounting without root takes fusermount3"),
        _ => failure,
    }
}

/// From a served file to whatever ends it.
fn serve_until_end(
    server: &Server<RingDisk>,
    file: &Path,
    plan: &Plan,
    (end, askers): (&End, &Askers),
    ready: impl FnOnce(),
) -> Result<(), Failure> {
    if let View::Files { partition, file_system, options } = &plan.view {
        let file_system = FileSystem {
            file,
            at: &plan.at,
            read_only: plan.read_only,
            partition: *partition,
            kind: file_system.as_deref(),
            options,
        };
        file_system.mount()?;
    }
    ready();
    match plan.view {
        View::Disk => stay_as_disk(server, plan, (end, askers)),
        View::Files { .. } => stay_as_files(server, plan, (end, askers)),
    }
    Ok(())
}

/// Stays until the file is unmounted, or somebody wants that and nobody uses it. A signal asks
/// nobody.
fn stay_as_disk(server: &Server<RingDisk>, plan: &Plan, (end, askers): (&End, &Askers)) {
    while server.ending().is_none() {
        if !end.is_asked_within(LOOK_EVERY) {
            continue;
        }
        if !askers.are_waiting() || server.stats().open_files == 0 {
            return;
        }
        let message = format!("'{}' is in use", plan.at.display());
        askers.tell(&Err(Failure::new(Kind::Io, message)));
    }
}

/// Stays until the file system is unmounted, by whomever. One that is in use stays.
fn stay_as_files(server: &Server<RingDisk>, plan: &Plan, (end, askers): (&End, &Askers)) {
    let mut looks_unused = 0;
    while server.ending().is_none() && looks_unused < LOOKS_UNUSED {
        if end.is_asked_within(LOOK_EVERY)
            && let Err(failure) = file_system::unmount(&plan.at)
        {
            askers.tell(&Err(failure));
        }
        let is_unused = server.stats().open_files == 0;
        looks_unused = if is_unused { looks_unused + 1 } else { 0 };
    }
}

/// The threads that serve. The first of them keeps the image in order meanwhile.
struct Threads {
    serving: Vec<JoinHandle<io::Result<()>>>,
}

impl Threads {
    fn start(server: &Server<RingDisk>, disk: &Arc<RingDisk>) -> Result<Self, Failure> {
        let count = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MAX);
        let start = |number| {
            let (server, disk) = (server.clone(), (number == 0).then(|| Arc::clone(disk)));
            let serve = move || {
                ring_runtime()?.block_on(async {
                    // Dropped, and so ended, with the last request.
                    let _upkeep = disk.map(|disk| compio::runtime::spawn(keep_up(disk)));
                    server.run().await
                })
            };
            std::thread::Builder::new().name("cowl-mount".to_owned()).spawn(serve)
        };
        let serving = (0..count).map(start).collect::<Result<_, _>>().map_err(|error| {
            let reason = disk::system_words(&error);
            Failure::new(Kind::Io, format!("Could not start threads: {reason}"))
        })?;
        Ok(Self { serving })
    }

    /// Waits for them; they end with their server.
    fn join(self) -> Result<(), Failure> {
        let failed = |reason: String| Failure::new(Kind::Io, format!("Serving failed: {reason}"));
        let mut outcome = Ok(());
        for thread in self.serving {
            outcome = outcome.and(match thread.join() {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(failed(disk::system_words(&error))),
                Err(_) => Err(failed("a thread panicked".to_owned())),
            });
        }
        outcome
    }
}

/// Writes tables back beside the requests: when many wait, and when some have waited for long.
/// Ends when that fails, which every later flush and closing the image will tell, too.
async fn keep_up(disk: Arc<RingDisk>) {
    let Some(image) = disk.qcow2() else { return };
    loop {
        let outcome = match compio::runtime::time::timeout(TICK, image.background()).await {
            Ok(failed) => failed,
            Err(_elapsed) => image.tick().await,
        };
        if outcome.is_err() {
            return;
        }
    }
}
