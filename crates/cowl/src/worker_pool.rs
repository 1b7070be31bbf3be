//! Threads for CPU-heavy work: decompression while somebody else reads.

use std::thread::JoinHandle;

use cowl_qcow2::{Offload, OffloadJob};
use crossbeam_channel::{Receiver, Sender, unbounded};

/// Jobs that wait for each thread before whoever has another one does it itself: sooner done than
/// queued, woken for and switched to.
const WAITING_MAX: usize = 2;

/// A fixed number of threads that run jobs in the order they come; with too many waiting, the
/// submitting thread runs the next one. Dropping the pool waits for the jobs that were submitted.
pub struct WorkerPool {
    // None only while dropping: closing the channel ends the threads.
    jobs: Option<Sender<OffloadJob>>,
    threads: Vec<JoinHandle<()>>,
}

impl WorkerPool {
    /// A pool of `threads` threads, at least one.
    ///
    /// Fails when the host has no room for another thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let (sender, receiver) = unbounded();
        let spawn = |index| {
            let receiver = Receiver::clone(&receiver);
            std::thread::Builder::new()
                .name(format!("cowl-worker-{index}"))
                .spawn(move || run_jobs(&receiver))
        };
        let threads = (0..threads.max(1)).map(spawn).collect::<Result<_, _>>()?;
        Ok(Self { jobs: Some(sender), threads })
    }

    /// A pool with a thread for each core.
    pub fn for_this_machine() -> std::io::Result<Self> {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from))
    }
}

fn run_jobs(jobs: &Receiver<OffloadJob>) {
    for job in jobs {
        job();
    }
}

impl Offload for WorkerPool {
    fn submit(&self, job: OffloadJob) {
        let jobs = self.jobs.as_ref().expect("the pool is not being dropped");
        if WAITING_MAX * self.threads.len() <= jobs.len() {
            return job();
        }
        if let Err(unsent) = jobs.send(job) {
            // All threads are gone, which only a panicking job can do: the caller does the work.
            (unsent.0)();
        }
    }
}

impl Drop for WorkerPool {
    fn drop(&mut self) {
        drop(self.jobs.take());
        for thread in self.threads.drain(..) {
            // A job that panicked has already reported itself to whoever waited for it.
            drop(thread.join());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use cowl_qcow2::Offload;

    use super::WorkerPool;

    #[test]
    fn every_submitted_job_runs_before_the_pool_is_gone() {
        let done = Arc::new(AtomicUsize::new(0));
        let pool = WorkerPool::new(3).unwrap();
        for _ in 0..1000 {
            let done = Arc::clone(&done);
            pool.submit(Box::new(move || {
                done.fetch_add(1, Ordering::SeqCst);
            }));
        }
        drop(pool);
        assert_eq!(done.load(Ordering::SeqCst), 1000);
    }
}
