//! The two cache operations whose promise nobody can check.
#![allow(unsafe_code, reason = "the caller promises what no type can")]

use cowl_storage::Storage;

use crate::{Error, MetadataCaches};

impl<S: Storage> MetadataCaches<S> {
    /// Forgets every L2 table that has no change to be written, so that it is read again.
    ///
    /// # Safety
    ///
    /// The caller guarantees that the file has what the image needs: otherwise what is read next
    /// contradicts what requests in flight saw, and the image is corrupted.
    pub async unsafe fn invalidate_l2(&self) -> Result<(), Error> {
        self.forget_l2();
        Ok(())
    }

    /// Forgets every refcount block that has no change to be written, so that it is read again.
    ///
    /// # Safety
    ///
    /// As [`Self::invalidate_l2`]: a refcount that is read back too low hands a cluster out twice.
    pub async unsafe fn invalidate_rb(&self) -> Result<(), Error> {
        self.forget_rb();
        Ok(())
    }
}

/// Both operations, for tests of caches that nobody else uses.
#[cfg(test)]
pub(super) mod alone {
    use cowl_storage::Storage;

    use crate::{Error, MetadataCaches};

    pub(in crate::cache) fn invalidate_l2<S: Storage>(
        caches: &MetadataCaches<S>,
    ) -> Result<(), Error> {
        // SAFETY: no request is in flight: the caches belong to the test.
        pollster::block_on(unsafe { caches.invalidate_l2() })
    }

    pub(in crate::cache) fn invalidate_rb<S: Storage>(
        caches: &MetadataCaches<S>,
    ) -> Result<(), Error> {
        // SAFETY: no request is in flight: the caches belong to the test.
        pollster::block_on(unsafe { caches.invalidate_rb() })
    }
}
