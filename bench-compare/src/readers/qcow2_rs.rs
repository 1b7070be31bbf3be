//! qcow2-rs: plain system calls for depth 1, tokio-uring for more. One thread only.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use qcow2_rs::dev::{Qcow2Dev, Qcow2DevParams};
use qcow2_rs::helpers::Qcow2IoBuf;
use qcow2_rs::ops::Qcow2IoOps;
use qcow2_rs::utils::{qcow2_setup_dev_sync, qcow2_setup_dev_uring};

use crate::offsets::BLOCK;
use crate::readers::{BATCH, Clock, Reading};
use crate::row::Sample;

pub(crate) fn by_its_best(reading: &Reading) -> Sample {
    let params = Qcow2DevParams::new(9, None, None, true, reading.direct);
    if reading.depth == 1 && !reading.direct {
        let device =
            qcow2_setup_dev_sync(&reading.image, &params).map_err(|error| error.to_string())?;
        return pollster::block_on(async {
            device.qcow2_prep_io().await.map_err(|error| error.to_string())?;
            read_one_by_one(&device, reading).await
        });
    }
    tokio_uring::start(read_at_once(reading, params))
}

async fn read_one_by_one<T: Qcow2IoOps>(device: &Qcow2Dev<T>, reading: &Reading) -> Sample {
    let mut block = Qcow2IoBuf::<u8>::new(BLOCK);
    let mut offsets = reading.offsets(0);
    let mut clock = Clock::start(reading.sample);
    loop {
        for _ in 0..BATCH {
            let read = device.read_at(&mut block, offsets.next()).await;
            read.map_err(|error| error.to_string())?;
        }
        if !clock.tick(BATCH) {
            return Ok(clock.rate_and_cpu());
        }
    }
}

async fn read_at_once(reading: &Reading, params: Qcow2DevParams) -> Sample {
    let device = qcow2_setup_dev_uring(&reading.image, &params).await;
    let device = Rc::new(device.map_err(|error| error.to_string())?);
    let clock = Rc::new(RefCell::new(Clock::start(reading.sample)));
    let running = Rc::new(Cell::new(true));
    let offsets = Rc::new(RefCell::new(reading.offsets(0)));
    let tasks = (0..reading.depth).map(|_| {
        let (device, clock) = (Rc::clone(&device), Rc::clone(&clock));
        let (running, offsets) = (Rc::clone(&running), Rc::clone(&offsets));
        tokio_uring::spawn(async move {
            let mut block = Qcow2IoBuf::<u8>::new(BLOCK);
            let mut done = 0;
            while running.get() {
                let at = offsets.borrow_mut().next();
                let read = device.read_at(&mut block, at).await;
                read.map_err(|error| error.to_string())?;
                done += 1;
                if done == BATCH / 8 {
                    running.set(clock.borrow_mut().tick(done) && running.get());
                    done = 0;
                }
            }
            Ok::<(), String>(())
        })
    });
    for task in tasks.collect::<Vec<_>>() {
        task.await.map_err(|error| error.to_string())??;
    }
    let result = clock.borrow().rate_and_cpu();
    Ok(result)
}
