//! What a guest-side request can fail with.

use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::StorageError;

/// A request on a block device that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BlockError {
    /// The request reaches past the end of the device.
    #[error(
        "request of {length} bytes at {at:#x} reaches past the end of the device ({size} bytes)"
    )]
    OutOfRange {
        /// First byte of the request.
        at: GuestOffset,
        /// Length of the request.
        length: ByteCount,
        /// Size of the device.
        size: ByteCount,
    },
    /// The device was opened read-only.
    #[error("the device is read-only")]
    ReadOnly,
    /// The device cannot do this at all.
    #[error("{what} is not supported")]
    Unsupported {
        /// The operation, in words.
        what: &'static str,
    },
    /// The host failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The image format failed; the source says how.
    #[error("{source}")]
    Format {
        /// The errno to hand to a client.
        errno: i32,
        /// The format's own error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl BlockError {
    /// The error number a server answers with.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self {
            Self::OutOfRange { .. } => 28,  // ENOSPC
            Self::ReadOnly => 1,            // EPERM
            Self::Unsupported { .. } => 95, // EOPNOTSUPP
            Self::Storage(error) => error.errno(),
            Self::Format { errno, .. } => *errno,
        }
    }
}
