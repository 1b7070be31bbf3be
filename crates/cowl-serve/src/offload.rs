//! Threads for decompression that begin when the first job comes.
//!
//! Disks are opened before the sandbox is closed, and threads keep the rights they began with: so
//! these begin later.

use std::sync::OnceLock;

use cowl::{Offload, WorkerPool};
use cowl_qcow2::OffloadJob;

/// A [`WorkerPool`] that starts late.
#[derive(Default)]
pub struct LatePool {
    pool: OnceLock<Option<WorkerPool>>,
}

impl Offload for LatePool {
    fn submit(&self, job: OffloadJob) {
        match self.pool.get_or_init(|| WorkerPool::for_this_machine().ok()) {
            Some(pool) => pool.submit(job),
            // Slower, and as correct: the calling thread does the work.
            None => job(),
        }
    }
}
