//! Several disks, one after the other, as one.

use std::ops::Range;

use cowl::{BlockDevice, Disk, Error, Extent, GuestOffset};

/// The joined sources.
pub(super) struct Source<'a> {
    parts: Vec<Part<'a>>,
    size: u64,
}

struct Part<'a> {
    disk: &'a Disk,
    start: u64,
    end: u64,
}

impl<'a> Source<'a> {
    pub(super) fn new(disks: &'a [Disk]) -> Self {
        let mut size = 0;
        let mut parts = Vec::new();
        for disk in disks {
            // A raw file may end anywhere; disks are whole sectors, padded with zeros.
            let end = size + disk.size().get().next_multiple_of(512);
            parts.push(Part { disk, start: size, end });
            size = end;
        }
        Self { parts, size }
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
        let inside = at - part.start;
        let length = part.disk.size().get().saturating_sub(inside);
        if length == 0 {
            return Ok(Vec::new());
        }
        let mut extents = part.disk.extents_at(inside, length)?;
        for extent in &mut extents {
            extent.start = GuestOffset::new(extent.start.get() + part.start);
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
            let inside = position - part.start;
            let size = part.disk.size().get();
            let rest = buffer.len() - done;
            let data = usize::try_from(size.saturating_sub(inside)).map_or(rest, |n| n.min(rest));
            part.disk.read_at(&mut buffer[done..done + data], inside)?;
            done += data;
            // The padding of a disk that is not whole sectors.
            let position = at + done as u64;
            if done < buffer.len() && position < part.end && part.start + size <= position {
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
        (range.end <= part.start + part.disk.size().get())
            .then_some((part.disk, range.start - part.start))
    }
}
