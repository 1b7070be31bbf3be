//! `qemu-img bench -w`.

use std::path::Path;

use crate::process;
use crate::row::Sample;
use crate::writers::{Flush, PATTERN, Writing};

/// The time that the program prints ends before its last flush. So this takes the time of the whole
/// process, which flushes when it closes the image, and subtracts that of one which makes a single
/// read.
pub(crate) fn by_bench(qemu_img: &Path, writing: &Writing) -> Sample {
    let single = ["-s", "4096", "-d", "1", "-c", "1"].map(str::to_owned);
    let idle = bench(qemu_img, writing, single.to_vec())?;
    let mut arguments = vec![
        "-w".to_owned(),
        format!("--pattern={PATTERN}"),
        "-s".to_owned(),
        writing.block.to_string(),
        "-d".to_owned(),
        writing.depth.to_string(),
        "-o".to_owned(),
        writing.first.to_string(),
        "-S".to_owned(),
        writing.step.to_string(),
        "-c".to_owned(),
        writing.count.to_string(),
    ];
    if writing.flush == Flush::AfterEach {
        arguments.push("--flush-interval=1".to_owned());
    }
    let seconds = bench(qemu_img, writing, arguments)? - idle;
    Ok(vec![writing.count as f64 / seconds.max(0.001)])
}

/// Seconds from start to exit.
fn bench(qemu_img: &Path, writing: &Writing, work: Vec<String>) -> Result<f64, String> {
    let mut arguments: Vec<String> =
        ["bench", "-f", "qcow2", "-t", "writeback", "-i", "io_uring"].map(str::to_owned).to_vec();
    arguments.extend(work);
    arguments.push(writing.image.to_string_lossy().into_owned());
    Ok(process::run(qemu_img, &arguments)?.wall.as_secs_f64())
}
