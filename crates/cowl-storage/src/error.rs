//! What went wrong below the engine: which operation, where, for what, and the system's errno.

use std::fmt;
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
///
/// One pointer, as it has its place in what every request returns.
#[derive(Debug)]
pub struct StorageError(Box<Facts>);

#[derive(Debug)]
struct Facts {
    path: PathBuf,
    operation: Operation,
    purpose: Option<Purpose>,
    range: Option<(HostOffset, ByteCount)>,
    source: io::Error,
}

impl StorageError {
    /// An error with all its facts.
    #[must_use]
    #[cold]
    pub fn new(
        path: &Path,
        operation: Operation,
        purpose: Option<Purpose>,
        range: Option<(HostOffset, ByteCount)>,
        source: io::Error,
    ) -> Self {
        Self(Box::new(Facts { path: path.to_owned(), operation, purpose, range, source }))
    }

    /// The file, or a name such as `memory` for storage without one.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// What was attempted.
    #[must_use]
    pub fn operation(&self) -> Operation {
        self.0.operation
    }

    /// What the I/O was for, where it had a purpose.
    #[must_use]
    pub fn purpose(&self) -> Option<Purpose> {
        self.0.purpose
    }

    /// The range in the file, where there was one.
    #[must_use]
    pub fn range(&self) -> Option<(HostOffset, ByteCount)> {
        self.0.range
    }

    /// The system's error.
    #[must_use]
    pub fn io_error(&self) -> &io::Error {
        &self.0.source
    }

    /// The system's error, without the facts.
    #[must_use]
    pub fn into_io_error(self) -> io::Error {
        self.0.source
    }

    /// The system's error number; EAGAIN (11) for an image lock that another process holds, EIO (5)
    /// where the error has none.
    #[must_use]
    pub fn errno(&self) -> i32 {
        const EIO: i32 = 5;
        const EAGAIN: i32 = 11;
        let without_number = if self.lock_conflict().is_some() { EAGAIN } else { EIO };
        self.0.source.raw_os_error().unwrap_or(without_number)
    }

    /// Who holds the image lock, where that is what went wrong.
    #[must_use]
    pub fn lock_conflict(&self) -> Option<&LockConflict> {
        self.0.source.get_ref()?.downcast_ref()
    }
}

impl fmt::Display for StorageError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { path, operation, purpose, range, source } = &*self.0;
        write!(f, "{}: {} failed", path.display(), operation.name())?;
        if let Some((at, length)) = range {
            write!(f, " at {at:#x} ({length} bytes)")?;
        }
        if let Some(purpose) = purpose {
            write!(f, " for {purpose}")?;
        }
        write!(f, ": {source}")
    }
}

impl std::error::Error for StorageError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.0.source)
    }
}
