//! Whether two disks hold the same bytes.
//!
//! Runs that both disks know to be zero are not read; a run that only one of them stores has to
//! hold zeros. Where both store something the two are read at the same time, from two threads.

use cowl::Error;
use cowl_format::ByteCount;

use crate::block_status::{BlockStatus, BlockStatuses, disk_size, read_at};
use crate::host::Disk;
use crate::progress::Progress;
use crate::zero::is_zero;

/// Bytes read at a time; also how far apart two disks may be looked at.
const CHUNK_BYTES: u64 = 2 << 20;

/// Differences are looked for in sectors: the first one that differs is reported.
const SECTOR_BYTES: usize = 512;

/// What counts as a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strictness {
    /// What the guest would read. The rest of a longer disk may be zeros.
    Content,
    /// Also the size, and which runs are stored how.
    Allocation,
}

/// How two disks relate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// The content is the same.
    Same {
        /// Whether one disk is longer and ends in zeros.
        sizes_differ: bool,
    },
    /// The sizes differ, which counts; nothing else was looked at.
    Size,
    /// A run is stored differently, which counts.
    Allocation {
        /// Where it starts.
        at: u64,
    },
    /// The content differs.
    Content {
        /// Where.
        at: u64,
        /// Whether behind the end of the shorter disk.
        behind_shorter: bool,
    },
}

/// Why two disks could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The tables of a disk could not be read.
    #[error("the tables of disk {disk} could not be read: {source}")]
    Status {
        /// Which of the two.
        disk: usize,
        /// Why.
        source: Error,
    },
    /// The bytes of a disk could not be read.
    #[error("offset {at} of disk {disk} could not be read: {source}")]
    Read {
        /// Which of the two.
        disk: usize,
        /// Where.
        at: u64,
        /// Why.
        source: Error,
    },
}

/// Compares two disks.
///
/// # Errors
/// When one of them cannot be read.
pub fn compare(
    disks: [&Disk; 2],
    strictness: Strictness,
    progress: &dyn Progress,
) -> Result<Comparison, CompareError> {
    let sizes = disks.map(disk_size);
    let sizes_differ = sizes[0] != sizes[1];
    if sizes_differ && strictness == Strictness::Allocation {
        return Ok(Comparison::Size);
    }
    progress.total(ByteCount::new(sizes[0].max(sizes[1])));
    let common = sizes[0].min(sizes[1]);
    let mut comparer = Comparer { disks, buffers: [Vec::new(), Vec::new()], progress };
    if let Some(difference) = comparer.common_part(common, strictness)? {
        return Ok(difference);
    }
    let longer = if sizes[0] < sizes[1] { 1 } else { 0 };
    Ok(match comparer.rest_is_zero(longer, common)? {
        Some(at) => Comparison::Content { at, behind_shorter: true },
        None => Comparison::Same { sizes_differ },
    })
}

struct Comparer<'a> {
    disks: [&'a Disk; 2],
    buffers: [Vec<u8>; 2],
    progress: &'a dyn Progress,
}

