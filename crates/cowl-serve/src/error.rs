//! Why a daemon does not start, or did not end well.

use std::io;
use std::path::PathBuf;

use cowl::BlockError;
use cowl_nbd::BITMAP_COUNT_MAX;
use cowl_qcow2::BitmapError;

use crate::sandbox::SandboxError;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// An image could not be opened.
    #[error("Could not open '{}': {source}", path.display())]
    Open {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: Box<cowl::Error>,
    },
    /// Another export has the image open in another way, or clients of one that was removed.
    #[error(
        "this daemon has '{}' open already, for an export with another format, snapshot, cache \
         mode or overlay, or for clients of an export that was removed; exports of one image can \
         differ in what may be changed, in their window and in their rules",
        path.display()
    )]
    OpenAlready {
        /// The image.
        path: PathBuf,
    },
    /// The throw-away overlay could not be made.
    #[error("Could not create a temporary overlay of '{}': {reason}", path.display())]
    Overlay {
        /// The image below it.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Two exports have one name.
    #[error("there is an export named '{name}' already")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// There is no such export.
    #[error("there is no export named '{name}'")]
    NoSuchExport {
        /// The name.
        name: String,
    },
    /// An export that stays until the daemon ends.
    #[error(
        "the export '{name}' is a disk of virtual machines or a mounted file, and stays until the \
         daemon ends"
    )]
    Fixed {
        /// The name.
        name: String,
    },
    /// A disk would lose its end.
    #[error(
        "the disk has {now} bytes; to cut it down to {size}, and lose what lies behind, say \
         \"shrink\": true"
    )]
    WouldShrink {
        /// Size of the disk in bytes.
        now: u64,
        /// What was asked for.
        size: u64,
    },
    /// An export is to be a file whose name no file can have.
    #[error("no file can be called '{name}'; name the export otherwise, or mount over a file")]
    NoFileName {
        /// The export.
        name: String,
    },
    /// A window that the disk does not have.
    #[error("the disk has {size} bytes, and the export '{name}' is to begin or end behind that")]
    OutsideOfDisk {
        /// The export.
        name: String,
        /// Size of the disk in bytes.
        size: u64,
    },
    /// A dirty bitmap cannot be shown.
    #[error("{source}")]
    Bitmap {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: BitmapError,
    },
    /// More bitmaps than the protocol's contexts have room for.
    #[error("the export '{name}' has more than {BITMAP_COUNT_MAX} bitmaps")]
    TooManyBitmaps {
        /// The export.
        name: String,
    },
    /// A file could not be mounted.
    #[error("{source}")]
    Mount {
        /// Why not.
        source: cowl_fuse::MountError,
    },
    /// Two files are to be mounted in one place.
    #[error("'{}' is, or lies in, the mount point of another export", path.display())]
    MountPointTaken {
        /// The second mount point.
        path: PathBuf,
    },
    /// A name or a description that the protocol has no room for.
    #[error("{what} has {length} bytes, and clients take {TEXT_MAX} at most")]
    TextTooLong {
        /// Which of them.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A path of the daemon's own could not be used.
    #[error("{what} '{}': {source}", path.display())]
    Path {
        /// What it is for.
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The host gave no thread, ring or socket.
    #[error("{what}: {source}")]
    Host {
        /// What was wanted.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The sandbox could not be closed.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// A request of the daemon's own to a disk failed.
    #[error("'{}': {source}", path.display())]
    Request {
        /// The image.
        path: PathBuf,
        /// What failed.
        source: BlockError,
    },
    /// A disk could not be closed: what was not flushed before may be lost.
    #[error("Could not close '{}': {source}", path.display())]
    Close {
        /// The image.
        path: PathBuf,
        /// What failed.
        source: BlockError,
    },
    /// A serving thread ended by itself.
    #[error("a serving thread ended early: {reason}")]
    Thread {
        /// What it said.
        reason: String,
    },
}

/// The longest name or description of an export (the NBD document's limit for strings).
pub(crate) const TEXT_MAX: usize = 4096;

impl ServeError {
    pub(crate) fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Host { what, source }
    }
}
