//! `dd`: copy a range of a disk into a new image.
//!
//! The target gets its name when it is complete and durable. Runs that read as zeros are left out.

use std::path::Path;
use std::sync::Arc;

use cowl::{ByteCount, Caching, GuestOffset, HostOffset};
use cowl_qcow2::{Builder, BuilderFiles, CreateOptions};
use cowl_storage::{Durability, FileStorage, IoBuffer, Purpose, Replacement, Storage, Writeback};
use pollster::block_on;

use crate::block_status::{BlockStatuses, disk_size, read_at};
use crate::convert::ConvertError;
use crate::host::Disk;
use crate::progress::Progress;
use crate::zero::is_zero;

/// Bytes read and written together; whole clusters of every size.
const CHUNK_BYTES: u64 = 2 << 20;

/// Bytes of a raw file that are written together at least.
const RAW_BLOCK_BYTES: u64 = 4096;

/// Which blocks of a disk to copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DdBlocks {
    /// Bytes of a block, at least 1.
    pub size: u64,
    /// Blocks to leave out at the start.
    pub skip: u64,
    /// Blocks to copy at most.
    pub count: Option<u64>,
    /// Where `count` begins.
    pub count_from: CountFrom,
}

/// Where the blocks to copy are counted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CountFrom {
    /// Behind the skipped blocks, as in dd.
    BehindSkip,
    /// From the start of the disk, so that skipped blocks count: what QEMU 10.0 does.
    Start,
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DdRange {
    /// First byte.
    pub start: u64,
    /// First byte behind it.
    pub end: u64,
    /// Whether the start lies behind the end of what could be copied.
    pub skips_too_far: bool,
}

impl DdBlocks {
    /// The bytes of a disk of `disk_size` bytes that are meant.
    #[must_use]
    pub fn range(&self, disk_size: u64) -> DdRange {
        let skipped = self.skip.saturating_mul(self.size);
        let counted = self.count.map_or(u64::MAX, |count| count.saturating_mul(self.size));
        let end = match self.count_from {
            CountFrom::Start => counted,
            CountFrom::BehindSkip => skipped.saturating_add(counted),
        };
        let end = end.min(disk_size);
        DdRange { start: skipped.min(end), end, skips_too_far: end < skipped }
    }
}

/// The image to make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DdTarget {
    /// A raw file.
    Raw,
    /// A qcow2 image.
    Qcow2,
}

/// Copies `range` of `source` into a new image at `target`.
///
/// # Errors
/// When the source cannot be read or the target cannot be made; then its name is as it was.
pub fn dd(
    source: &Disk,
    range: DdRange,
    target: &Path,
    kind: DdTarget,
    progress: &dyn Progress,
) -> Result<(), ConvertError> {
    let length = range.end - range.start;
    progress.total(ByteCount::new(length));
    let size = ByteCount::new(length.next_multiple_of(512));
    let file = Replacement::create(target, Caching::PageCache, Writeback::Early)?;
    let sink = Sink::start(file.file(), kind, size)?;
    copy(source, range, &sink, progress)?;
    if let Sink::Qcow2(builder) = sink {
        // The commit makes the file durable, before it gets its name.
        block_on(builder.finish(false))?;
    }
    Ok(block_on(file.commit(Durability::Durable))?)
}

enum Sink {
    Raw(Arc<FileStorage>),
    Qcow2(Box<Builder<FileStorage>>),
}

impl Sink {
    fn start(
        file: &Arc<FileStorage>,
        kind: DdTarget,
        size: ByteCount,
    ) -> Result<Self, ConvertError> {
        match kind {
            DdTarget::Raw => {
                block_on(file.set_len(size, Purpose::FileLength))?;
                Ok(Self::Raw(Arc::clone(file)))
            }
            DdTarget::Qcow2 => {
                let options = CreateOptions::new(size);
                let files = BuilderFiles { image: Arc::clone(file), data: None };
                Ok(Self::Qcow2(Box::new(Builder::new(files, &options)?)))
            }
        }
    }

