//! The floor: a raw file, without anything in between.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};

use io_uring::{IoUring, opcode, types};

use crate::offsets::BLOCK;
use crate::readers::{BATCH, Clock, Reading, on_threads};
use crate::row::Sample;

/// A loop of preads, the fastest way to pages that are there.
pub(crate) fn by_pread(reading: &Reading) -> Sample {
    let file = File::open(&reading.image).map_err(|error| error.to_string())?;
    let rate = on_threads(reading.threads, |thread| {
        let mut offsets = reading.offsets(thread);
        let mut clock = Clock::start(reading.sample);
        let mut block = [0; BLOCK];
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
    let mut options = OpenOptions::new();
    options.read(true);
    if reading.direct {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(&reading.image).map_err(|error| error.to_string())?;
    let failed = |error: std::io::Error| error.to_string();
    let depth = u32::try_from(reading.depth).expect("a small number");
    let mut ring = IoUring::new(depth).map_err(failed)?;
    let mut memory = vec![0_u8; (depth as usize + 1) * BLOCK];
    let aligned = memory.as_ptr().align_offset(BLOCK);
    let start = memory[aligned..].as_mut_ptr();
    let mut offsets = reading.offsets(0);
    let mut clock = Clock::start(reading.sample);
    let mut slots: Vec<u64> = (0..reading.depth).collect();
    let mut running = true;
    let mut in_flight = 0;
    while running || 0 < in_flight {
        while running && let Some(slot) = slots.pop() {
            let buffer = start.wrapping_add(usize::try_from(slot).expect("small") * BLOCK);
            let read = opcode::Read::new(types::Fd(file.as_raw_fd()), buffer, BLOCK as u32)
                .offset(offsets.next())
                .build()
                .user_data(slot);
            // SAFETY: the memory outlives the ring's last completion, and each slot's block belongs
            // to one request at a time.
            unsafe { ring.submission().push(&read) }.map_err(|error| error.to_string())?;
            in_flight += 1;
        }
        ring.submit_and_wait(1).map_err(failed)?;
        let mut done = 0;
        for completion in ring.completion() {
            if completion.result() != BLOCK as i32 {
                return Err(format!("a read returned {}", completion.result()));
            }
            slots.push(completion.user_data());
            done += 1;
        }
        in_flight -= done;
        running = clock.tick(done) && running;
    }
    Ok(clock.rate_and_cpu())
}
