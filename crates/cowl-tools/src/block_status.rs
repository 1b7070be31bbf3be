//! The runs of a disk as qemu-img reports them: present, zero, data, and in which layer.
//!
//! The engine's extents say how a run is mapped. Two facts are added here, because tools report
//! them and guests do not care:
//!   - a raw file counts in whole sectors, so its last one may end in zeros that are not in it;
//!   - in an image with preallocated metadata, mapped clusters may lie in holes of the file.

use std::collections::VecDeque;

use crate::host::{Disk, HostFile};
use cowl::{BlockDevice, Error, Extent, ExtentKind, HostOffset};
use cowl_block::RawImage;
use cowl_format::{ByteCount, HostCluster};
use cowl_qcow2::{Image, Layer};
use cowl_storage::Storage;
use pollster::block_on;

const SECTOR_BYTES: u64 = 512;

/// A run of guest bytes stored alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockStatus {
    /// First byte.
    pub start: u64,
    /// Number of bytes, at least 1.
    pub length: u64,
    /// The layer: 0 is the image itself, 1 its backing file, and so on.
    pub depth: u32,
    /// Whether any layer has something to say about the run.
    pub present: bool,
    /// Whether it is known to read as zeros.
    pub zero: bool,
    /// Whether it is stored as data.
    pub data: bool,
    /// Whether that data is compressed.
    pub compressed: bool,
    /// Where in the file, when the bytes have a place of their own.
    pub offset: Option<u64>,
}

impl BlockStatus {
    /// A stretch of this run: `length` bytes from `start` on.
    pub(crate) fn part(self, start: u64, length: u64) -> Self {
        assert!(self.start <= start);
        assert!(start + length <= self.start + self.length);
        let offset = self.offset.map(|offset| offset + (start - self.start));
        Self { start, length, offset, ..self }
    }
}

/// Size of a disk in whole sectors, as tools report it.
#[must_use]
pub fn disk_size(disk: &Disk) -> u64 {
    disk.size().get().next_multiple_of(SECTOR_BYTES)
}

/// Fills `buffer` from byte `at` of a disk; what a raw file lacks in its last sector is zero.
///
/// # Errors
/// When the disk cannot be read.
pub(crate) fn read_at(disk: &Disk, buffer: &mut [u8], at: u64) -> Result<(), Error> {
    let rest = disk.size().get().saturating_sub(at);
    let stored = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
    let (stored, missing) = buffer.split_at_mut(stored);
    missing.fill(0);
    if stored.is_empty() { Ok(()) } else { disk.read_at(stored, at) }
}

/// The runs of a disk, in order and without gaps. Neighbours may be alike.
pub struct BlockStatuses<'a> {
    disk: &'a Disk,
    layers: Vec<LayerFacts<'a>>,
    next: u64,
    end: u64,
    found: VecDeque<BlockStatus>,
    failed: bool,
}

/// What matters about a layer.
struct LayerFacts<'a> {
    layer: Option<&'a Layer<HostFile>>,
    size: u64,
    /// Whether data may lie in holes; found out when it first matters.
    has_holes: Option<bool>,
}

impl<'a> BlockStatuses<'a> {
    /// The runs of `start..end`, which may reach into the last sector of a raw file.
    #[must_use]
    pub fn new(disk: &'a Disk, start: u64, end: u64) -> Self {
        let end = end.min(disk_size(disk));
        let layers = layers(disk);
        Self { disk, layers, next: start, end, found: VecDeque::new(), failed: false }
    }

    /// All runs.
    #[must_use]
    pub fn whole(disk: &'a Disk) -> Self {
        Self::new(disk, 0, disk_size(disk))
    }

    fn find_more(&mut self) -> Result<(), Error> {
        let size = self.disk.size().get();
        if size <= self.next {
            let (start, length) = (self.next, self.end - self.next);
            self.found.push_back(zeros_behind_file(start, length, 0));
            self.next = self.end;
            return Ok(());
        }
        for extent in self.disk.extents_at(self.next, self.end.min(size) - self.next)? {
            self.next = extent.start.get() + extent.length.get();
            self.add(extent)?;
        }
        Ok(())
    }

    fn add(&mut self, extent: Extent) -> Result<(), Error> {
        let (start, length) = (extent.start.get(), extent.length.get());
        let run = BlockStatus {
            start,
            length,
            depth: extent.depth,
            present: true,
            zero: false,
            data: false,
            compressed: false,
            offset: None,
        };
        match extent.kind {
            ExtentKind::Data { host, hole } => self.add_data(run, host, hole)?,
            ExtentKind::Compressed => {
                self.found.push_back(BlockStatus { data: true, compressed: true, ..run });
            }
            ExtentKind::Zero { host } => {
                let offset = host.map(HostOffset::get);
                self.found.push_back(BlockStatus { zero: true, offset, ..run });
            }
            ExtentKind::Unallocated { host } => {
                let offset = host.map(HostOffset::get);
                let run = BlockStatus { present: false, zero: true, offset, ..run };
                self.add_unallocated(run);
            }
        }
        Ok(())
    }

