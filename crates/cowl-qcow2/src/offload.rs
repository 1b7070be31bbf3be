//! Where CPU-heavy work runs.
//!
//! The engine starts no thread. Decompression goes through [`Offload`], which the embedder
//! implements: a worker pool in tools and servers, the calling thread by default, the scheduler in
//! a simulation.

use std::sync::Arc;

use futures_channel::oneshot;

use crate::Error;

/// A piece of work that owns all it needs.
pub type OffloadJob = Box<dyn FnOnce() + Send>;

/// Runs jobs, now or later, on any thread.
pub trait Offload: Send + Sync {
    /// Runs `job` once. It may run before this returns.
    fn submit(&self, job: OffloadJob);
}

/// Runs every job at once on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inline;

impl Offload for Inline {
    fn submit(&self, job: OffloadJob) {
        job();
    }
}

/// Runs `work` through `offload`, or here when there is none, and waits for its result.
///
/// Dropping the future does not stop the work; its result is thrown away.
pub(crate) async fn run<T: Send + 'static>(
    offload: Option<&Arc<dyn Offload>>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Error> {
    let Some(offload) = offload else {
        return Ok(work());
    };
    let (sender, receiver) = oneshot::channel();
    offload.submit(Box::new(move || {
        // The receiver is gone when the request was dropped: nobody wants the result then.
        drop(sender.send(work()));
    }));
    receiver.await.map_err(|_| Error::OffloadGone)
}
