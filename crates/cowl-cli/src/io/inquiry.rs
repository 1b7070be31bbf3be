//! The commands that ask: `length`, `info`, `map`, `alloc`.

use cowl_tools::{BlockStatus, BlockStatuses, InfoOptions};

use super::device::{Device, Errno};
use super::number;
use super::report::bytes;
use super::shell::{Flow, Shell, Trouble};
use crate::commands::format_specific;
use crate::disk::words;

/// What `alloc` looks at when nothing is said.
const ALLOC_BYTES: u64 = 512;

pub(super) fn length(shell: &mut Shell<'_>, _: &[String]) -> Result<Flow, Trouble> {
    shell.print(&format!("{}\n", bytes(shell.device().size())));
    Ok(Flow::Continue)
}

pub(super) fn info(shell: &mut Shell<'_>, _: &[String]) -> Result<Flow, Trouble> {
    let device = shell.device();
    let geometry = device.disk.qcow2().and_then(|image| image.layers().first());
    let geometry = geometry.map(|layer| layer.header().geometry);
    // The VM state lies behind the part of the disk that whole L2 tables can map.
    let behind_disk = |coverage: u64| device.size().checked_next_multiple_of(coverage);
    let vm_state = geometry.and_then(|geometry| behind_disk(geometry.l2_coverage()));
    let options = InfoOptions {
        format: Some(device.disk.format()),
        // The lock that would conflict is our own.
        sharing: cowl::Sharing::Anyone,
        follow: cowl::Follow::Nothing,
    };
    let found = cowl_tools::info(&device.name.path, options);
    let found = found.map_err(|error| Trouble::Message(error.to_string()))?;
    shell.print(&format!(
        "format name: {}\ncluster size: {}\nvm state offset: {}\n{}",
        device.disk.format(),
        bytes(geometry.map_or(0, |geometry| geometry.cluster_size())),
        bytes(vm_state.unwrap_or(0)),
        format_specific(&found)
    ));
    Ok(Flow::Continue)
}

pub(super) fn map(shell: &mut Shell<'_>, _: &[String]) -> Result<Flow, Trouble> {
    let device = shell.device();
    for run in runs(device, 0, device.size()) {
        let run = run.map_err(|error| {
            let reason = words(&error);
            Trouble::Message(format!("Failed to get allocation status: {reason}"))
        })?;
        let state = if run.allocated { "    allocated" } else { "not allocated" };
        shell.print(&format!(
            "{} ({:#x}) bytes {state} at offset {} ({:#x})\n",
            bytes(run.length),
            run.length,
            bytes(run.start),
            run.start
        ));
    }
    Ok(Flow::Continue)
}

pub(super) fn alloc(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let start = number::bytes(&words[1])?;
    let count = words.get(2).map_or(Ok(ALLOC_BYTES), |count| number::bytes(count))?;
    let (mut looked_at, mut allocated) = (0, 0);
    for run in runs(shell.device(), start, start.saturating_add(count)) {
        let run = run.map_err(|error| format!("is_allocated failed: {}", Errno::from(error)))?;
        looked_at += run.length;
        allocated += if run.allocated { run.length } else { 0 };
    }
    shell.print(&format!("{allocated}/{looked_at} bytes allocated at offset {}\n", bytes(start)));
    Ok(Flow::Continue)
}

/// A stretch that the image itself has something to say about, or has not.
struct Run {
    start: u64,
    length: u64,
    allocated: bool,
}

/// The stretches of `start..end`, as long as they can be; they end with the disk.
fn runs(device: &Device, start: u64, end: u64) -> impl Iterator<Item = Result<Run, cowl::Error>> {
    let mut statuses = BlockStatuses::new(&device.disk, start, end).peekable();
    std::iter::from_fn(move || {
        let first = match statuses.next()? {
            Ok(first) => first,
            Err(error) => return Some(Err(error)),
        };
        let allocated = is_allocated(&first);
        let mut length = first.length;
        while let Some(Ok(next)) =
            statuses.next_if(|next| next.as_ref().is_ok_and(|n| is_allocated(n) == allocated))
        {
            length += next.length;
        }
        Some(Ok(Run { start: first.start, length, allocated }))
    })
}

fn is_allocated(run: &BlockStatus) -> bool {
    run.depth == 0 && run.present
}
