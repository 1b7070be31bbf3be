//! The latch that makes an image read-only for good: after a barrier failed, after an I/O whose
//! outcome is unknown and matters, after corruption was found on the way of a write.

use std::sync::Arc;

use crate::Error;
use crate::sync::OnceLock;

/// Open at first; once closed it stays closed, and tells why.
#[derive(Default)]
pub(crate) struct Latch {
    reason: OnceLock<(i32, Arc<str>)>,
}

impl Latch {
    /// Fails once the latch is closed.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match self.reason.get() {
            None => Ok(()),
            Some((errno, reason)) => {
                Err(Error::Latched { errno: *errno, reason: Arc::clone(reason) })
            }
        }
    }

    /// Closes the latch because a host file failed. The first reason stays.
    pub(crate) fn close(&self, error: &cowl_storage::StorageError) {
        self.close_with(error.errno(), &error.to_string());
    }

    /// Closes the latch. The first reason stays.
    pub(crate) fn close_with(&self, errno: i32, reason: &str) {
        self.reason.get_or_init(|| (errno, Arc::from(reason)));
    }
}
