//! Where the bytes of a disk are stored.

use cowl::Error;

use crate::block_status::{BlockStatus, BlockStatuses, layer_files};
use crate::host::Disk;

/// A run of guest bytes stored alike, and the file it is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapEntry {
    /// The run.
    pub status: BlockStatus,
    /// The file, when the run has a place in it.
    pub file: Option<String>,
}

/// Tells `report` every run of `length` bytes from `start` on, as far as the disk goes; neighbours
/// that continue each other are one run.
///
/// There is always at least one run, which is empty when nothing of the range is on the disk.
///
/// # Errors
/// When the tables of a layer cannot be read, or `report` fails.
pub fn map<E: From<Error>>(
    disk: &Disk,
    start: u64,
    length: Option<u64>,
    mut report: impl FnMut(MapEntry) -> Result<(), E>,
) -> Result<(), E> {
    let files = layer_files(disk);
    let entry = |status: BlockStatus| MapEntry {
        status,
        file: status.offset.map(|_| files[status.depth as usize].clone()),
    };
    let end = length.map_or(u64::MAX, |length| start.saturating_add(length));
    let mut current = nothing(start);
    for status in BlockStatuses::new(disk, start, end) {
        let status = status?;
        if is_continued_by(&current, &status) {
            current.length += status.length;
            continue;
        }
        if 0 < current.length {
            report(entry(current))?;
        }
        current = status;
    }
    report(entry(current))
}

fn nothing(start: u64) -> BlockStatus {
    BlockStatus {
        start,
        length: 0,
        depth: 0,
        present: false,
        zero: false,
        data: false,
        compressed: false,
        offset: None,
    }
}

fn is_continued_by(run: &BlockStatus, next: &BlockStatus) -> bool {
    let behind = BlockStatus {
        start: next.start,
        length: next.length,
        offset: run.offset.map(|offset| offset + run.length),
        ..*run
    };
    0 < run.length && behind == *next
}

#[cfg(test)]
mod tests {
    use super::{is_continued_by, nothing};
    use crate::block_status::BlockStatus;

    fn data(start: u64, length: u64, offset: Option<u64>) -> BlockStatus {
        BlockStatus { length, data: true, present: true, offset, ..nothing(start) }
    }

    #[test]
    fn runs_are_one_when_they_continue_each_other() {
        let run = data(0, 512, Some(1024));
        assert!(is_continued_by(&run, &data(512, 100, Some(1536))));
        assert!(!is_continued_by(&run, &data(512, 100, Some(2048))));
        assert!(!is_continued_by(&run, &data(512, 100, None)));
        assert!(!is_continued_by(&run, &BlockStatus { depth: 1, ..data(512, 100, Some(1536)) }));
        assert!(is_continued_by(&data(0, 512, None), &data(512, 1, None)));
        assert!(!is_continued_by(&nothing(0), &nothing(0)));
    }
}
