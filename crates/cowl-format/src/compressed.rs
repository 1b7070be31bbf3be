//! Compressed cluster descriptors: 62 bits of an L2 entry.
//!
//!   61                x x-1                                0
//!  +-------------------+-----------------------------------+
//!  | further sectors   |  host offset, not aligned         |      x = 70 - cluster bits
//!  +-------------------+-----------------------------------+
//!
//! The stream starts at the offset and lies within the sector that holds it and the `further
//! sectors` behind. What follows the stream there is somebody else's and ignored.
//!
//! Invariant: the host offset is below 2^56.

use crate::limits::HOST_OFFSET_BITS_MAX;
use crate::{ByteCount, Geometry, HostCluster, HostOffset};

const SECTOR: u64 = 512;

/// Where a compressed cluster's stream lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompressedDescriptor {
    host: HostOffset,
    length_max: ByteCount,
}

impl CompressedDescriptor {
    /// Decodes the low 62 bits of an L2 entry. The error is the offset that is out of range.
    pub fn decode(raw: u64, geometry: Geometry) -> Result<Self, u64> {
        let descriptor = Self::decode_unchecked(raw, geometry);
        match descriptor.host.get() >> HOST_OFFSET_BITS_MAX {
            0 => Ok(descriptor),
            _ => Err(descriptor.host.get()),
        }
    }

    /// Decodes without the range check, for checkers.
    #[must_use]
    pub fn decode_unchecked(raw: u64, geometry: Geometry) -> Self {
        let offset_bits = 70 - geometry.cluster_bits();
        let raw = raw & ((1 << 62) - 1);
        let host = raw & ((1 << offset_bits) - 1);
        let sectors = (raw >> offset_bits) + 1;
        let length_max = sectors * SECTOR - (host & (SECTOR - 1));
        Self { host: HostOffset::new(host), length_max: ByteCount::new(length_max) }
    }

    /// A descriptor for a stream of `length` bytes at `host`; `None` when the fields cannot hold
    /// it.
    #[must_use]
    pub fn new(host: HostOffset, length: ByteCount, geometry: Geometry) -> Option<Self> {
        assert!(0 < length.get() && length.get() < geometry.cluster_size());
        let offset_bits = 70 - geometry.cluster_bits();
        let fits = host.get() >> offset_bits.min(HOST_OFFSET_BITS_MAX) == 0;
        let sectors = (host.get() + length.get() - 1) / SECTOR - host.get() / SECTOR + 1;
        let length_max = sectors * SECTOR - (host.get() & (SECTOR - 1));
        fits.then_some(Self { host, length_max: ByteCount::new(length_max) })
    }

    /// The 62 bits to store.
    #[must_use]
    pub fn encode(self, geometry: Geometry) -> u64 {
        let offset_bits = 70 - geometry.cluster_bits();
        let sectors = (self.length_max.get() + (self.host.get() & (SECTOR - 1))) / SECTOR;
        assert!(0 < sectors);
        let raw = (sectors - 1) << offset_bits | self.host.get();
        assert!(raw >> 62 == 0);
        raw
    }

    /// First byte of the stream.
    #[must_use]
    pub const fn host(self) -> HostOffset {
        self.host
    }

    /// The most bytes the stream can have: up to the end of its last sector, at most two clusters.
    #[must_use]
    pub const fn length_max(self) -> ByteCount {
        self.length_max
    }

    /// The first and the last host cluster that it holds a reference to.
    #[must_use]
    pub fn host_clusters(self, geometry: Geometry) -> (HostCluster, HostCluster) {
        let last = HostOffset::new(self.host.get() + self.length_max.get() - 1);
        (geometry.host_cluster(self.host), geometry.host_cluster(last))
    }
}

#[cfg(test)]
mod tests {
    use super::CompressedDescriptor;
    use crate::{ByteCount, Geometry, HostOffset};

    #[test]
    fn descriptors_round_trip_for_every_cluster_size() {
        for bits in 9..=21 {
            let geometry = Geometry::new(bits, 4, false).unwrap();
            let size = geometry.cluster_size();
            for host in [1, 511, 512, size - 1, size * 3 + 17, (1 << 49) - 1] {
                for length in [1, 2, 511, size / 2, size - 1] {
                    let (host, length) = (HostOffset::new(host), ByteCount::new(length));
                    let Some(new) = CompressedDescriptor::new(host, length, geometry) else {
                        panic!("{host:?} fits in 49 bits");
                    };
                    assert!(length <= new.length_max());
                    assert!(new.length_max().get() < length.get() + 512);
                    let decoded = CompressedDescriptor::decode(new.encode(geometry), geometry);
                    assert_eq!(decoded, Ok(new));
                    let (first, last) = new.host_clusters(geometry);
                    assert!(last.get() - first.get() <= 1);
                }
            }
        }
    }

    #[test]
    fn the_widest_descriptor_spans_two_clusters_of_bytes() {
        let geometry = Geometry::new(16, 4, false).unwrap();
        let widest = CompressedDescriptor::decode((1 << 62) - (1 << 54), geometry).unwrap();
        assert_eq!(widest.length_max().get(), 2 * geometry.cluster_size());
    }

    #[test]
    fn an_offset_past_56_bits_is_refused() {
        let geometry = Geometry::new(9, 4, false).unwrap();
        assert_eq!(CompressedDescriptor::decode(1 << 57, geometry), Err(1 << 57));
    }
}