impl Comparer<'_> {
    fn common_part(
        &mut self,
        end: u64,
        strictness: Strictness,
    ) -> Result<Option<Comparison>, CompareError> {
        let mut first = Cursor::new(0, self.disks[0], 0, end);
        let mut second = Cursor::new(1, self.disks[1], 0, end);
        let mut at = 0;
        while at < end {
            let runs = [first.run_at(at)?, second.run_at(at)?];
            if strictness == Strictness::Allocation && !stored_alike(&runs, end) {
                return Ok(Some(Comparison::Allocation { at }));
            }
            let length = runs[0].length.min(runs[1].length);
            let (length, difference) = self.runs(runs, at, length)?;
            if let Some(at) = difference {
                return Ok(Some(Comparison::Content { at, behind_shorter: false }));
            }
            at += length;
            self.progress.advance(ByteCount::new(length));
        }
        Ok(None)
    }

    /// Compares the start of two runs; how much of them was compared, and where they differ.
    fn runs(
        &mut self,
        runs: [BlockStatus; 2],
        at: u64,
        length: u64,
    ) -> Result<(u64, Option<u64>), CompareError> {
        if runs[0].zero && runs[1].zero {
            return Ok((length, None));
        }
        let length = length.min(CHUNK_BYTES);
        let difference = match (runs[0].present, runs[1].present) {
            (true, true) => self.first_difference(at, length)?,
            (true, false) => self.first_nonzero(0, at, length)?,
            (false, true) => self.first_nonzero(1, at, length)?,
            (false, false) => None,
        };
        Ok((length, difference))
    }

    fn first_difference(&mut self, at: u64, length: u64) -> Result<Option<u64>, CompareError> {
        let length = ByteCount::new(length).as_usize();
        let [first, second] = &mut self.buffers;
        first.resize(length, 0);
        second.resize(length, 0);
        let disks = self.disks;
        let results = std::thread::scope(|scope| {
            let other = scope.spawn(|| read_at(disks[1], second, at));
            let result = read_at(disks[0], first, at);
            [result, other.join().expect("reading does not panic")]
        });
        for (disk, result) in results.into_iter().enumerate() {
            result.map_err(|source| CompareError::Read { disk, at, source })?;
        }
        if first == second {
            return Ok(None);
        }
        let pairs = first.chunks(SECTOR_BYTES).zip(second.chunks(SECTOR_BYTES));
        let same = pairs.take_while(|(a, b)| a == b).count();
        Ok(Some(at + (same * SECTOR_BYTES) as u64))
    }

    fn first_nonzero(
        &mut self,
        disk: usize,
        at: u64,
        length: u64,
    ) -> Result<Option<u64>, CompareError> {
        let buffer = &mut self.buffers[disk];
        buffer.resize(ByteCount::new(length).as_usize(), 0);
        read_at(self.disks[disk], buffer, at).map_err(|source| CompareError::Read {
            disk,
            at,
            source,
        })?;
        let zeros = buffer.chunks(SECTOR_BYTES).take_while(|sector| is_zero(sector)).count();
        let offset = zeros * SECTOR_BYTES;
        Ok((offset < buffer.len()).then_some(at + offset as u64))
    }

    /// Where behind `start` the disk holds something other than zeros.
    fn rest_is_zero(&mut self, disk: usize, start: u64) -> Result<Option<u64>, CompareError> {
        let end = disk_size(self.disks[disk]);
        let mut cursor = Cursor::new(disk, self.disks[disk], start, end);
        let mut at = start;
        while at < end {
            let run = cursor.run_at(at)?;
            let mut length = run.length;
            if run.present && !run.zero {
                length = length.min(CHUNK_BYTES);
                if let Some(at) = self.first_nonzero(disk, at, length)? {
                    return Ok(Some(at));
                }
            }
            at += length;
            self.progress.advance(ByteCount::new(length));
        }
        Ok(None)
    }
}

/// Whether two runs from the same byte on are stored alike, on disks that both end at `end`.
fn stored_alike(runs: &[BlockStatus; 2], end: u64) -> bool {
    let facts = |run: &BlockStatus| {
        let is_last = run.start + run.length == end;
        (run.present, run.zero, run.data, run.compressed, run.offset.is_some(), is_last)
    };
    facts(&runs[0]) == facts(&runs[1])
}

/// Goes through the runs of one disk.
struct Cursor<'a> {
    disk: usize,
    runs: BlockStatuses<'a>,
    current: Option<BlockStatus>,
}

impl<'a> Cursor<'a> {
    fn new(disk: usize, source: &'a Disk, start: u64, end: u64) -> Self {
        Self { disk, runs: BlockStatuses::new(source, start, end), current: None }
    }

    /// The rest of the run that holds `at`. Never goes back.
    fn run_at(&mut self, at: u64) -> Result<BlockStatus, CompareError> {
        loop {
            if let Some(run) = self.current.filter(|run| at < run.start + run.length) {
                return Ok(run.part(at, run.start + run.length - at));
            }
            let next = self.runs.next().expect("runs go on to the end of the disk");
            let disk = self.disk;
            self.current = Some(next.map_err(|source| CompareError::Status { disk, source })?);
        }
    }
}
