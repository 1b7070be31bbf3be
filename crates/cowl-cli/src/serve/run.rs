//! Opens, binds, serves.

use std::fs::{File, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cowl_nbd::ServerOptions;
use cowl_serve::{
    Daemon, LatePool, Leftovers, Listener, Options, ServeError, Stop, VhostUserPlace,
};

use super::Request;
use super::address::Address;
use super::image::{ImageRequest, base};
use super::logging::is_one_of;
use super::notify::Manager;
use crate::background::{Leaving, is_background};
use crate::disk;
use crate::failure::{Failure, Kind};
use crate::image_name::could_not_open;
use crate::interrupt::{self, Ending};
use crate::option::Common;
use crate::session::Session;

/// Why serving did not begin, or did not end well.
pub(crate) enum RunError {
    /// In words.
    Failure(Failure),
    /// As the daemon says it.
    Serve(ServeError),
}

impl From<Failure> for RunError {
    fn from(failure: Failure) -> Self {
        Self::Failure(failure)
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        match error {
            RunError::Failure(failure) => failure,
            RunError::Serve(error) => words(&error),
        }
    }
}

/// What a file with nothing but the number of a process is no longer than.
const PID_FILE_MAX: u64 = 32;

/// No client takes longer.
const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// Serves until it is told to end.
pub(crate) fn run(request: Request, common: &Common, session: &Session) -> Result<(), RunError> {
    let images = || request.images.iter().map(|image| image.image.path.as_path());
    request.log.check(images())?;
    if let Some(path) = request.pid_file.as_ref().filter(|path| is_one_of(path, images())) {
        return Err(not_created(path, "it is an image").into());
    }
    let logging = request.log.start()?;
    let leaving = is_background().then(Leaving::begin).transpose()?;
    let manager = Manager::of_process();
    let pool = Arc::new(LatePool::default());
    let tls = request.tls.map(|(folder, policy)| folder.load(policy)).transpose()?;
    let bound = Bound(Leftovers::default());
    let stop = Stop::default();
    // Opening and binding take their time: who has enough of it leaves nothing behind either.
    let leftovers = bound.0.clone();
    end_by(&stop, move || leftovers.remove());
    let (listeners, addresses) = bind(&request.addresses, &bound.0)?;
    let announcement = request.announces.then(|| announce(&request.images, &addresses));
    let exports = request.images.into_iter().map(|image| image.export(common, &pool));
    let exports = exports.collect::<Result<Vec<_>, _>>()?;
    // Its lock says for as long as this lives that the number is that of a running process.
    let _pid_file = match &request.pid_file {
        Some(path) => {
            let file = write_pid(path)?;
            bound.0.add(path);
            Some(file)
        }
        None => None,
    };
    let options = Options {
        listeners,
        nbd: ServerOptions {
            connections_max: request.connections_max,
            handshake_timeout: request.handshake_timeout.unwrap_or(FOREVER),
            tls,
            ..ServerOptions::standard()
        },
        threads: request.threads.unwrap_or_else(cores),
        until: request.until,
        control: request.control,
        metrics: request.metrics,
        sandbox: request.sandbox,
        allowed: places(&request.allowed)?,
        open: base(common.untrusted, &pool),
        leftovers: bound.0.clone(),
    };
    let daemon = Daemon::open(options, exports, stop.clone()).map_err(RunError::Serve)?;
    logging.release()?;
    end_by(&stop, daemon.last_resort());
    let metrics = daemon.metrics_address();
    let served = daemon.run(|| {
        if let Some(text) = &announcement {
            session.output.text_now(text);
        }
        if let Some(address) = metrics.filter(|_| announcement.is_some()) {
            session.output.text_now(&format!("Metrics at http://{address}/metrics\n"));
        }
        if let Some(leaving) = leaving {
            leaving.tell_ready(session);
        }
        manager.tell("READY=1");
    });
    drop(bound);
    served.map_err(RunError::Serve)
}

/// The first signal asks for the end, the second does what is left to do and ends the process.
fn end_by(stop: &Stop, at_once: impl Fn() + Send + 'static) {
    let stop = stop.clone();
    interrupt::end_by(Ending {
        ask: Box::new(move || stop.request()),
        at_once: Some(Box::new(at_once)),
    });
}

/// Listens, and says at which addresses that is.
fn bind(addresses: &[Address], made: &Leftovers) -> Result<(Vec<Listener>, Vec<Address>), Failure> {
    let (mut listeners, mut found_at) = (Vec::new(), Vec::new());
    for address in addresses {
        let bound = address.bind()?;
        if let Some(path) = address.file() {
            made.add(path);
        }
        found_at.push(address.found_at(&bound));
        listeners.extend(bound);
    }
    Ok((listeners, found_at))
}

/// Files that go when the daemon does not get as far as removing them itself.
struct Bound(Leftovers);

impl Drop for Bound {
    fn drop(&mut self) {
        self.0.remove();
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn announce(images: &[ImageRequest], addresses: &[Address]) -> String {
    let mut text = String::new();
    for image in images {
        for address in addresses {
            let (image, export) = (&image.image.given, &image.export);
            text.push_str(&format!("Serving '{image}' as '{export}' at {address}\n"));
        }
        if let Some(file) = &image.fuse {
            let (image, at) = (&image.image.given, file.mount_point.display());
            text.push_str(&format!("Serving '{image}' as a file at {at}\n"));
        }
        if let Some(machines) = &image.vhost_user {
            let place = match &machines.place {
                VhostUserPlace::Path(path) => path.display().to_string(),
                VhostUserPlace::Descriptor(number) => format!("descriptor {number}"),
            };
            let image = &image.image.given;
            text.push_str(&format!("Serving '{image}' to virtual machines at {place}\n"));
        }
    }
    text
}

/// Writes our number to `path`: to a new file, or over one that a daemon left behind. Any other
/// file is somebody's data, named by mistake, and left alone.
///
/// The file stays locked until it is dropped; one that is locked belongs to a running process.
fn write_pid(path: &Path) -> Result<File, Failure> {
    let write = || -> std::io::Result<Result<File, &str>> {
        let mut options = File::options();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Err("a running process has it")),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let mut known = Vec::new();
        (&file).take(PID_FILE_MAX + 1).read_to_end(&mut known)?;
        let is_ours = known.len() as u64 <= PID_FILE_MAX
            && known.iter().all(|byte| byte.is_ascii_digit() || byte.is_ascii_whitespace());
        if !is_ours {
            return Ok(Err("it exists and is no pid file"));
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Ok(file))
    };
    match write() {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(reason)) => Err(not_created(path, reason)),
        Err(error) => Err(not_created(path, &disk::system_words(&error))),
    }
}

fn not_created(path: &Path, reason: &str) -> Failure {
    Failure::new(Kind::Open, format!("Could not create '{}': {reason}", path.display())).about(path)
}

/// Where the paths lead.
fn places(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let place = |path: &PathBuf| {
        std::fs::canonicalize(path)
            .map_err(|error| could_not_open(&path.to_string_lossy(), &disk::system_words(&error)))
    };
    paths.iter().map(place).collect()
}

fn words(error: &ServeError) -> Failure {
    match error {
        ServeError::Open { path, source } => {
            could_not_open(&path.to_string_lossy(), &disk::words(source))
        }
        ServeError::OutsideOfDisk { .. }
        | ServeError::NameTaken { .. }
        | ServeError::NoSuchExport { .. } => Failure::usage(error.to_string()),
        _ => Failure::new(Kind::Io, error.to_string()),
    }
}
