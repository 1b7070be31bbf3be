//! qcow2-rs: plain system calls for depth 1, tokio-uring for more. One thread only.

use std::rc::Rc;
use std::time::Instant;

use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::error::Qcow2Result;
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::ops::Qcow2IoOps;
use qcow2_rs::utils::{qcow2_setup_dev_sync, qcow2_setup_dev_uring};

use crate::row::Sample;
use crate::writers::{Flush, Queue, Writing};

pub(crate) fn by_its_best(writing: &Writing) -> Sample {
    let params = Qcow2DevParams::new(9, None, None, false, false);
    let rate = if writing.depth == 1 {
        pollster::block_on(one_by_one(writing, &params))
    } else {
        tokio_uring::start(at_once(writing, &params))
    };
    Ok(vec![rate.map_err(|error| error.to_string())?])
}

fn payload(writing: &Writing) -> Qcow2IoBuf<u8> {
    let mut buffer = Qcow2IoBuf::<u8>::new(writing.block);
    buffer.copy_from_slice(&writing.payload());
    buffer
}

async fn one_by_one(writing: &Writing, params: &Qcow2DevParams) -> Qcow2Result<f64> {
    let device = qcow2_setup_dev_sync(&writing.image, params)?;
    device.qcow2_prep_io().await?;
    let block = payload(writing);
    let start = Instant::now();
    for at in writing.offsets() {
        device.write_at(&block, at).await?;
        if writing.flush == Flush::AfterEach {
            flush(&device).await?;
        }
    }
    flush(&device).await?;
    Ok(writing.rate(start))
}

async fn at_once(writing: &Writing, params: &Qcow2DevParams) -> Qcow2Result<f64> {
    assert_eq!(writing.flush, Flush::AtEnd);
    let device = Rc::new(qcow2_setup_dev_uring(&writing.image, params).await?);
    let queue = Rc::new(Queue::new(writing));
    let start = Instant::now();
    let tasks = (0..writing.depth).map(|_| {
        let (device, queue, block) = (Rc::clone(&device), Rc::clone(&queue), payload(writing));
        tokio_uring::spawn(async move {
            while let Some(at) = queue.next() {
                device.write_at(&block, at).await?;
            }
            Qcow2Result::Ok(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.map_err(|error| error.to_string())??;
    }
    flush(&device).await?;
    Ok(writing.rate(start))
}

/// Writes out its tables and makes all of it durable; neither call does both.
async fn flush<T: Qcow2IoOps>(device: &Qcow2Dev<T>) -> Qcow2Result<()> {
    device.flush_meta().await?;
    device.fsync_range(0, usize::MAX).await
}
