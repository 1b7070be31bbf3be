//! What opening costs: time in this process, memory in one of its own.
//!
//! The child prints its own peak. What the kernel tells a parent about a child's memory counts the
//! parent's too: the child was a copy of it before it became another program.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use cowl::{Disk, OpenOptions, Sharing, WorkerPool};

use crate::process;
use crate::scale::images::{MIB, words};

/// Opens of one sample: a processor that has waited for a disk takes a while to be itself again.
const OPENS: usize = 1001;

/// Microseconds to open the image at `path`, the median of several times.
pub(crate) fn time(path: &Path, options: &OpenOptions) -> Result<f64, String> {
    let mut times = Vec::new();
    for _ in 0..OPENS {
        let start = Instant::now();
        let disk = Disk::open(path, options).map_err(words)?;
        times.push(start.elapsed().as_secs_f64() * 1e6);
        drop(disk);
    }
    Ok(crate::measure::median(&times))
}

/// What a process of its own does with an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Errand {
    Open,
    Check,
}

/// The most memory that a process holds which only does `errand`, in MiB, and its microseconds.
pub(crate) fn in_child(errand: Errand, path: &Path) -> Result<[f64; 2], String> {
    let own = std::env::current_exe().map_err(words)?;
    let word = match errand {
        Errand::Open => "--child-open",
        Errand::Check => "--child-check",
    };
    let output = process::run(&own, &[word.as_ref(), path.as_os_str()])?.output;
    let mut numbers = output.split_whitespace().map(str::parse::<f64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(memory)), Some(Ok(time))) => Ok([memory, time]),
        _ => Err(format!("the child said {output:?}")),
    }
}

/// A process that only opens an image.
pub(crate) fn open_as_child(path: &Path) -> ExitCode {
    as_child(|| {
        let disk = Disk::open(path, &OpenOptions::local()).map_err(words)?;
        std::hint::black_box(&disk);
        Ok(())
    })
}

/// A process that only checks an image, as `cowl check` does.
pub(crate) fn check_as_child(path: &Path) -> ExitCode {
    as_child(|| {
        let pool = Arc::new(WorkerPool::for_this_machine().map_err(words)?);
        let report = cowl::check(path, None, Sharing::NoWriters, Some(pool), &()).map_err(words)?;
        match (report.corruptions, report.check_errors, report.leaks) {
            (0, 0, 0) => Ok(()),
            wrong => Err(format!("corruptions, errors, leaks: {wrong:?}")),
        }
    })
}

/// Does `errand` and prints the peak of this process and the time it took.
fn as_child(errand: impl FnOnce() -> Result<(), String>) -> ExitCode {
    let start = Instant::now();
    let done = errand().and_then(|()| {
        let time = start.elapsed().as_secs_f64() * 1e6;
        let peak = process::high_water("self").ok_or("this process cannot see its memory")?;
        println!("{} {time}", peak as f64 / MIB as f64);
        Ok(())
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}
