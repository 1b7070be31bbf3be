//! One thread of a server: takes over queues and serves them.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cowl_block::BlockDevice;
use futures_channel::mpsc;
use futures_util::StreamExt;
use futures_util::future::{Either, select};

use crate::queue::{self, Assignment, Counts};
use crate::server::Shared;

/// A worker as other threads see it.
pub(crate) struct Handle<E> {
    arrivals: mpsc::UnboundedSender<Arrival<E>>,
    load: Arc<AtomicUsize>,
    counts: Arc<Counts>,
}

/// A queue on its way. Counts as one from the moment it is given away.
pub(crate) struct Arrival<E> {
    assignment: Assignment<E>,
    count: Count,
}

/// One queue in the count of its worker.
struct Count(Arc<AtomicUsize>);

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<E> Handle<E> {
    pub(crate) fn load(&self) -> usize {
        self.load.load(Ordering::Relaxed)
    }

    pub(crate) fn counts(&self) -> &Arc<Counts> {
        &self.counts
    }

    /// Gives a queue to this worker.
    pub(crate) fn assign(&self, assignment: Assignment<E>) {
        self.load.fetch_add(1, Ordering::Relaxed);
        let count = Count(Arc::clone(&self.load));
        // A worker that is gone drops the queue, which its front-end hears by the closed channel.
        let _gone = self.arrivals.unbounded_send(Arrival { assignment, count });
    }
}

/// Serves queues on this thread until the server has stopped.
pub(crate) async fn run<E: BlockDevice + 'static>(shared: Arc<Shared<E>>) -> io::Result<()> {
    let (arrivals, mut arriving) = mpsc::unbounded();
    let handle = Handle { arrivals, load: Arc::default(), counts: Arc::default() };
    shared.register(handle)?;
    let mut first_fault = Ok(());
    let (faults, mut faulty) = mpsc::unbounded();
    loop {
        let stopped = std::pin::pin!(shared.stopped());
        match select(stopped, arriving.next()).await {
            // The threads that hand out queues are gone, and they waited for their queues.
            Either::Left(_) | Either::Right((None, _)) => break,
            Either::Right((Some(Arrival { assignment, count }), _)) => {
                let faults = faults.clone();
                let serving = async move {
                    let outcome = queue::serve(assignment).await;
                    drop(count);
                    if let Err(error) = outcome {
                        let _ended = faults.unbounded_send(error);
                    }
                };
                compio::runtime::spawn(serving).detach();
            }
        }
    }
    while let Ok(error) = faulty.try_recv() {
        first_fault = first_fault.and(Err(error));
    }
    first_fault
}
