//! What the engine fails with.

use std::path::PathBuf;
use std::sync::Arc;

use cowl_block::BlockError;
use cowl_format::{ByteCount, Corruption, GuestOffset};
use cowl_storage::StorageError;

/// An operation of the engine that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The image breaks a rule of the format, or has a feature this version does not know.
    #[error("{corruption}")]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        corruption: Corruption,
    },
    /// The host failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The guest data is encrypted.
    #[error("'{}' is encrypted: this version cannot read encrypted images", path.display())]
    Encrypted {
        /// Which file.
        path: PathBuf,
    },
    /// The image keeps its data in another file, which the caller did not provide.
    #[error(
        "'{}' keeps its guest data in the external data file {name:?}, which was not opened",
        path.display()
    )]
    DataFileNeeded {
        /// Which image.
        path: PathBuf,
        /// The data file's name in the image.
        name: String,
    },
    /// No snapshot has this ID or name.
    #[error("'{}' has no snapshot with the ID or name {wanted:?}", path.display())]
    NoSuchSnapshot {
        /// Which image.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
    },
    /// The image was opened for reading.
    #[error("the image was opened read-only")]
    ReadOnly,
    /// The request is not one that the image can serve.
    #[error("{what}")]
    InvalidRequest {
        /// What is wrong with it.
        what: &'static str,
    },
    /// The image takes no changes any more.
    #[error("the image is read-only since an earlier failure: {reason}")]
    Latched {
        /// The error number of that failure.
        errno: i32,
        /// That failure.
        reason: Arc<str>,
    },
    /// The image has the corrupt bit, or the dirty bit and more damage than wrong refcounts.
    #[error(
        "'{}' {what}: it can be read, and has to be repaired before it is written to",
        path.display()
    )]
    NeedsRepair {
        /// Which file.
        path: PathBuf,
        /// What its header says.
        what: &'static str,
    },
    /// The file cannot count more clusters.
    #[error("'{}' is as large as its cluster size allows", path.display())]
    ImageFull {
        /// Which file.
        path: PathBuf,
    },
    /// The compression library failed.
    #[error("compression failed: {reason}")]
    Compressor {
        /// What it says.
        reason: String,
    },
    /// The request reaches past the end of the disk.
    #[error("request of {length} bytes at {at:#x} reaches past the end of the disk ({size} bytes)")]
    OutOfRange {
        /// First byte of the request.
        at: GuestOffset,
        /// Length of the request.
        length: ByteCount,
        /// Size of the disk.
        size: ByteCount,
    },
    /// The layer below failed.
    #[error(transparent)]
    Backing(Box<BlockError>),
    /// The embedder's worker dropped a job.
    #[error("a decompression job was dropped before it ran")]
    OffloadGone,
}

impl Error {
    /// The error number a server or a tool reports.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            // A rule broken by an open image is an I/O error to whoever reads it.
            Self::Corrupt { .. } | Self::OffloadGone => 5,
            Self::Storage(error) => error.errno(),
            Self::Encrypted { .. } => 95,
            Self::DataFileNeeded { .. } | Self::NoSuchSnapshot { .. } => 2,
            Self::ReadOnly => 1,
            Self::InvalidRequest { .. } => 22,
            Self::Latched { errno, .. } => *errno,
            Self::NeedsRepair { .. } => 30,
            Self::ImageFull { .. } => 27,
            Self::Compressor { .. } => 5,
            Self::OutOfRange { .. } => 28,
            Self::Backing(error) => error.errno(),
        }
    }
}

impl From<Error> for BlockError {
    fn from(error: Error) -> Self {
        match error {
            Error::Storage(error) => Self::Storage(error),
            Error::ReadOnly => Self::ReadOnly,
            Error::OutOfRange { at, length, size } => Self::OutOfRange { at, length, size },
            other => Self::Format { errno: other.errno(), source: Box::new(other) },
        }
    }
}