    fn add_data(
        &mut self,
        run: BlockStatus,
        host: Option<HostOffset>,
        hole: bool,
    ) -> Result<(), Error> {
        let run = BlockStatus { zero: hole, offset: host.map(HostOffset::get), ..run };
        let facts = &mut self.layers[run.depth as usize];
        let Some(layer) = facts.layer else {
            self.found.push_back(BlockStatus { data: !hole, ..run });
            return Ok(());
        };
        let run = BlockStatus { data: true, ..run };
        let has_holes = match facts.has_holes {
            Some(known) => known,
            None => *facts.has_holes.insert(has_preallocated_metadata(layer)?),
        };
        match host {
            Some(host) if has_holes => self.add_by_holes(run, host, layer),
            _ => {
                self.found.push_back(run);
                Ok(())
            }
        }
    }

    /// Divides a run of data by the holes of the file below.
    fn add_by_holes(
        &mut self,
        run: BlockStatus,
        host: HostOffset,
        layer: &Layer<HostFile>,
    ) -> Result<(), Error> {
        let mut done = 0;
        while done < run.length {
            let rest = ByteCount::new(run.length - done);
            let at = host + ByteCount::new(done);
            let found = block_on(layer.data_file().extent(at, rest))?;
            let (length, hole) = found.map_or((rest, true), |found| (found.length, found.hole));
            let part = run.part(run.start + done, length.min(rest).get());
            self.found.push_back(BlockStatus { zero: hole, ..part });
            done += part.length;
        }
        Ok(())
    }

    /// A run that nobody has may begin with the last sector of the raw file below, which has it.
    fn add_unallocated(&mut self, run: BlockStatus) {
        let below = self.layers.get(run.depth as usize + 1).map_or(0, |facts| facts.size);
        let sector_end = below.next_multiple_of(SECTOR_BYTES);
        let in_sector = match below == run.start {
            true => run.length.min(sector_end - below),
            false => 0,
        };
        if 0 < in_sector {
            self.found.push_back(zeros_behind_file(run.start, in_sector, run.depth + 1));
        }
        if in_sector < run.length {
            self.found.push_back(run.part(run.start + in_sector, run.length - in_sector));
        }
    }
}

impl Iterator for BlockStatuses<'_> {
    type Item = Result<BlockStatus, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(run) = self.found.pop_front() {
                return Some(Ok(run));
            }
            if self.failed || self.end <= self.next {
                return None;
            }
            if let Err(error) = self.find_more() {
                self.failed = true;
                return Some(Err(error));
            }
        }
    }
}

/// The rest of the last sector of a raw file.
fn zeros_behind_file(start: u64, length: u64, depth: u32) -> BlockStatus {
    BlockStatus {
        start,
        length,
        depth,
        present: true,
        zero: true,
        data: false,
        compressed: false,
        offset: Some(start),
    }
}

fn layers(disk: &Disk) -> Vec<LayerFacts<'_>> {
    let raw = |raw: &RawImage<HostFile>| LayerFacts {
        layer: None,
        size: BlockDevice::size(raw).get(),
        has_holes: None,
    };
    match (disk.qcow2(), disk.raw()) {
        (Some(image), _) => qcow2_layers(image).chain(image.base().map(raw)).collect(),
        (None, Some(image)) => vec![raw(image)],
        (None, None) => Vec::new(),
    }
}

fn qcow2_layers(image: &Image<HostFile>) -> impl Iterator<Item = LayerFacts<'_>> {
    image.layers().iter().map(|layer| LayerFacts {
        layer: Some(layer),
        size: layer.size().get(),
        has_holes: None,
    })
}

/// The file names of the layers that hold data, the top one first.
pub(crate) fn layer_files(disk: &Disk) -> Vec<String> {
    let name = |file: &HostFile| file.name().to_string_lossy().into_owned();
    match (disk.qcow2(), disk.raw()) {
        (Some(image), _) => {
            let base = image.base().map(|base| name(base.storage()));
            image.layers().iter().map(|layer| name(layer.data_file())).chain(base).collect()
        }
        (None, Some(image)) => vec![name(image.storage())],
        (None, None) => Vec::new(),
    }
}

/// Whether so many more clusters are in use than the host has allocated that the rest must be
/// preallocated. Looking for holes in any other image would cost a system call for each run.
fn has_preallocated_metadata(layer: &Layer<HostFile>) -> Result<bool, Error> {
    let file = layer.file();
    let cluster_size = layer.header().geometry.cluster_size();
    let (length, allocated) = (block_on(file.len())?.get(), block_on(file.allocated())?.get());
    let allocated_clusters = allocated / cluster_size;
    let threshold = (allocated_clusters.saturating_mul(10) / 9).max(allocated_clusters + 2);
    let mut used = 0;
    for cluster in 0..length.div_ceil(cluster_size) {
        let refcount = block_on(layer.refcount(HostCluster::new(cluster)));
        // Refcounts that cannot be read are the check's business; here they only mean "do not
        // know".
        match refcount {
            Ok(0) => {}
            Ok(_) => used += 1,
            Err(_) => return Ok(false),
        }
        if threshold <= used {
            return Ok(true);
        }
    }
    Ok(false)
}
