//! What is wrong with an image, and where.
//!
//! The wording follows QEMU's where QEMU has a message, because scripts match on it. Tests match on
//! the variants.

use core::fmt;

use crate::{ByteCount, GuestOffset, HostOffset};

/// What kind of trouble a [`Corruption`] is, for exit codes and errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CorruptionClass {
    /// Not a qcow2 image at all.
    NotQcow2,
    /// The bytes break a rule of the format.
    Malformed,
    /// A number is over its limit.
    TooLarge,
    /// Valid, but nothing this version can handle.
    Unsupported,
}

/// The tables that the header names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The active L1 table.
    ActiveL1,
    /// The refcount table.
    Refcount,
    /// The snapshot table.
    Snapshot,
    /// The L1 table of a snapshot.
    SnapshotL1,
    /// The bitmap directory.
    BitmapDirectory,
    /// The table of one bitmap.
    Bitmap,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ActiveL1 => "Active L1 table",
            Self::Refcount => "Reference count table",
            Self::Snapshot => "Snapshot table",
            Self::SnapshotL1 => "Snapshot L1 table",
            Self::BitmapDirectory => "Bitmap directory",
            Self::Bitmap => "Bitmap table",
        })
    }
}

/// A rule of the format that an image breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message of each variant says what its fields mean")]
pub enum Corruption {
    // The header.
    NotQcow2,
    UnsupportedVersion {
        version: u32,
    },
    /// More bytes of the file are needed to decode the header: not a fault by itself.
    HeaderTruncated {
        needed: ByteCount,
    },
    ClusterBits {
        bits: u32,
    },
    ExtendedL2ClusterBits {
        bits: u32,
    },
    HeaderTooShort {
        length: u32,
    },
    HeaderTooLong {
        length: u32,
    },
    HeaderLengthUnaligned {
        length: u32,
    },
    UnknownIncompatible {
        names: String,
    },
    RefcountOrder {
        order: u32,
    },
    CryptMethod {
        method: u32,
    },
    CompressionType {
        compression_type: u8,
    },
    CompressionTypeBit {
        compression_type: u8,
        bit_set: bool,
    },
    BackingOffset {
        offset: u64,
    },
    BackingNameLength {
        length: u32,
    },
    BackingName {
        reason: &'static str,
    },
    BackingWithRawDataFile,
    RawDataFileWithoutDataFile,
    TableTooLarge {
        table: Table,
        bytes: u64,
    },
    TableOffset {
        table: Table,
        offset: u64,
    },
    TableOverlap {
        table: Table,
        offset: u64,
    },
    NoRefcountTable,
    ImageTooBig {
        size: u64,
    },
    L1TooSmall {
        entries: u32,
        needed: u64,
    },
    SnapshotCount {
        count: u32,
    },
    // Header extensions.
    ExtensionTooLarge {
        kind: u32,
        length: u32,
    },
    ExtensionLength {
        name: &'static str,
        length: u32,
        expected: u32,
    },
    ExtensionDuplicate {
        kind: u32,
    },
    ExtensionCount,
    BackingFormatLength {
        length: u32,
    },
    ExtensionText {
        name: &'static str,
        reason: &'static str,
    },
    DataFileNameLength {
        length: u32,
    },
    CryptoHeaderUnexpected,
    CryptoHeaderMissing,
    CryptoHeaderOffset {
        offset: u64,
        cluster_size: u64,
    },
    CryptoHeaderRange {
        offset: u64,
        length: u64,
    },
    // Mapping.
    L1EntryReserved {
        entry: u64,
    },
    L2TableUnaligned {
        offset: u64,
    },
    DataUnaligned {
        host: u64,
        guest: GuestOffset,
    },
    ZeroFlagInVersion2 {
        guest: GuestOffset,
    },
    SubclusterBitmap {
        guest: GuestOffset,
        bitmap: u64,
    },
    CompressedCopied {
        entry: u64,
    },
    CompressedWithDataFile {
        guest: GuestOffset,
    },
    CompressedOffset {
        guest: GuestOffset,
        offset: u64,
    },
    DataFileOffset {
        guest: GuestOffset,
        host: u64,
    },
    PastEndOfFile {
        what: &'static str,
        at: HostOffset,
        file: ByteCount,
    },
    PointsIntoMetadata {
        what: &'static str,
        at: HostOffset,
    },
    Inflate {
        guest: GuestOffset,
        at: HostOffset,
        reason: &'static str,
    },
    // Refcounts.
    RefcountTableEntryReserved {
        index: u32,
        entry: u64,
    },
    RefcountBlockUnaligned {
        offset: u64,
    },
    // Snapshots.
    SnapshotTableTruncated {
        snapshot: u32,
    },
    SnapshotExtra {
        snapshot: u32,
        length: u32,
    },
    SnapshotName {
        snapshot: u32,
    },
    SnapshotL1 {
        snapshot: u32,
        table: u64,
    },
    // Bitmaps.
    BitmapExtensionReserved,
    BitmapCount {
        count: u32,
    },
    BitmapDirectorySize {
        bytes: u64,
    },
    BitmapDirectory {
        bitmap: u32,
        reason: &'static str,
    },
    BitmapTableEntry {
        entry: u64,
    },
}

