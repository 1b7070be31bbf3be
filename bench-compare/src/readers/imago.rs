//! imago: its file driver reads inside `poll`, so depth buys nothing, but is what a VMM asks for.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use imago::file::File;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatDriverBuilder, PermissiveImplicitOpenGate, StorageOpenOptions};

use crate::offsets::BLOCK;
use crate::readers::{BATCH, Clock, Reading, on_threads};
use crate::row::Sample;

pub(crate) fn by_futures(reading: &Reading) -> Sample {
    let options = StorageOpenOptions::new().direct(reading.direct);
    let open = Qcow2::<File>::builder_path(&reading.image)
        .storage_open_options(options)
        .open(PermissiveImplicitOpenGate::default());
    let image = pollster::block_on(open).map_err(|error| error.to_string())?;
    let image = FormatAccess::new(image);
    if reading.threads == 1 {
        return pollster::block_on(read(&image, reading, 0)).map(|clock| clock.rate_and_cpu());
    }
    let rate = on_threads(reading.threads, |thread| {
        pollster::block_on(read(&image, reading, thread)).map(|clock| clock.rate())
    })?;
    Ok(vec![rate])
}

async fn read(image: &FormatAccess<File>, reading: &Reading, thread: u64) -> Result<Clock, String> {
    let mut clock = Clock::start(reading.sample);
    let mut offsets = reading.offsets(thread);
    let mut memory = vec![0_u8; (reading.depth as usize + 1) * BLOCK];
    let aligned = memory.as_ptr().align_offset(BLOCK);
    if reading.depth == 1 {
        let block = &mut memory[aligned..aligned + BLOCK];
        loop {
            for _ in 0..BATCH {
                let read = image.read(&mut *block, offsets.next()).await;
                read.map_err(|error| error.to_string())?;
            }
            if !clock.tick(BATCH) {
                return Ok(clock);
            }
        }
    }
    let mut in_flight = FuturesUnordered::new();
    for block in memory[aligned..].chunks_exact_mut(BLOCK).take(reading.depth as usize) {
        in_flight.push(one(image, block, offsets.next()));
    }
    let mut done = 0;
    while let Some((result, block)) = in_flight.next().await {
        result.map_err(|error| error.to_string())?;
        done += 1;
        if done == BATCH {
            done = 0;
            if !clock.tick(BATCH) {
                break;
            }
        }
        in_flight.push(one(image, block, offsets.next()));
    }
    drop(in_flight);
    Ok(clock)
}

async fn one<'b>(
    image: &FormatAccess<File>,
    block: &'b mut [u8],
    at: u64,
) -> (std::io::Result<()>, &'b mut [u8]) {
    (image.read(&mut *block, at).await, block)
}
