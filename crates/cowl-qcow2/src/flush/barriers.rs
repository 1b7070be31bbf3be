//! Durable barriers over all files of an image, numbered.
//!
//! Barrier n covers everything that was complete before it started. Whoever needs something durable
//! remembers the number of the next barrier to start, an [`After`], and is satisfied once that one,
//! or a later one, has returned.
//!
//! A barrier that failed is never trusted again: the image is read-only from then on.

use std::sync::Arc;

use cowl_storage::{Purpose, Storage};
use futures_util::future::join_all;

use crate::Error;
use crate::flush::Latch;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Which barrier has to have returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct After(u64);

impl After {
    /// Nothing has to be waited for.
    pub(crate) const NOTHING: Self = Self(0);
    /// The barrier of the commit that writes it: what is waited for is not written yet.
    pub(crate) const THIS_COMMIT: Self = Self(u64::MAX);
}

/// The barriers of one image.
pub(crate) struct Barriers<S> {
    files: Vec<Arc<S>>,
    started: AtomicU64,
    returned: AtomicU64,
    /// Whether anything was written since the last barrier started.
    is_touched: AtomicBool,
}

impl<S: Storage> Barriers<S> {
    pub(crate) fn new(files: Vec<Arc<S>>) -> Self {
        Self {
            files,
            started: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            is_touched: AtomicBool::new(false),
        }
    }

    /// What is complete now is durable after this.
    pub(crate) fn next(&self) -> After {
        After(self.started.load(Ordering::SeqCst) + 1)
    }

    /// Whether that barrier, or a later one, has returned.
    pub(crate) fn has_returned(&self, after: After) -> bool {
        after.0 <= self.returned.load(Ordering::SeqCst)
    }

    /// Tells that something was written. To be called once the write is complete.
    pub(crate) fn touch(&self) {
        // Nearly always set already: then the line stays shared between cores.
        if !self.is_touched.load(Ordering::SeqCst) {
            self.is_touched.store(true, Ordering::SeqCst);
        }
    }

    /// Whether there is anything to make durable: something was written since the last barrier
    /// started, or that one has not returned.
    pub(crate) fn is_touched(&self) -> bool {
        // In this order: a barrier that starts in between is seen.
        self.is_touched.load(Ordering::SeqCst)
            || self.returned.load(Ordering::SeqCst) < self.started.load(Ordering::SeqCst)
    }

    /// How many barriers were started.
    pub(crate) fn count(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Returns when everything complete before the call is durable in all files.
    ///
    /// Dropped on the way, its outcome counts for nothing.
    pub(crate) async fn run(&self, latch: &Latch) -> Result<(), Error> {
        latch.check()?;
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        self.is_touched.store(false, Ordering::SeqCst);
        let undone = TouchedAgain(&self.is_touched);
        let all = join_all(self.files.iter().map(|file| file.barrier(Purpose::Barrier))).await;
        for result in all {
            if let Err(error) = result {
                latch.close(&error);
                return Err(error.into());
            }
        }
        std::mem::forget(undone);
        self.returned.fetch_max(number, Ordering::SeqCst);
        Ok(())
    }
}

/// A barrier that did not return made nothing durable.
struct TouchedAgain<'a>(&'a AtomicBool);

impl Drop for TouchedAgain<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
