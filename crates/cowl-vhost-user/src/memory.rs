//! The memory of a guest, as the front-end hands it over.
//!
//! Each region is mapped twice: once for the rings, which are read and written by volatile and
//! atomic accesses, and once for the data of requests, which is lent to I/O where it lies.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use cowl_storage::{IoBuffer, SharedMemory};
use vhost::vhost_user::{Error, Result};
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, GuestRegionCollection,
    GuestRegionMmap, MmapRegion, Permissions,
};

/// Regions of one guest. QEMU has at most 509 memory slots.
pub(crate) const REGIONS_MAX: usize = 509;

/// Bytes of guest memory that lie next to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) at: u64,
    pub(crate) length: usize,
}

/// Where a region lies: for the guest, for the front-end, and in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) guest: u64,
    pub(crate) length: u64,
    /// The address by which the front-end names its rings.
    pub(crate) user: u64,
    pub(crate) file_offset: u64,
}

/// A part of the guest's memory that is mapped.
pub(crate) struct Region {
    place: Place,
    rings: Arc<GuestRegionMmap>,
    data: Arc<SharedMemory>,
}

impl Region {
    pub(crate) fn map(place: Place, file: File) -> Result<Arc<Self>> {
        let length = usize::try_from(place.length).map_err(|_| Error::InvalidParam)?;
        place.guest.checked_add(place.length).ok_or(Error::InvalidParam)?;
        place.user.checked_add(place.length).ok_or(Error::InvalidParam)?;
        let data = SharedMemory::map(file.as_fd(), place.file_offset, length)
            .map_err(Error::ReqHandlerError)?;
        let file = FileOffset::new(file, place.file_offset);
        let mapping = MmapRegion::from_file(file, length).map_err(|_| Error::InvalidParam)?;
        let rings = GuestRegionMmap::new(mapping, GuestAddress(place.guest));
        let rings = Arc::new(rings.ok_or(Error::InvalidParam)?);
        Ok(Arc::new(Self { place, rings, data }))
    }

    pub(crate) fn place(&self) -> Place {
        self.place
    }
}

/// All of it.
pub(crate) struct Memory {
    pub(crate) guest: GuestMemoryMmap,
    /// In order of their guest addresses.
    regions: Vec<Arc<Region>>,
}

impl Memory {
    /// Fails where regions lie over each other.
    pub(crate) fn new(mut regions: Vec<Arc<Region>>) -> Result<Arc<Self>> {
        regions.sort_by_key(|region| region.place.guest);
        let rings = regions.iter().map(|region| Arc::clone(&region.rings)).collect();
        let guest =
            GuestRegionCollection::from_arc_regions(rings).map_err(|_| Error::InvalidParam)?;
        Ok(Arc::new(Self { guest, regions }))
    }

    pub(crate) fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// The guest address of what the front-end has at `user`.
    pub(crate) fn find_user(&self, user: u64) -> Option<GuestAddress> {
        let mut places = self.regions.iter().map(|region| region.place);
        let place = places.find(|place| place.user <= user && user - place.user < place.length)?;
        Some(GuestAddress(place.guest + (user - place.user)))
    }

    /// Whether all of a segment is memory of the guest.
    pub(crate) fn contains(&self, segment: Segment) -> bool {
        let address = GuestAddress(segment.at);
        address.checked_add(segment.length as u64).is_some()
            && self.guest.check_range(address, segment.length, Permissions::ReadWrite)
    }

    /// The bytes of a segment as a buffer, where they lie; `None` where they have to be copied.
    pub(crate) fn claim(&self, segment: Segment) -> Option<IoBuffer> {
        let after = self.regions.partition_point(|region| region.place.guest <= segment.at);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let offset = usize::try_from(segment.at - region.place.guest).ok()?;
        region.data.claim(offset, segment.length)
    }

    pub(crate) fn read(&self, at: u64, bytes: &mut [u8]) -> Option<()> {
        self.guest.read_slice(bytes, GuestAddress(at)).ok()
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) -> Option<()> {
        self.guest.write_slice(bytes, GuestAddress(at)).ok()
    }

    /// Copies what lies behind byte `skip` of `segments` into `bytes`, until they are full.
    pub(crate) fn gather(&self, segments: &[Segment], skip: usize, bytes: &mut [u8]) -> Option<()> {
        let mut done = 0;
        for piece in pieces(segments, skip, bytes.len()) {
            self.read(piece.at, &mut bytes[done..done + piece.length])?;
            done += piece.length;
        }
        (done == bytes.len()).then_some(())
    }

    /// Copies `bytes` into `segments` from their byte `skip` on.
    pub(crate) fn scatter(&self, segments: &[Segment], skip: usize, bytes: &[u8]) -> Option<()> {
        let mut done = 0;
        for piece in pieces(segments, skip, bytes.len()) {
            self.write(piece.at, &bytes[done..done + piece.length])?;
            done += piece.length;
        }
        (done == bytes.len()).then_some(())
    }
}

/// The parts of `segments` that hold `length` bytes from byte `skip` on.
pub(crate) fn pieces(
    segments: &[Segment],
    skip: usize,
    length: usize,
) -> impl Iterator<Item = Segment> {
    let mut skip = skip;
    let mut rest = length;
    segments.iter().filter_map(move |segment| {
        let skipped = skip.min(segment.length);
        skip -= skipped;
        let taken = (segment.length - skipped).min(rest);
        rest -= taken;
        (0 < taken).then(|| Segment { at: segment.at + skipped as u64, length: taken })
    })
}
