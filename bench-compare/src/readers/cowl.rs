//! cowl: the blocking calls for depth 1, a ring for each thread for more.

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::process::ExitCode;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use cowl::{
    BlockDevice, Caching, Disk, FileOptions, GuestOffset, OpenOptions, StorageError, StorageOpener,
    WorkerPool,
};
use cowl_storage::{IoBuffer, UringStorage, yield_now};

use crate::offsets::{BLOCK, Offsets};
use crate::readers::{BATCH, Clock, Reading, on_threads};
use crate::row::Sample;

fn options(reading: &Reading) -> Result<OpenOptions, String> {
    let caching = if reading.direct { Caching::Direct } else { Caching::PageCache };
    // As servers and tools set it up.
    let pool = WorkerPool::for_this_machine().map_err(|error| error.to_string())?;
    let offload = (1 < reading.depth).then(|| Arc::new(pool) as Arc<dyn cowl::Offload>);
    Ok(OpenOptions { caching, offload, ..OpenOptions::local() })
}

/// Blocking reads, one at a time on each thread.
pub(crate) fn by_blocking_calls(reading: &Reading) -> Sample {
    let disk = Disk::open(&reading.image, &options(reading)?).map_err(|error| error.to_string())?;
    let rate = on_threads(reading.threads, |thread| {
        let mut offsets = reading.offsets(thread);
        let mut clock = Clock::start(reading.sample);
        let mut block = IoBuffer::zeroed(BLOCK);
        loop {
            for _ in 0..BATCH {
                let read = disk.read_at(&mut block, offsets.next());
                read.map_err(|error| error.to_string())?;
            }
            if !clock.tick(BATCH) {
                return Ok(clock.rate());
            }
        }
    })?;
    Ok(vec![rate])
}

/// Files for the ring of the calling thread.
pub(crate) struct Rings;

impl StorageOpener for Rings {
    type Storage = UringStorage;

    fn open(&self, path: &Path, options: FileOptions) -> Result<UringStorage, StorageError> {
        UringStorage::open(path, options)
    }
}

/// Tasks on one ring, with buffers of their own, as a server has them.
pub(crate) fn by_ring(reading: &Reading) -> Sample {
    let options = options(reading)?;
    let runtime = cowl_storage::ring_runtime().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let disk = Disk::open_with(&Rings, &reading.image, &options).await;
        let disk = Arc::new(disk.map_err(|error| error.to_string())?);
        let clock = Rc::new(RefCell::new(Clock::start(reading.sample)));
        let running = Rc::new(Cell::new(true));
        let offsets = Rc::new(RefCell::new(reading.offsets(0)));
        let tasks = (0..reading.depth).map(|_| {
            let (disk, clock) = (Arc::clone(&disk), Rc::clone(&clock));
            let (running, offsets) = (Rc::clone(&running), Rc::clone(&offsets));
            compio::runtime::spawn(async move { task(&disk, &clock, &running, &offsets).await })
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.map_err(|_| "a task panicked".to_owned())??;
        }
        let result = clock.borrow().rate_and_cpu();
        Ok(result)
    })
}

async fn task(
    disk: &Disk<UringStorage>,
    clock: &RefCell<Clock>,
    running: &Cell<bool>,
    offsets: &RefCell<Offsets>,
) -> Result<(), String> {
    let mut buffer = IoBuffer::for_requests(BLOCK);
    while running.get() {
        for _ in 0..BATCH / 8 {
            let at = GuestOffset::new(offsets.borrow_mut().next());
            let (result, back) = disk.read(at, buffer).await;
            result.map_err(|error| error.to_string())?;
            buffer = back;
        }
        running.set(clock.borrow_mut().tick(BATCH / 8) && running.get());
        // Reads that the page cache answers wait for nothing: the others want their turn.
        yield_now().await;
    }
    Ok(())
}

/// A process that only reads `image` at random for a while: its memory is measured from outside.
pub(crate) fn read_as_child(image: &Path) -> ExitCode {
    let size = match Disk::open(image, &OpenOptions::local()) {
        Ok(disk) => disk.size().get(),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let reading = Reading {
        image: image.to_owned(),
        size,
        order: crate::readers::Order::Walk,
        depth: 32,
        threads: 1,
        direct: false,
        sample: Duration::from_secs(3),
    };
    match by_ring(&reading) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