impl Corruption {
    /// What kind of trouble this is.
    #[must_use]
    pub fn class(&self) -> CorruptionClass {
        match self {
            Self::NotQcow2 => CorruptionClass::NotQcow2,
            Self::UnsupportedVersion { .. }
            | Self::UnknownIncompatible { .. }
            | Self::CompressionType { .. } => CorruptionClass::Unsupported,
            Self::TableTooLarge { .. }
            | Self::ImageTooBig { .. }
            | Self::SnapshotCount { .. }
            | Self::BitmapDirectorySize { .. } => CorruptionClass::TooLarge,
            _ => CorruptionClass::Malformed,
        }
    }

    /// The error number for it: EINVAL, EFBIG or ENOTSUP.
    #[must_use]
    pub fn errno(&self) -> i32 {
        match self.class() {
            CorruptionClass::NotQcow2 | CorruptionClass::Malformed => 22,
            CorruptionClass::TooLarge => 27,
            CorruptionClass::Unsupported => 95,
        }
    }
}

impl core::error::Error for Corruption {}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotQcow2 => write!(f, "Image is not in qcow2 format"),
            Self::UnsupportedVersion { version } => {
                write!(f, "Unsupported qcow2 version {version}")
            }
            Self::HeaderTruncated { needed } => {
                write!(f, "the header needs {needed} bytes of the file")
            }
            Self::ClusterBits { bits } => write!(f, "Unsupported cluster size: 2^{bits}"),
            Self::ExtendedL2ClusterBits { bits } => {
                write!(f, "extended L2 entries need clusters of at least 16384 bytes, not 2^{bits}")
            }
            Self::HeaderTooShort { .. } => write!(f, "qcow2 header too short"),
            Self::HeaderTooLong { .. } => write!(f, "qcow2 header exceeds cluster size"),
            Self::HeaderLengthUnaligned { length } => {
                write!(f, "qcow2 header length {length} is not a multiple of 8")
            }
            Self::UnknownIncompatible { names } => {
                write!(f, "Unsupported qcow2 feature(s): {names}")
            }
            Self::RefcountOrder { .. } => {
                write!(f, "Reference count entry width too large; may not exceed 64 bits")
            }
            Self::CryptMethod { method } => write!(f, "Unsupported encryption method {method}"),
            Self::CompressionType { compression_type } => {
                write!(f, "qcow2: unknown compression type: {compression_type}")
            }
            Self::CompressionTypeBit { bit_set: true, .. } => {
                write!(f, "qcow2: Compression type incompatible feature bit must not be set")
            }
            Self::CompressionTypeBit { .. } => {
                write!(f, "qcow2: Compression type incompatible feature bit must be set")
            }
            Self::BackingOffset { .. } => write!(f, "Invalid backing file offset"),
            Self::BackingNameLength { .. } => write!(f, "Backing file name too long"),
            Self::BackingName { reason } => write!(f, "Invalid backing file name: {reason}"),
            Self::BackingWithRawDataFile => {
                write!(f, "a raw external data file excludes a backing file")
            }
            Self::RawDataFileWithoutDataFile => {
                write!(f, "the raw external data bit is set without an external data file")
            }
            Self::TableTooLarge { table, .. } => write!(f, "{table} too large"),
            Self::TableOffset { table, .. } => write!(f, "{table} offset invalid"),
            Self::TableOverlap { table, offset } => {
                write!(f, "{table} at {offset:#x} overlaps other metadata")
            }
            Self::NoRefcountTable => write!(f, "Image does not contain a reference count table"),
            Self::ImageTooBig { .. } => write!(f, "Image is too big"),
            Self::L1TooSmall { .. } => write!(f, "L1 table is too small"),
            Self::SnapshotCount { .. } => write!(f, "Snapshot table too large"),
            Self::ExtensionTooLarge { .. } => write!(f, "Header extension too large"),
            Self::ExtensionLength { name, length, expected } => {
                write!(f, "{name} header extension has {length} bytes, but {expected} are expected")
            }
            Self::ExtensionDuplicate { kind } => {
                write!(f, "header extension {kind:#010x} appears twice")
            }
            Self::ExtensionCount => write!(f, "too many header extensions"),
            Self::BackingFormatLength { length } => {
                write!(f, "ERROR: ext_backing_format: len={length} too large (>=16)")
            }
            Self::ExtensionText { name, reason } => write!(f, "invalid {name}: {reason}"),
            Self::DataFileNameLength { length } => {
                write!(f, "the name of the external data file has {length} bytes, too many")
            }
            Self::CryptoHeaderUnexpected => {
                write!(f, "CRYPTO header extension only expected with LUKS encryption method")
            }
            Self::CryptoHeaderMissing => {
                write!(f, "LUKS encryption without a CRYPTO header extension")
            }
            Self::CryptoHeaderOffset { offset, cluster_size } => write!(
                f,
                "Encryption header offset '{offset}' is not a multiple of cluster size \
                 '{cluster_size}'"
            ),
            Self::CryptoHeaderRange { offset, length } => {
                write!(f, "encryption header at {offset:#x} ({length} bytes) lies outside the file")
            }
            Self::L1EntryReserved { entry } => {
                write!(f, "L1 entry {entry:#x} has reserved bits set")
            }
            Self::L2TableUnaligned { offset } => {
                write!(f, "L2 table offset {offset:#x} unaligned")
            }
            Self::DataUnaligned { host, guest } => {
                write!(
                    f,
                    "Cluster allocation offset {host:#x} unaligned (guest offset: {guest:#x})"
                )
            }
            Self::ZeroFlagInVersion2 { guest } => {
                write!(f, "Zero cluster entry found in pre-v3 image (guest offset: {guest:#x})")
            }
            Self::SubclusterBitmap { guest, bitmap } => {
                write!(f, "Invalid subcluster bitmap {bitmap:#018x} (guest offset: {guest:#x})")
            }
            Self::CompressedCopied { entry } => {
                write!(f, "compressed entry {entry:#x} has the copied flag")
            }
            Self::CompressedWithDataFile { guest } => write!(
                f,
                "Compressed cluster entry found in image with external data file (guest offset: \
                 {guest:#x})"
            ),
            Self::CompressedOffset { guest, offset } => write!(
                f,
                "compressed cluster lies at {offset:#x}, past 2^56 (guest offset: {guest:#x})"
            ),
            Self::DataFileOffset { guest, host } => write!(
                f,
                "External data file host cluster offset {host:#x} does not match guest cluster \
                 offset: {guest:#x}"
            ),
            Self::PastEndOfFile { what, at, file } => {
                write!(f, "{what} at {at:#x} lies past the end of the file ({file} bytes)")
            }
            Self::PointsIntoMetadata { what, at } => {
                write!(f, "{what} at {at:#x} overlaps other metadata")
            }
            Self::Inflate { guest, at, reason } => write!(
                f,
                "compressed cluster at {at:#x} cannot be decompressed: {reason} (guest offset: \
                 {guest:#x})"
            ),
            Self::RefcountTableEntryReserved { index, entry } => {
                write!(f, "refcount table entry {index} ({entry:#x}) has reserved bits set")
            }
            Self::RefcountBlockUnaligned { offset } => {
                write!(f, "Refblock offset {offset:#x} unaligned")
            }
            Self::SnapshotTableTruncated { snapshot } => {
                write!(f, "the snapshot table ends inside snapshot {snapshot}")
            }
            Self::SnapshotExtra { snapshot, .. } => {
                write!(f, "Too much extra metadata in snapshot table entry {snapshot}")
            }
            Self::SnapshotName { snapshot } => {
                write!(f, "the name or ID of snapshot {snapshot} is not text")
            }
            Self::SnapshotL1 { snapshot, table } => {
                write!(f, "the L1 table of snapshot {snapshot} at {table:#x} is invalid")
            }
            Self::BitmapExtensionReserved => write!(f, "bitmaps_ext: Reserved field is not zero"),
            Self::BitmapCount { count } => {
                write!(f, "bitmaps_ext: invalid number of bitmaps ({count})")
            }
            Self::BitmapDirectorySize { bytes } => {
                write!(f, "bitmaps_ext: bitmap directory size ({bytes}) exceeds the maximum")
            }
            Self::BitmapDirectory { bitmap, reason } => {
                write!(f, "bitmap directory entry {bitmap}: {reason}")
            }
            Self::BitmapTableEntry { entry } => write!(f, "invalid bitmap table entry {entry:#x}"),
        }
    }
}
