//! The floor: a raw file, without anything in between.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use cowl_storage::IoBuffer;

use crate::offsets::BLOCK;
use crate::readers::{BATCH, Clock, Reading, on_threads};
use crate::row::Sample;
use crate::sys::{Direction, RingBlocks};

/// A loop of preads, the fastest way to pages that are there.
pub(crate) fn by_pread(reading: &Reading) -> Sample {
    let file = File::open(&reading.image).map_err(|error| error.to_string())?;
    let rate = on_threads(reading.threads, |thread| {
        let mut offsets = reading.offsets(thread);
        let mut clock = Clock::start(reading.sample);
        let mut block = IoBuffer::zeroed(BLOCK);
        loop {
            for _ in 0..BATCH {
                let read = file.read_exact_at(&mut block, offsets.next());
                read.map_err(|error| error.to_string())?;
            }
            if !clock.tick(BATCH) {
                return Ok(clock.rate());
            }
        }
    })?;
    Ok(vec![rate])
}

/// A ring by hand, `depth` requests in flight.
pub(crate) fn by_ring(reading: &Reading) -> Sample {
    let failed = |error: std::io::Error| error.to_string();
    let mut options = OpenOptions::new();
    options.read(true);
    if reading.direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(&reading.image).map_err(failed)?;
    let depth = u32::try_from(reading.depth).map_err(|error| error.to_string())?;
    let mut blocks = RingBlocks::new(depth, BLOCK).map_err(failed)?;
    let mut offsets = reading.offsets(0);
    let mut clock = Clock::start(reading.sample);
    let mut free: Vec<usize> = (0..depth as usize).collect();
    let mut running = true;
    while running || 0 < blocks.in_flight() {
        while running && let Some(slot) = free.pop() {
            blocks.start(&file, slot, offsets.next(), Direction::Read).map_err(failed)?;
        }
        let before = free.len();
        blocks.finish(&mut free).map_err(failed)?;
        running = clock.tick((free.len() - before) as u64) && running;
    }
    Ok(clock.rate_and_cpu())
}
