//! Cluster size and entry widths, and every conversion between offsets, clusters and indices.
//!
//! A guest offset splits into three indices; a host cluster's refcount is found by two:
//!
//!   guest offset   [ L1 index | L2 index | offset in cluster ]
//!   host cluster   [ refcount table index | refcount block index ]
//!
//! Invariant: cluster bits, refcount order and the L2 entry size are within the format's limits;
//! the constructor checks them and nothing else can make a [`Geometry`].

use crate::limits::{
    CLUSTER_BITS_EXTENDED_L2_MIN, CLUSTER_BITS_MAX, CLUSTER_BITS_MIN, L1_BYTES_MAX,
    REFCOUNT_ORDER_MAX,
};
use crate::{
    ByteCount, Corruption, GuestCluster, GuestOffset, HostCluster, HostOffset, L1Index, L2Index,
    RefcountBlockIndex, RefcountTableIndex,
};

/// The sizes that all structures of one image share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    cluster_bits: u8,
    refcount_order: u8,
    extended_l2: bool,
}

/// Number of subclusters in a cluster with extended L2 entries.
const SUBCLUSTER_COUNT_EXTENDED: u32 = 32;

impl Geometry {
    /// Checks the three numbers against the format's limits.
    pub fn new(
        cluster_bits: u32,
        refcount_order: u32,
        extended_l2: bool,
    ) -> Result<Self, Corruption> {
        let bits = u8::try_from(cluster_bits)
            .ok()
            .filter(|bits| (CLUSTER_BITS_MIN..=CLUSTER_BITS_MAX).contains(bits))
            .ok_or(Corruption::ClusterBits { bits: cluster_bits })?;
        let order = u8::try_from(refcount_order)
            .ok()
            .filter(|order| *order <= REFCOUNT_ORDER_MAX)
            .ok_or(Corruption::RefcountOrder { order: refcount_order })?;
        if extended_l2 && bits < CLUSTER_BITS_EXTENDED_L2_MIN {
            return Err(Corruption::ExtendedL2ClusterBits { bits: cluster_bits });
        }
        Ok(Self { cluster_bits: bits, refcount_order: order, extended_l2 })
    }

    /// Binary logarithm of the cluster size.
    #[must_use]
    pub const fn cluster_bits(self) -> u32 {
        self.cluster_bits as u32
    }

    /// Cluster size in bytes.
    #[must_use]
    pub const fn cluster_size(self) -> u64 {
        1 << self.cluster_bits
    }

    /// Cluster size as a length of memory.
    #[must_use]
    pub const fn cluster_len(self) -> usize {
        1 << self.cluster_bits
    }

    /// Binary logarithm of the refcount width.
    #[must_use]
    pub const fn refcount_order(self) -> u32 {
        self.refcount_order as u32
    }

    /// Width of a refcount in bits: 1 to 64.
    #[must_use]
    pub const fn refcount_bits(self) -> u32 {
        1 << self.refcount_order
    }

    /// The largest refcount that fits.
    #[must_use]
    pub const fn refcount_max(self) -> u64 {
        u64::MAX >> (64 - self.refcount_bits())
    }

    /// Whether L2 entries have a subcluster bitmap.
    #[must_use]
    pub const fn has_extended_l2(self) -> bool {
        self.extended_l2
    }

    /// Bytes of an L2 entry: 8, or 16 with extended L2 entries.
    #[must_use]
    pub const fn l2_entry_len(self) -> usize {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Entries of an L2 table, which fills one cluster.
    #[must_use]
    pub const fn l2_entries(self) -> u32 {
        1 << self.l2_bits()
    }

    const fn l2_bits(self) -> u32 {
        self.cluster_bits as u32 - if self.extended_l2 { 4 } else { 3 }
    }

    /// Guest bytes described by one L2 table.
    #[must_use]
    pub const fn l2_coverage(self) -> u64 {
        1 << (self.l2_bits() + self.cluster_bits as u32)
    }

    /// Subclusters in a cluster: 32 with extended L2 entries, otherwise 1.
    #[must_use]
    pub const fn subclusters(self) -> u32 {
        if self.extended_l2 { SUBCLUSTER_COUNT_EXTENDED } else { 1 }
    }

    /// Bytes of a subcluster; the cluster size without extended L2 entries.
    #[must_use]
    pub const fn subcluster_size(self) -> u64 {
        self.cluster_size() / self.subclusters() as u64
    }

    /// Entries of a refcount block, which fills one cluster.
    #[must_use]
    pub const fn refcount_block_entries(self) -> u64 {
        1 << self.refcount_block_bits()
    }

    const fn refcount_block_bits(self) -> u32 {
        self.cluster_bits as u32 + 3 - self.refcount_order as u32
    }

    /// The largest virtual size that an L1 table within its limit describes, in bytes.
    #[must_use]
    pub const fn size_max(self) -> u64 {
        (L1_BYTES_MAX / 8) << (self.l2_bits() + self.cluster_bits as u32)
    }

    /// The L1 entry that describes `guest`. `None` past any possible table.
    #[must_use]
    pub fn l1_index(self, guest: GuestOffset) -> Option<L1Index> {
        let index = guest.get() >> (self.l2_bits() + self.cluster_bits());
        u32::try_from(index).ok().map(L1Index::new)
    }

    /// The entry for `guest` within its L2 table.
    #[must_use]
    pub fn l2_index(self, guest: GuestOffset) -> L2Index {
        let index = (guest.get() >> self.cluster_bits) & (u64::from(self.l2_entries()) - 1);
        L2Index::new(u32::try_from(index).expect("masked to the entries of one table"))
    }

    /// The first guest byte described by entry `l2` of the table of entry `l1`.
    #[must_use]
    pub fn guest_offset(self, l1: L1Index, l2: L2Index) -> GuestOffset {
        let cluster = (u64::from(l1.get()) << self.l2_bits()) | u64::from(l2.get());
        GuestOffset::new(cluster << self.cluster_bits)
    }

    /// The guest cluster that `guest` lies in.
    #[must_use]
    pub const fn guest_cluster(self, guest: GuestOffset) -> GuestCluster {
        GuestCluster::new(guest.get() >> self.cluster_bits)
    }

    /// The first byte of a guest cluster.
    #[must_use]
    pub const fn guest_cluster_start(self, cluster: GuestCluster) -> GuestOffset {
        GuestOffset::new(cluster.get() << self.cluster_bits)
    }

    /// The host cluster that `host` lies in.
    #[must_use]
    pub const fn host_cluster(self, host: HostOffset) -> HostCluster {
        HostCluster::new(host.get() >> self.cluster_bits)
    }

    /// The first byte of a host cluster.
    #[must_use]
    pub const fn host_cluster_start(self, cluster: HostCluster) -> HostOffset {
        HostOffset::new(cluster.get() << self.cluster_bits)
    }

    /// Bytes between the start of its cluster and `guest`.
    #[must_use]
    pub const fn offset_in_cluster(self, guest: GuestOffset) -> ByteCount {
        ByteCount::new(guest.get() & (self.cluster_size() - 1))
    }

    /// Whether a host offset is the start of a cluster.
    #[must_use]
    pub const fn is_cluster_aligned(self, host: u64) -> bool {
        host & (self.cluster_size() - 1) == 0
    }

    /// Clusters needed for `bytes`.
    #[must_use]
    pub const fn clusters_for(self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster_size())
    }

