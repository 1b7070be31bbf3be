//! The floor: a sparse raw file, without anything in between.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::row::Sample;
use crate::sys::{Direction, RingBlocks};
use crate::writers::{Flush, PATTERN, Writing};

/// Blocking writes for depth 1, a ring by hand for more.
pub(crate) fn by_its_best(writing: &Writing) -> Sample {
    let open = OpenOptions::new().read(true).write(true).open(&writing.image);
    let file = open.map_err(|error| error.to_string())?;
    let rate = if writing.depth == 1 {
        by_pwrite(&file, writing)
    } else {
        assert_eq!(writing.flush, Flush::AtEnd);
        by_ring(&file, writing)
    };
    Ok(vec![rate.map_err(|error| error.to_string())?])
}

fn by_pwrite(file: &File, writing: &Writing) -> std::io::Result<f64> {
    let payload = writing.payload();
    let start = Instant::now();
    for at in writing.offsets() {
        file.write_all_at(&payload, at)?;
        if writing.flush == Flush::AfterEach {
            file.sync_data()?;
        }
    }
    file.sync_data()?;
    Ok(writing.rate(start))
}

fn by_ring(file: &File, writing: &Writing) -> std::io::Result<f64> {
    let depth = u32::try_from(writing.depth).map_err(std::io::Error::other)?;
    let mut blocks = RingBlocks::new(depth, writing.block)?;
    blocks.fill(PATTERN);
    let mut free: Vec<usize> = (0..depth as usize).collect();
    let mut offsets = writing.offsets().peekable();
    let start = Instant::now();
    while offsets.peek().is_some() || 0 < blocks.in_flight() {
        while let Some(slot) = free.pop() {
            let Some(at) = offsets.next() else { break };
            blocks.start(file, slot, at, Direction::Write)?;
        }
        if 0 < blocks.in_flight() {
            blocks.finish(&mut free)?;
        }
    }
    file.sync_data()?;
    Ok(writing.rate(start))
}
