//! Event counters that the front-end gave: kicks, calls, errors.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use vhost::vhost_user::{Error, Result};

/// Checks that `file` can be an event counter, and makes it never block.
///
/// A regular file would always be ready, and a thread would spin on it.
pub(crate) fn prepare(file: &File) -> Result<()> {
    let failed = |errno: Errno| Error::ReqHandlerError(errno.into());
    let facts = rustix::fs::fstat(file).map_err(failed)?;
    // Event counters have no file type; everything with a name in a file system has one.
    if FileType::from_raw_mode(facts.st_mode) != FileType::Unknown {
        return Err(Error::InvalidParam);
    }
    let flags = rustix::fs::fcntl_getfl(file).map_err(failed)?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK).map_err(failed)
}

/// Takes the count of an event counter: it is not ready any more.
pub(crate) fn take(file: &File) -> io::Result<()> {
    match rustix::io::read(file, &mut [0_u8; 8]) {
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Where a queue says that something happened. The front-end exchanges it while the queue runs.
#[derive(Default)]
pub(crate) struct Notifier {
    file: Mutex<Option<File>>,
}

impl Notifier {
    pub(crate) fn replace(&self, file: Option<File>) {
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = file;
    }

    /// Rings; where nobody gave anything to ring, the other side polls.
    pub(crate) fn notify(&self) {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut file) = file.as_ref() {
            // A counter that is full has been rung often enough.
            let _full = file.write(&1_u64.to_ne_bytes());
        }
    }
}
