//! Several disks, one after the other, as one.

use std::ops::Range;

use crate::host::Disk;
use cowl::{BlockDevice, Error, Extent, GuestOffset};

/// The joined sources.
pub(super) struct Source<'a> {
    parts: Vec<Part<'a>>,
    size: u64,
}

struct Part<'a> {
    disk: &'a Disk,
    /// The byte of the disk that the part begins with.
    first: u64,
    start: u64,
    end: u64,
}

impl Part<'_> {
    /// Where in the disk the byte `at` of the whole is.
    fn inside(&self, at: u64) -> u64 {
        at - self.start + self.first
    }

    /// Bytes of the disk from the byte `at` of the whole on.
    fn rest(&self, at: u64) -> u64 {
        self.disk.size().get().saturating_sub(self.inside(at))
    }
}

impl<'a> Source<'a> {
    pub(super) fn new(disks: &'a [Disk]) -> Self {
        let mut size = 0;
        let mut parts = Vec::new();
        for disk in disks {
            // A raw file may end anywhere; disks are whole sectors, padded with zeros.
            let end = size + disk.size().get().next_multiple_of(512);
            parts.push(Part { disk, first: 0, start: size, end });
            size = end;
        }
        Self { parts, size }
    }

    /// Continues with what `disk` has behind the end of the sources so far.
    pub(super) fn continue_with(&mut self, disk: &'a Disk) {
        let (start, end) = (self.size, disk.size().get());
        if start < end {
            self.parts.push(Part { disk, first: start, start, end });
            self.size = end;
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn part(&self, at: u64) -> &Part<'a> {
        let part = self.parts.iter().find(|part| part.start <= at && at < part.end);
        part.expect("the offset lies within the sources")
    }

    /// How the bytes from `at` on are stored; ends with the disk that holds `at`, or earlier.
    pub(super) fn extents(&self, at: u64) -> Result<Vec<Extent>, Error> {
        let part = self.part(at);
        let length = part.rest(at);
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut extents = part.disk.extents_at(part.inside(at), length)?;
        for extent in &mut extents {
            extent.start = GuestOffset::new(extent.start.get() - part.first + part.start);
        }
        Ok(extents)
    }

    /// End of the disk that holds `at`.
    pub(super) fn part_end(&self, at: u64) -> u64 {
        self.part(at).end
    }

    /// Fills `buffer` from `at`, across disks.
    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), Error> {
        let mut done = 0;
        while done < buffer.len() {
            let position = at + done as u64;
            let part = self.part(position);
            let rest = buffer.len() - done;
            let data = usize::try_from(part.rest(position)).map_or(rest, |n| n.min(rest));
            part.disk.read_at(&mut buffer[done..done + data], part.inside(position))?;
            done += data;
            // The padding of a disk that is not whole sectors.
            let position = at + done as u64;
            if done < buffer.len() && position < part.end && part.rest(position) == 0 {
                let padding = usize::try_from(part.end - position).expect("below a sector");
                let padding = padding.min(buffer.len() - done);
                buffer[done..done + padding].fill(0);
                done += padding;
            }
        }
        Ok(())
    }

    /// The only disk and its range, when `range` lies in one.
    pub(super) fn single(&self, range: &Range<u64>) -> Option<(&'a Disk, u64)> {
        let part = self.part(range.start);
        let length = range.end - range.start;
        (length <= part.rest(range.start)).then_some((part.disk, part.inside(range.start)))
    }
}
