//! Runs: consecutive guest bytes of one layer that are stored alike.

use cowl_format::{
    ByteCount, ClusterMapping, CompressedDescriptor, Geometry, GuestOffset, HostOffset,
    SubclusterState,
};

/// How a run is stored in its layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunKind {
    /// Not in this layer. Host space may be reserved for it.
    Unallocated {
        /// The reserved space at the run's first byte.
        host: Option<HostOffset>,
    },
    /// Zeros. Host space may be reserved for it.
    Zero {
        /// The reserved space at the run's first byte.
        host: Option<HostOffset>,
    },
    /// Plain bytes, consecutive in the host file.
    Data {
        /// Where the run's first byte lies.
        host: HostOffset,
    },
    /// Part of one compressed cluster.
    Compressed {
        /// The cluster's stream.
        descriptor: CompressedDescriptor,
        /// How far into the cluster the run starts.
        skip: ByteCount,
    },
}

/// Consecutive guest bytes of one layer that are stored alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of bytes, at least 1.
    pub length: ByteCount,
    /// How they are stored.
    pub kind: RunKind,
    /// Whether the host space belongs to this run alone: data may be written in place.
    pub is_sole_owner: bool,
}

impl Run {
    /// The run at `guest` within its own cluster.
    #[inline(always)]
    pub(crate) fn in_cluster(
        mapping: ClusterMapping,
        is_sole_owner: bool,
        guest: GuestOffset,
        geometry: Geometry,
    ) -> Self {
        // As most clusters are.
        let ClusterMapping::Data { host } = mapping else {
            return Self::in_special_cluster(mapping, is_sole_owner, guest, geometry);
        };
        let skip = geometry.offset_in_cluster(guest);
        let length = ByteCount::new(geometry.cluster_size()) - skip;
        Self { length, kind: RunKind::Data { host: host + skip }, is_sole_owner }
    }

    /// The same for a cluster that is not all data.
    #[inline(never)]
    fn in_special_cluster(
        mapping: ClusterMapping,
        is_sole_owner: bool,
        guest: GuestOffset,
        geometry: Geometry,
    ) -> Self {
        let skip = geometry.offset_in_cluster(guest);
        let rest = ByteCount::new(geometry.cluster_size()) - skip;
        let within = |host: Option<HostOffset>| host.map(|host| host + skip);
        let kind = match mapping {
            ClusterMapping::Unallocated => RunKind::Unallocated { host: None },
            ClusterMapping::Zero { host } => RunKind::Zero { host: within(host) },
            ClusterMapping::Data { host } => RunKind::Data { host: host + skip },
            ClusterMapping::Compressed(descriptor) => RunKind::Compressed { descriptor, skip },
            ClusterMapping::Subclusters { host, bitmap } => {
                let size = geometry.subcluster_size();
                let index = u32::try_from(skip.get() / size).expect("one of 32");
                let host = within(host);
                let kind = match (bitmap.state(index), host) {
                    (SubclusterState::Data, Some(host)) => RunKind::Data { host },
                    (SubclusterState::Zero, host) => RunKind::Zero { host },
                    // A data bit without a host cluster was refused when the entry was decoded.
                    (SubclusterState::Data | SubclusterState::Unallocated, host) => {
                        RunKind::Unallocated { host }
                    }
                };
                let end = u64::from(index + bitmap.run(index)) * size;
                return Self { length: ByteCount::new(end) - skip, kind, is_sole_owner };
            }
        };
        Self { length: rest, kind, is_sole_owner }
    }

    /// Whether `next`, the run behind this one, is stored right behind it too.
    pub(crate) fn is_continued_by(&self, next: &Self) -> bool {
        let behind = |host: Option<HostOffset>| host.map(|host| host + self.length);
        if self.is_sole_owner != next.is_sole_owner {
            return false;
        }
        match (self.kind, next.kind) {
            (RunKind::Unallocated { host }, RunKind::Unallocated { host: other })
            | (RunKind::Zero { host }, RunKind::Zero { host: other }) => behind(host) == other,
            (RunKind::Data { host }, RunKind::Data { host: other }) => host + self.length == other,
            _ => false,
        }
    }
}
