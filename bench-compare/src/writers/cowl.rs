//! cowl: the blocking calls for depth 1, a ring for more.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use cowl::{Access, BlockDevice, BlockError, Disk, Error, GuestOffset, OpenOptions};
use cowl_storage::{IoBuffer, Storage, UringStorage, yield_now};

use crate::readers::cowl::Rings;
use crate::writers::{Flush, Queue, Writing};

/// Writes of a task before it lets the others of its thread go on.
const WRITES_BEFORE_YIELD: usize = 8;

/// What a sample of cowl tells.
pub(crate) struct Written {
    /// Writes in a second.
    pub(crate) rate: f64,
    /// Barriers that it took, the final flush included.
    pub(crate) barriers: u64,
}

pub(crate) fn by_its_best(writing: &Writing) -> Result<Written, String> {
    let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::local() };
    if writing.depth == 1 {
        by_blocking_calls(writing, &options).map_err(|error| error.to_string())
    } else {
        by_ring(writing, &options).map_err(|error| error.to_string())
    }
}

fn written<S: Storage>(disk: &Disk<S>, rate: f64) -> Written {
    let barriers = disk.qcow2().map_or(0, |image| image.stats().barriers);
    Written { rate, barriers }
}

fn by_blocking_calls(writing: &Writing, options: &OpenOptions) -> Result<Written, Error> {
    let disk = Disk::open(&writing.image, options)?;
    let payload = writing.payload();
    let start = Instant::now();
    for at in writing.offsets() {
        disk.write_at(&payload, at)?;
        if writing.flush == Flush::AfterEach {
            disk.flush()?;
        }
    }
    disk.flush()?;
    let written = written(&disk, writing.rate(start));
    disk.close()?;
    Ok(written)
}

/// Tasks on one ring, with buffers of their own, as a server has them.
fn by_ring(
    writing: &Writing,
    options: &OpenOptions,
) -> Result<Written, Box<dyn std::error::Error>> {
    assert_eq!(writing.flush, Flush::AtEnd);
    let runtime = cowl_storage::ring_runtime()?;
    runtime.block_on(async {
        let disk = Arc::new(Disk::open_with(&Rings, &writing.image, options).await?);
        let queue = Rc::new(Queue::new(writing));
        let start = Instant::now();
        let tasks = (0..writing.depth).map(|_| {
            let (disk, queue) = (Arc::clone(&disk), Rc::clone(&queue));
            let payload = writing.payload();
            compio::runtime::spawn(async move { task(&disk, &queue, &payload).await })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.map_err(|_| "a task panicked")??;
        }
        BlockDevice::flush(&*disk).await?;
        let written = written(&disk, writing.rate(start));
        let disk = Arc::into_inner(disk).ok_or("a task still holds the disk")?;
        disk.shut().await?;
        Ok(written)
    })
}

async fn task(disk: &Disk<UringStorage>, queue: &Queue, payload: &[u8]) -> Result<(), BlockError> {
    let mut buffer = IoBuffer::zeroed(payload.len());
    buffer.copy_from_slice(payload);
    let mut done = 0;
    while let Some(at) = queue.next() {
        let (result, back) = disk.write(GuestOffset::new(at), buffer).await;
        result?;
        buffer = back;
        done += 1;
        if done % WRITES_BEFORE_YIELD == 0 {
            yield_now().await;
        }
    }
    Ok(())
}
