//! Where the events of a daemon go.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

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
        let identity = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.dev(), metadata.ino()))
        };
        let Some((path, log)) = self.file.as_ref().and_then(|path| Some((path, identity(path)?)))
        else {
            return Ok(());
        };
        if images.into_iter().any(|image| identity(image) == Some(log)) {
            let message = format!("Could not log to '{}': it is the image", path.display());
            return Err(Failure::new(Kind::Open, message).about(path));
        }
        Ok(())
    }

    /// Starts telling.
    pub(crate) fn start(&self) -> Result<(), Failure> {
        let filter = EnvFilter::try_new(&self.filter)
            .map_err(|error| Failure::usage(format!("--log-level: {error}")))?;
        let writer = match &self.file {
            None => BoxMakeWriter::new(std::io::stderr),
            Some(path) => {
                let file = OpenOptions::new().append(true).create(true).open(path);
                let file = file.map_err(|error| {
                    let reason = system_words(&error);
                    let message = format!("Could not open '{}': {reason}", path.display());
                    Failure::new(Kind::Open, message).about(path)
                })?;
                BoxMakeWriter::new(Mutex::new(file))
            }
        };
        let builder =
            tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
        let started = match self.format {
            LogFormat::Text => builder.try_init(),
            LogFormat::Json => builder.json().flatten_event(true).try_init(),
        };
        started.map_err(|error| Failure::new(Kind::Io, format!("Could not log: {error}")))
    }
}