    fn alignment(&self) -> u64 {
        match self {
            Self::Raw(_) => RAW_BLOCK_BYTES,
            Self::Qcow2(builder) => builder.geometry().cluster_size(),
        }
    }

    fn write(&self, at: u64, buffer: IoBuffer) -> Result<(), ConvertError> {
        match self {
            Self::Raw(file) => {
                let (result, _) =
                    block_on(file.write(HostOffset::new(at), buffer, Purpose::GuestData));
                Ok(result?)
            }
            Self::Qcow2(builder) => Ok(block_on(builder.write(GuestOffset::new(at), buffer))?),
        }
    }
}

fn copy(
    source: &Disk,
    range: DdRange,
    sink: &Sink,
    progress: &dyn Progress,
) -> Result<(), ConvertError> {
    let size = (range.end - range.start).next_multiple_of(512);
    let alignment = sink.alignment();
    // Everything before it is in the target. Runs may share a cluster; it is stored once.
    let mut done = 0;
    let failed = |at: u64| move |source| ConvertError::Read { at, source };
    assert!(range.end <= disk_size(source));
    for run in BlockStatuses::new(source, range.start, range.end) {
        let run = run.map_err(failed(range.start + done))?;
        let (start, end) = (run.start - range.start, run.start + run.length - range.start);
        if !run.zero {
            let mut at = (start - start % alignment).max(done);
            let end = end.next_multiple_of(alignment).min(size);
            while at < end {
                let next = (at - at % CHUNK_BYTES + CHUNK_BYTES).min(end);
                copy_chunk(source, range, sink, at..next)?;
                at = next;
            }
            done = done.max(at);
        }
        progress.advance(ByteCount::new(run.length));
    }
    Ok(())
}

/// Copies a piece, given by its place in the target. What lies behind the range is zero.
fn copy_chunk(
    source: &Disk,
    range: DdRange,
    sink: &Sink,
    piece: std::ops::Range<u64>,
) -> Result<(), ConvertError> {
    let mut buffer = IoBuffer::zeroed(ByteCount::new(piece.end - piece.start).as_usize());
    let at = range.start + piece.start;
    let wanted = (range.end - at).min(piece.end - piece.start);
    let wanted = ByteCount::new(wanted).as_usize();
    read_at(source, &mut buffer[..wanted], at)
        .map_err(|source| ConvertError::Read { at, source })?;
    if is_zero(&buffer) { Ok(()) } else { sink.write(piece.start, buffer) }
}

#[cfg(test)]
mod tests {
    use super::{CountFrom, DdBlocks, DdRange};

    fn range(skip: u64, count: Option<u64>, count_from: CountFrom) -> (u64, u64, bool) {
        let DdRange { start, end, skips_too_far } =
            DdBlocks { size: 1000, skip, count, count_from }.range(10_240);
        (start, end, skips_too_far)
    }

    #[test]
    fn the_range_ends_with_the_disk() {
        for from in [CountFrom::BehindSkip, CountFrom::Start] {
            assert_eq!(range(0, None, from), (0, 10_240, false));
            assert_eq!(range(3, None, from), (3000, 10_240, false));
            assert_eq!(range(0, Some(100), from), (0, 10_240, false));
            assert_eq!(range(0, Some(0), from), (0, 0, false));
            assert_eq!(range(11, None, from), (10_240, 10_240, true));
            assert_eq!(range(u64::MAX, None, from), (10_240, 10_240, true));
        }
    }

    #[test]
    fn skipped_blocks_count_only_for_qemu() {
        assert_eq!(range(1, Some(2), CountFrom::BehindSkip), (1000, 3000, false));
        assert_eq!(range(1, Some(2), CountFrom::Start), (1000, 2000, false));
        assert_eq!(range(7, Some(5), CountFrom::Start), (5000, 5000, true));
    }
}