    /// L1 entries needed for a virtual size.
    #[must_use]
    pub const fn l1_entries_for(self, size: u64) -> u64 {
        size.div_ceil(self.l2_coverage())
    }

    /// The refcount table entry for a host cluster. `None` past any possible table.
    #[must_use]
    pub fn refcount_table_index(self, cluster: HostCluster) -> Option<RefcountTableIndex> {
        let index = cluster.get() >> self.refcount_block_bits();
        u32::try_from(index).ok().map(RefcountTableIndex::new)
    }

    /// The entry for a host cluster within its refcount block.
    #[must_use]
    pub fn refcount_block_index(self, cluster: HostCluster) -> RefcountBlockIndex {
        let index = cluster.get() & (self.refcount_block_entries() - 1);
        RefcountBlockIndex::new(u32::try_from(index).expect("a block has at most 2^24 entries"))
    }

    /// The first host cluster counted by a refcount block.
    #[must_use]
    pub fn refcount_block_start(self, index: RefcountTableIndex) -> HostCluster {
        HostCluster::new(u64::from(index.get()) << self.refcount_block_bits())
    }
}

#[cfg(test)]
mod tests {
    use super::Geometry;
    use crate::{Corruption, GuestOffset, HostCluster};

    #[test]
    fn default_geometry_has_the_documented_sizes() {
        let geometry = Geometry::new(16, 4, false).unwrap();
        assert_eq!(geometry.cluster_size(), 65_536);
        assert_eq!(geometry.l2_entries(), 8192);
        assert_eq!(geometry.l2_coverage(), 512 << 20);
        assert_eq!(geometry.refcount_block_entries(), 32_768);
        assert_eq!(geometry.refcount_max(), 65_535);
    }

    #[test]
    fn largest_sizes_match_the_specification() {
        let size_max = |bits, extended| Geometry::new(bits, 4, extended).unwrap().size_max();
        assert_eq!(size_max(9, false), 128 << 30);
        assert_eq!(size_max(16, false), 2 << 50);
        assert_eq!(size_max(21, false), 2 << 60);
        assert_eq!(size_max(16, true), 1 << 50);
    }

    #[test]
    fn indices_round_trip_for_every_geometry() {
        for bits in 9..=21 {
            for order in 0..=6 {
                let geometry = Geometry::new(bits, order, false).unwrap();
                let guest = GuestOffset::new(geometry.size_max() - geometry.cluster_size());
                let l1 = geometry.l1_index(guest).unwrap();
                assert_eq!(geometry.guest_offset(l1, geometry.l2_index(guest)), guest);
                let cluster = HostCluster::new(geometry.refcount_block_entries() * 3 + 1);
                let table = geometry.refcount_table_index(cluster).unwrap();
                assert_eq!(table.get(), 3);
                assert_eq!(geometry.refcount_block_start(table).get() + 1, cluster.get());
                assert_eq!(geometry.refcount_block_index(cluster).get(), 1);
            }
        }
    }

    #[test]
    fn numbers_outside_the_limits_are_refused() {
        assert_eq!(Geometry::new(8, 4, false), Err(Corruption::ClusterBits { bits: 8 }));
        assert_eq!(Geometry::new(22, 4, false), Err(Corruption::ClusterBits { bits: 22 }));
        assert_eq!(Geometry::new(300, 4, false), Err(Corruption::ClusterBits { bits: 300 }));
        assert_eq!(Geometry::new(16, 7, false), Err(Corruption::RefcountOrder { order: 7 }));
        let error = Corruption::ExtendedL2ClusterBits { bits: 13 };
        assert_eq!(Geometry::new(13, 4, true), Err(error));
    }
}
