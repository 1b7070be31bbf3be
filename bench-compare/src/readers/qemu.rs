//! `qemu-img bench`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::process;
use crate::readers::Reading;
use crate::row::Sample;

/// Requests that filled a sample the last time, by what was read.
static COUNTS: Mutex<BTreeMap<String, u64>> = Mutex::new(BTreeMap::new());

/// Runs until it has taken about as long as a sample: operations in a second, and microseconds of
/// processor time for each.
pub(crate) fn by_bench(qemu_img: &Path, reading: &Reading) -> Sample {
    let key = format!("{reading:?}");
    let counts = || COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut count = counts().get(&key).copied().unwrap_or(2000);
    loop {
        let (seconds, cpu) = bench(qemu_img, reading, count)?;
        if reading.sample.as_secs_f64() <= seconds * 1.5 {
            counts().insert(key, count);
            return Ok(vec![count as f64 / seconds, cpu * 1e6 / count as f64]);
        }
        // As many as fill the sample by what this run says, and some more.
        let needed = count as f64 * 1.3 * reading.sample.as_secs_f64() / seconds.max(0.001);
        count = (needed as u64).clamp(count * 2, count * 50);
    }
}

fn bench(qemu_img: &Path, reading: &Reading, count: u64) -> Result<(f64, f64), String> {
    let (cache, engine) =
        if reading.direct { ("none", "native") } else { ("writeback", "io_uring") };
    let arguments = [
        "bench".to_owned(),
        "-f".to_owned(),
        "qcow2".to_owned(),
        "-t".to_owned(),
        cache.to_owned(),
        "-i".to_owned(),
        engine.to_owned(),
        "-s".to_owned(),
        "4096".to_owned(),
        "-d".to_owned(),
        reading.depth.to_string(),
        "-S".to_owned(),
        reading.step().to_string(),
        "-c".to_owned(),
        count.to_string(),
        reading.image.to_string_lossy().into_owned(),
    ];
    let finished = process::run(qemu_img, &arguments)?;
    let seconds = finished
        .output
        .split("completed in ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next())
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("qemu-img bench said: {}", finished.output))?;
    Ok((seconds, finished.cpu.as_secs_f64()))
}
