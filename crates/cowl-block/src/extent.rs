//! Runs of guest addresses that are stored alike.

use cowl_format::{ByteCount, GuestOffset, HostOffset};

/// How a run of guest bytes is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Plain bytes in a host file.
    Data {
        /// Where in the file; `None` when they are not stored as they read (encrypted).
        host: Option<HostOffset>,
        /// The host file has a hole there, so the bytes read as zeros.
        hole: bool,
    },
    /// Compressed clusters.
    Compressed,
    /// Reads as zeros, and says so itself instead of deferring to a backing file.
    Zero {
        /// The host space reserved for the run, if any.
        host: Option<HostOffset>,
    },
    /// In no layer of the chain: reads as zeros.
    Unallocated {
        /// The host space reserved for the run, if any (a subcluster without data).
        host: Option<HostOffset>,
    },
}

/// A run of guest bytes stored alike, in one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub start: GuestOffset,
    /// Number of bytes, at least 1.
    pub length: ByteCount,
    /// Which layer holds the run: 0 is the image itself, 1 its backing file, and so on. For
    /// [`ExtentKind::Unallocated`] the last layer that was asked.
    pub depth: u32,
    /// How the run is stored.
    pub kind: ExtentKind,
}

impl Extent {
    /// Whether the run is known to read as zeros without reading it.
    #[must_use]
    pub fn reads_as_zero(&self) -> bool {
        match self.kind {
            ExtentKind::Zero { .. } | ExtentKind::Unallocated { .. } => true,
            ExtentKind::Data { hole, .. } => hole,
            ExtentKind::Compressed => false,
        }
    }

    /// Whether `next`, the extent behind this one, is stored alike and right behind it.
    #[must_use]
    pub fn is_continued_by(&self, next: &Self) -> bool {
        let behind = |host: Option<HostOffset>| host.map(|host| host + self.length);
        let stored_behind = match (self.kind, next.kind) {
            (ExtentKind::Data { host, hole }, ExtentKind::Data { host: other, hole: next }) => {
                hole == next && behind(host) == other
            }
            (ExtentKind::Zero { host }, ExtentKind::Zero { host: other })
            | (ExtentKind::Unallocated { host }, ExtentKind::Unallocated { host: other }) => {
                behind(host) == other
            }
            (ExtentKind::Compressed, ExtentKind::Compressed) => true,
            _ => false,
        };
        stored_behind && self.depth == next.depth && self.start + self.length == next.start
    }
}
