//! What went wrong below the engine: which operation, where, for what, and the system's errno.

use std::io;
use std::path::{Path, PathBuf};

use cowl_format::{ByteCount, HostOffset};

use crate::{LockConflict, Purpose};

/// An operation of [`Storage`](crate::Storage), as named in errors and traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Opening the file.
    Open,
    /// Taking an image lock.
    Lock,
    /// Asking for length, extents or other facts.
    Query,
    /// Reading.
    Read,
    /// Writing.
    Write,
    /// Making a range read as zeros.
    Zero,
    /// Giving a range back to the host.
    Discard,
    /// Changing the length of the file.
    SetLength,
    /// Reserving space.
    Allocate,
    /// Making all earlier writes durable.
    Barrier,
}

impl Operation {
    /// The verb in messages.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Lock => "lock",
            Self::Query => "query",
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Discard => "discard",
            Self::SetLength => "set length",
            Self::Allocate => "allocate",
            Self::Barrier => "flush",
        }
    }
}

/// An I/O that failed. Keeps the errno; says what, where and for which purpose.
#[derive(Debug, thiserror::Error)]
#[error("{}: {} failed{}: {source}", path.display(), operation.name(), describe(.purpose, .range))]
pub struct StorageError {
    /// The file, or a name such as `memory` for storage without one.
    pub path: PathBuf,
    /// What was attempted.
    pub operation: Operation,
    /// What the I/O was for, where it had a purpose.
    pub purpose: Option<Purpose>,
    /// The range in the file, where there was one.
    pub range: Option<(HostOffset, ByteCount)>,
    /// The system's error.
    #[source]
    pub source: io::Error,
}

impl StorageError {
    /// An error with all its facts.
    #[must_use]
    pub fn new(
        path: &Path,
        operation: Operation,
        purpose: Option<Purpose>,
        range: Option<(HostOffset, ByteCount)>,
        source: io::Error,
    ) -> Self {
        Self { path: path.to_owned(), operation, purpose, range, source }
    }

    /// The system's error number; EAGAIN (11) for an image lock that another process holds, EIO (5)
    /// where the error has none.
    #[must_use]
    pub fn errno(&self) -> i32 {
        const EIO: i32 = 5;
        const EAGAIN: i32 = 11;
        let without_number = if self.lock_conflict().is_some() { EAGAIN } else { EIO };
        self.source.raw_os_error().unwrap_or(without_number)
    }

    /// Who holds the image lock, where that is what went wrong.
    #[must_use]
    pub fn lock_conflict(&self) -> Option<&LockConflict> {
        self.source.get_ref()?.downcast_ref()
    }
}

fn describe(purpose: &Option<Purpose>, range: &Option<(HostOffset, ByteCount)>) -> String {
    let mut text = String::new();
    if let Some((at, length)) = range {
        text.push_str(&format!(" at {at:#x} ({length} bytes)"));
    }
    if let Some(purpose) = purpose {
        text.push_str(&format!(" for {purpose}"));
    }
    text
}
