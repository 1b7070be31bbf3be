//! Where the events of a daemon go.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowl_storage::FileIdentity;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::disk::system_words;
use crate::failure::{Failure, Kind};

/// What events look like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// An object a line.
    Json,
}

/// Which events are told, where and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    pub(crate) format: LogFormat,
    /// A level, or levels by module as `tracing` writes them.
    pub(crate) filter: String,
    /// A file to append to; standard error without one.
    pub(crate) file: Option<PathBuf>,
}

impl Log {
    /// Refuses a log file that is one of the images, by whatever name.
    pub(crate) fn check<'a>(
        &self,
        images: impl IntoIterator<Item = &'a Path>,
    ) -> Result<(), Failure> {
        match &self.file {
            Some(path) if is_one_of(path, images) => Err(is_an_image(path)),
            _ => Ok(()),
        }
    }

    /// Starts telling. What goes to a file is held back until [`Logging::release`].
    ///
    /// Nobody waits for the log: lines that a slow reader has no room for are lost, and so are all
    /// of them when the reader is gone.
    pub(crate) fn start(&self) -> Result<Logging, Failure> {
        let filter = EnvFilter::try_new(&self.filter)
            .map_err(|error| Failure::usage(format!("--log-level: {error}")))?;
        let lines = || NonBlockingBuilder::default().buffered_lines_limit(LINES_WAITING_MAX);
        let (file, (writer, guard)) = match &self.file {
            None => (None, lines().finish(std::io::stderr())),
            Some(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                let file = file.map_err(|error| {
                    let reason = system_words(&error);
                    let message = format!("Could not open '{}': {reason}", path.display());
                    Failure::new(Kind::Open, message).about(path)
                })?;
                let file = HeldFile::new(file);
                (Some((path.clone(), file.clone())), lines().finish(file))
            }
        };
        let builder = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(writer)
            .with_ansi(false)
            .log_internal_errors(false);
        let started = match self.format {
            LogFormat::Text => builder.try_init(),
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        };
        started.map_err(|error| Failure::new(Kind::Io, format!("Could not log: {error}")))?;
        Ok(Logging { file, _guard: guard })
    }
}

/// Lines that wait for a slow reader; more are lost.
const LINES_WAITING_MAX: usize = 4096;

/// A log under way; dropping it writes what waits, as far as its reader takes it.
pub(crate) struct Logging {
    file: Option<(PathBuf, HeldFile)>,
    _guard: WorkerGuard,
}

impl Logging {
    /// Writes to the file from now on, unless an open image, a backing file or a data file of one
    /// is the same file.
    pub(crate) fn release(&self) -> Result<(), Failure> {
        match &self.file {
            Some((path, file)) if file.is_open_elsewhere() => Err(is_an_image(path)),
            Some((_, file)) => {
                file.release();
                Ok(())
            }
            None => Ok(()),
        }
    }
}

fn is_an_image(path: &Path) -> Failure {
    let message = format!("Could not log to '{}': it is an image or a part of one", path.display());
    Failure::new(Kind::Open, message).about(path)
}

/// Whether `path` leads to one of `others`.
pub(crate) fn is_one_of<'a>(path: &Path, others: impl IntoIterator<Item = &'a Path>) -> bool {
    let Some(known) = FileIdentity::at(path) else { return false };
    others.into_iter().any(|other| FileIdentity::at(other) == Some(known))
}

/// A file to which nothing is written before it is released. Clones are the same file.
#[derive(Clone)]
struct HeldFile(Arc<Mutex<Held>>);

struct Held {
    file: File,
    /// What was written meanwhile; `None` once it is released.
    waiting: Option<Vec<u8>>,
}

impl HeldFile {
    fn new(file: File) -> Self {
        Self(Arc::new(Mutex::new(Held { file, waiting: Some(Vec::new()) })))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another descriptor of this process leads to it.
    fn is_open_elsewhere(&self) -> bool {
        let held = self.lock();
        let Ok(own) = held.file.metadata().as_ref().map(FileIdentity::of) else { return false };
        let Ok(descriptors) = std::fs::read_dir("/proc/self/fd") else { return false };
        let same =
            descriptors.flatten().filter(|entry| FileIdentity::at(&entry.path()) == Some(own));
        1 < same.count()
    }

    fn release(&self) {
        let mut held = self.lock();
        if let Some(waiting) = held.waiting.take() {
            // A log that cannot be written stops nobody.
            held.file.write_all(&waiting).ok();
        }
    }
}

impl Write for HeldFile {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut held = self.lock();
        match &mut held.waiting {
            Some(waiting) => {
                waiting.extend_from_slice(bytes);
                Ok(bytes.len())
            }
            None => held.file.write(bytes),
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
