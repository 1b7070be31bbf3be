//! Runtimes whose rings are set up for threads that serve.

use std::future::poll_fn;
use std::io;
use std::task::Poll;

use compio::driver::ProactorBuilder;
use compio::runtime::{Runtime, RuntimeBuilder};

use super::queue;
use crate::sys::register_here;

/// A runtime for the calling thread, which is the only one that may use it.
///
/// Completions wait until the thread enters the kernel next, which it does for each batch of
/// requests anyway; a ring as compio makes it interrupts the thread, and so the processor of
/// whoever sends to it, for each of them. Measured with NBD clients, 4 KiB: 6 to 14 percent less
/// processor time for each read. Kernels before 5.19 have no such rings and give the usual one.
///
/// Reads and writes of a thread that has many of them under way go through a second ring, which is
/// made when it is needed and ends with the runtime: the end waits for what was begun.
/// (`docs/decisions/0015-a-ring-for-transfers.md`)
///
/// The rings of the first four threads know 256 KiB of memory of their thread, which stay resident
/// and count, once for each ring, for the limit of locked memory (`RLIMIT_MEMLOCK`): pages for
/// [`IoBuffer::for_requests`](crate::IoBuffer::for_requests). Where the limit does not allow that,
/// or for more threads, there are none.
pub fn ring_runtime() -> io::Result<Runtime> {
    let mut ring = ProactorBuilder::new();
    ring.coop_taskrun(true).taskrun_flag(true);
    let runtime = match RuntimeBuilder::new().with_proactor(ring).build() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Runtime::new(),
        outcome => outcome,
    }?;
    register_here(&runtime);
    queue::install(&runtime);
    Ok(runtime)
}

/// Lets the other tasks of the thread run once.
pub async fn yield_now() {
    let mut has_yielded = false;
    poll_fn(|context| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}
