//! What an I/O is for.

/// Names the reason of one I/O. Fault injection, traces and statistics select by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Purpose {
    /// The image header and its extensions, read at open or written at create.
    Header,
    /// A small change inside the header's first sector.
    HeaderUpdate,
    /// The active L1 table.
    L1Table,
    /// One or more L2 entries (a slice of an L2 table).
    L2Table,
    /// The refcount table.
    RefcountTable,
    /// A refcount block.
    RefcountBlock,
    /// The snapshot table or the L1 table of a snapshot.
    Snapshot,
    /// The bitmap directory, a bitmap table or bitmap data.
    Bitmap,
    /// The LUKS header area.
    CryptoHeader,
    /// Guest data of an uncompressed cluster.
    GuestData,
    /// A compressed cluster.
    CompressedData,
    /// Guest data read from a layer below.
    BackingData,
    /// Preallocation: space reserved, content still zero.
    Preallocation,
    /// The length of the file.
    FileLength,
    /// A durable barrier.
    Barrier,
}

impl Purpose {
    /// The name in traces and fault rules.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::HeaderUpdate => "header-update",
            Self::L1Table => "l1-table",
            Self::L2Table => "l2-table",
            Self::RefcountTable => "refcount-table",
            Self::RefcountBlock => "refcount-block",
            Self::Snapshot => "snapshot",
            Self::Bitmap => "bitmap",
            Self::CryptoHeader => "crypto-header",
            Self::GuestData => "guest-data",
            Self::CompressedData => "compressed-data",
            Self::BackingData => "backing-data",
            Self::Preallocation => "preallocation",
            Self::FileLength => "file-length",
            Self::Barrier => "barrier",
        }
    }
}

impl core::fmt::Display for Purpose {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}
