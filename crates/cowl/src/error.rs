//! What opening and reading a disk fails with.

use std::path::{Path, PathBuf};

use cowl_block::BlockError;
use cowl_storage::StorageError;

/// Why a file that an image names was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The policy opens nothing that an image names.
    #[error("it needs the {role} {name:?}, and images are not allowed to name files here")]
    Following {
        /// What the file is to the image.
        role: &'static str,
        /// Its name.
        name: String,
    },
    /// The name is not that of a plain local file.
    #[error("its {role} {name:?} is no plain local file name")]
    NotLocal {
        /// What the file is to the image.
        role: &'static str,
        /// Its name.
        name: String,
    },
    /// The name leads to something other than a regular file.
    #[error("its {role} {name:?} is not a regular file")]
    NotRegular {
        /// What the file is to the image.
        role: &'static str,
        /// Its name.
        name: String,
    },
    /// The image does not say which format its backing file has.
    #[error(
        "it does not say which format its backing file {name:?} has; guessing would let a guest \
         decide, so give the format yourself"
    )]
    BackingFormatMissing {
        /// The backing file.
        name: String,
    },
    /// The backing file has a format that cowl does not read.
    #[error("Unknown driver '{format}'")]
    BackingFormatUnknown {
        /// The format named by the image.
        format: String,
    },
    /// A file was named without a format and is of one that cowl does not read.
    #[error(
        "it is a {format} image, which this version does not read; give the format raw to read it \
         byte by byte"
    )]
    ForeignFormat {
        /// The format.
        format: String,
    },
    /// The chain comes back to a file that it has already.
    #[error("its backing chain contains this file twice")]
    Loop,
    /// The chain is too long.
    #[error("its backing chain has more than {max} files")]
    TooDeep {
        /// The limit.
        max: usize,
    },
    /// A raw image has no snapshots, and no checker.
    #[error("the raw format has no {what}")]
    NotInRaw {
        /// What was asked for.
        what: &'static str,
    },
}

/// A disk that could not be opened or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The host failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A qcow2 image is broken, or more than this version can handle.
    #[error("'{}': {source}", path.display())]
    Image {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        source: cowl_qcow2::Error,
    },
    /// The policy or the format forbids it.
    #[error("'{}': {refusal}", path.display())]
    Refused {
        /// The file that asks for it.
        path: PathBuf,
        /// Why not.
        refusal: Refusal,
    },
    /// A file below the image could not be opened.
    #[error("could not open the {role} '{}' of '{}': {source}", path.display(), image.display())]
    Below {
        /// What the file is to the image.
        role: &'static str,
        /// The file.
        path: PathBuf,
        /// The image that names it.
        image: PathBuf,
        /// Why not.
        source: Box<Error>,
    },
    /// A request failed.
    #[error(transparent)]
    Request(#[from] BlockError),
}

impl Error {
    /// The error number of the cause.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::Storage(error) => error.errno(),
            Self::Image { source: cowl_qcow2::Error::Corrupt { corruption, .. }, .. } => {
                corruption.errno()
            }
            Self::Image { source, .. } => source.errno(),
            Self::Refused { .. } => 1, // EPERM
            Self::Below { source, .. } => source.errno(),
            Self::Request(error) => error.errno(),
        }
    }

    pub(crate) fn image(path: &Path) -> impl FnOnce(cowl_qcow2::Error) -> Self {
        move |source| match source {
            cowl_qcow2::Error::Storage(error) => Self::Storage(error),
            source => Self::Image { path: path.to_owned(), source },
        }
    }
}
