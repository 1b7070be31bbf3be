//! `convert`: copy the content of disks into a new image.
//!
//!   sources -> work queue (skips zeros) -> workers (read, compress) -> sink -> commit
//!
//! Workers are threads that read and write on their own; the sink hands out host space. The target
//! is written under a temporary name, made durable and renamed, so an error at any point, the last
//! flush included, leaves nothing under the target's name that was not there before.

mod existing;
mod options;
mod sink;
mod source;
mod verify;
mod work_queue;
mod worker;

use std::path::Path;
use std::sync::Mutex;

use cowl::ByteCount;

pub use options::{
    ConvertError, ConvertOptions, ConvertReport, ExistingTarget, Salvaged, TargetImage,
    ZeroDetection,
};

use crate::Progress;
use crate::convert::existing::ExistingImage;
use crate::convert::sink::Sink;
use crate::convert::source::Source;
use crate::convert::work_queue::WorkQueue;
use crate::convert::worker::Worker;
use crate::host::Disk;

/// Copies the joined content of `sources` into a new image at `target`.
///
/// `sources` stay open throughout. On success the target is complete and, unless `options` say
/// otherwise, durable; on an error the target's name is as it was.
pub fn convert(
    sources: &[Disk],
    target: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<ConvertReport, ConvertError> {
    let mut source = Source::new(sources);
    options.check(source.size())?;
    let existing = ExistingImage::open(target, options, source.size())?;
    let options = existing.as_ref().map_or(options, |existing| &existing.options);
    if let Some(existing) = &existing {
        source.continue_with(&existing.disk);
    }
    let size = source.size();
    let sink = Sink::create(target, options, size)?;
    progress.total(ByteCount::new(size * passes(options)));
    let salvaged = Mutex::new(Vec::new());
    let queue = WorkQueue::new(&source, &sink, options, progress);
    run_workers(options.threads, || {
        Worker::new(&source, &sink, options, &salvaged).run(&queue, progress)
    })?;
    let written = sink.finish()?;
    let mut salvaged: Vec<Salvaged> =
        salvaged.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    salvaged.sort_by_key(|part| part.at);
    let digest = verify::verify(&source, &written, options, &salvaged, progress)?;
    written.commit(options)?;
    Ok(ConvertReport { size: ByteCount::new(size), digest, salvaged })
}

fn passes(options: &ConvertOptions) -> u64 {
    if options.verify || options.digest { 2 } else { 1 }
}

/// Runs `work` on `threads` threads, this one included; the first error stops them all.
fn run_workers(
    threads: usize,
    work: impl Fn() -> Result<(), ConvertError> + Sync,
) -> Result<(), ConvertError> {
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map(|_| scope.spawn(&work)).collect();
        let mut result = work();
        for other in others {
            let joined = match other.join() {
                Ok(joined) => joined,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            result = result.and(joined);
        }
        result
    })
}
