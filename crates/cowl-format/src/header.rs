//! The image header in host cluster 0.
//!
//! | offset | length | field                        | since |
//! |--------|--------|------------------------------|-------|
//! |      0 |      4 | magic `QFI\xfb`              | 2     |
//! |      4 |      4 | version, 2 or 3              | 2     |
//! |      8 |      8 | backing file name: offset    | 2     |
//! |     16 |      4 | backing file name: length    | 2     |
//! |     20 |      4 | cluster bits                 | 2     |
//! |     24 |      8 | virtual size in bytes        | 2     |
//! |     32 |      4 | encryption method            | 2     |
//! |     36 |      4 | L1 entries                   | 2     |
//! |     40 |      8 | L1 table offset              | 2     |
//! |     48 |      8 | refcount table offset        | 2     |
//! |     56 |      4 | refcount table clusters      | 2     |
//! |     60 |      4 | number of snapshots          | 2     |
//! |     64 |      8 | snapshot table offset        | 2     |
//! |     72 |      8 | incompatible features        | 3     |
//! |     80 |      8 | compatible features          | 3     |
//! |     88 |      8 | autoclear features           | 3     |
//! |     96 |      4 | refcount order               | 3     |
//! |    100 |      4 | header length                | 3     |
//! |    104 |      1 | compression type             | 3, when the length covers it |
//! |    105 |      7 | zero padding                 | 3     |
//!
//! Bytes between 112 and the header length belong to a newer version: they are kept. Extensions
//! follow the header (at 72 in version 2), then the backing file name.
//!
//! [`UncheckedHeader`] holds the fields as read. Only [`UncheckedHeader::validate`] makes a
//! [`Header`].
//!
//! Not here: whether the tables that the header names exist or overlap in the file.

mod layout;
mod unchecked;

use crate::bytes::{put32, put64};
use crate::extension::{Extension, ExtensionKind};
use crate::header::layout::{
    AUTOCLEAR_OFFSET, BACKING_LENGTH_OFFSET, BACKING_OFFSET_OFFSET, CLUSTER_BITS_OFFSET,
    COMPATIBLE_OFFSET, COMPRESSION_TYPE_OFFSET, CRYPT_METHOD_OFFSET, HEADER_LEN_V2, HEADER_LEN_V3,
    HEADER_LENGTH_OFFSET, HEADER_LENGTH_V2, HEADER_LENGTH_V3, INCOMPATIBLE_OFFSET,
    L1_ENTRIES_OFFSET, L1_OFFSET_OFFSET, REFCOUNT_ORDER_OFFSET, REFCOUNT_TABLE_CLUSTERS_OFFSET,
    REFCOUNT_TABLE_OFFSET_OFFSET, SIZE_OFFSET, SNAPSHOT_COUNT_OFFSET, SNAPSHOT_OFFSET_OFFSET,
    VERSION_OFFSET,
};
use crate::limits::{BACKING_NAME_BYTES_MAX, REFCOUNT_ORDER_V2};
use crate::{
    AutoclearFeatures, BitmapsExtension, ByteCount, CompatibleFeatures, Corruption,
    CryptoHeaderPointer, FeatureNameTable, Geometry, HostOffset, IncompatibleFeatures, Table,
};
pub use unchecked::UncheckedHeader;

/// The first four bytes of every image.
pub const MAGIC: [u8; 4] = *b"QFI\xfb";

/// Version of the format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `compat=0.10`: no feature bits, no zero clusters, 16-bit refcounts.
    V2,
    /// `compat=1.1`.
    V3,
}

/// How guest data is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CryptMethod {
    /// Not at all.
    None,
    /// The legacy AES-CBC scheme.
    Aes,
    /// LUKS.
    Luks,
}

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompressionType {
    /// Raw deflate with a 12-bit window.
    Zlib,
    /// Zstandard frames.
    Zstd,
}

/// The backing file as the image names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingReference {
    /// The name: a path or something QEMU understands. Bytes of a stranger.
    pub name: Vec<u8>,
}

/// A part of the header that can be updated on its own: it lies within one 512-byte sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderField {
    /// Virtual size.
    Size,
    /// L1 entries and offset.
    L1Table,
    /// Refcount table offset and clusters.
    RefcountTable,
    /// Snapshot count and offset.
    Snapshots,
    /// Incompatible feature bits.
    IncompatibleFeatures,
    /// Autoclear feature bits.
    AutoclearFeatures,
}

/// A header whose rules hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version of the format.
    pub version: Version,
    /// Cluster size and entry widths.
    pub geometry: Geometry,
    /// The size field as stored; see [`Self::virtual_size`].
    pub size: ByteCount,
    /// Encryption of guest data.
    pub crypt_method: CryptMethod,
    /// Entries of the active L1 table: at least what `size` needs, maybe more.
    pub l1_entries: u32,
    /// Start of the active L1 table.
    pub l1_offset: HostOffset,
    /// Start of the refcount table.
    pub refcount_table_offset: HostOffset,
    /// Clusters of the refcount table.
    pub refcount_table_clusters: u32,
    /// Number of internal snapshots.
    pub snapshot_count: u32,
    /// Start of the snapshot table.
    pub snapshot_offset: HostOffset,
    /// Feature bits that refuse the image when unknown.
    pub incompatible: IncompatibleFeatures,
    /// Feature bits to ignore when unknown.
    pub compatible: CompatibleFeatures,
    /// Feature bits to clear when unknown.
    pub autoclear: AutoclearFeatures,
    /// Compression of compressed clusters.
    pub compression_type: CompressionType,
    /// Header bytes from 112 on: fields of a newer version, kept as they are.
    pub unknown_fields: Vec<u8>,
    /// The backing file, if any.
    pub backing: Option<BackingReference>,
    /// The backing file's format as named by the image.
    pub backing_format: Option<Vec<u8>>,
    /// The external data file's name.
    pub data_file_name: Option<Vec<u8>>,
    /// Where the LUKS header is; present exactly with [`CryptMethod::Luks`].
    pub crypto_header: Option<CryptoHeaderPointer>,
    /// Names of feature bits.
    pub feature_names: Option<FeatureNameTable>,
    /// The bitmaps extension, or what is wrong with it.
    pub bitmaps: Option<Result<BitmapsExtension, Corruption>>,
    /// Extensions of a newer version, kept in order.
    pub unknown_extensions: Vec<Extension>,
}

impl Header {
    /// Decodes and validates in one step.
    pub fn decode(cluster0: &[u8]) -> Result<Self, Corruption> {
        UncheckedHeader::decode(cluster0)?.validate(cluster0)
    }

    /// The size of the disk: whole 512-byte sectors, as QEMU rounds it.
    #[must_use]
    pub fn virtual_size(&self) -> ByteCount {
        ByteCount::new(self.size.get() & !511)
    }

    /// Whether guest data lives in a separate file.
    #[must_use]
    pub fn has_data_file(&self) -> bool {
        self.incompatible.contains(IncompatibleFeatures::DATA_FILE)
    }

    /// Whether that separate file is a raw image by itself.
    #[must_use]
    pub fn has_raw_data_file(&self) -> bool {
        self.has_data_file() && self.autoclear.contains(AutoclearFeatures::RAW_DATA_FILE)
    }

    /// Bytes of the refcount table.
    #[must_use]
    pub fn refcount_table_bytes(&self) -> ByteCount {
        ByteCount::new(u64::from(self.refcount_table_clusters) * self.geometry.cluster_size())
    }

    /// Length of the fixed part in bytes.
    #[must_use]
    pub fn header_length(&self) -> u32 {
        match self.version {
            Version::V2 => HEADER_LENGTH_V2,
            Version::V3 => {
                let tail = u32::try_from(self.unknown_fields.len()).expect("within cluster 0");
                HEADER_LENGTH_V3 + tail
            }
        }
    }

    /// The tables that the header names and that overlap each other or cluster 0, first one first.
    ///
    /// `validate` leaves this out because a checker has to open such an image to report it.
    pub fn check_overlap(&self) -> Result<(), Corruption> {
        let cluster = self.geometry.cluster_size();
        let mut areas = vec![(Table::Refcount, 0, cluster)];
        let l1_bytes = u64::from(self.l1_entries) * 8;
        let candidates = [
            (Table::Refcount, self.refcount_table_offset, self.refcount_table_bytes().get()),
            (Table::ActiveL1, self.l1_offset, l1_bytes),
            (Table::Snapshot, self.snapshot_offset, u64::from(self.snapshot_count) * 40),
        ];
        for (table, offset, bytes) in candidates {
            if bytes == 0 {
                continue;
            }
            let (start, end) = (offset.get(), offset.get() + bytes);
            if areas.iter().any(|&(_, other, other_end)| start < other_end && other < end) {
                return Err(Corruption::TableOverlap { table, offset: start });
            }
            areas.push((table, start, end));
        }
        Ok(())
    }

    /// The header, its extensions and the backing file name: the bytes at the start of the file.
    ///
    /// Extensions come in QEMU's order, unknown ones last. `None` when they do not fit in cluster
    /// 0.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; HEADER_LEN_V3];
        self.encode_fixed(&mut bytes);
        bytes.truncate(if self.version == Version::V2 { HEADER_LEN_V2 } else { HEADER_LEN_V3 });
        bytes.extend(&self.unknown_fields);
        for extension in self.extensions() {
            extension.encode(&mut bytes);
        }
        Extension::encode_end(&mut bytes);
        if let Some(backing) = &self.backing {
            let length = u32::try_from(backing.name.len()).ok()?;
            assert!(length <= BACKING_NAME_BYTES_MAX);
            let offset = bytes.len() as u64;
            put64(&mut bytes, BACKING_OFFSET_OFFSET, offset);
            put32(&mut bytes, BACKING_LENGTH_OFFSET, length);
            bytes.extend(&backing.name);
        }
        (bytes.len() <= self.geometry.cluster_len()).then_some(bytes)
    }

    fn extensions(&self) -> Vec<Extension> {
        let record = |kind, payload: Vec<u8>| Extension { kind, payload };
        let mut all = Vec::new();
        if let Some(format) = &self.backing_format {
            all.push(record(ExtensionKind::BackingFormat, format.clone()));
        }
        if let Some(name) = &self.data_file_name {
            all.push(record(ExtensionKind::DataFileName, name.clone()));
        }
        if let Some(pointer) = &self.crypto_header {
            all.push(record(ExtensionKind::CryptoHeader, pointer.encode()));
        }
        if let Some(names) = &self.feature_names {
            all.push(record(ExtensionKind::FeatureNames, names.encode()));
        }
        if let Some(Ok(bitmaps)) = &self.bitmaps {
            all.push(record(ExtensionKind::Bitmaps, bitmaps.encode()));
        }
        all.extend(self.unknown_extensions.iter().cloned());
        all
    }

    fn encode_fixed(&self, bytes: &mut [u8]) {
        self.assert_rules();
        bytes[..4].copy_from_slice(&MAGIC);
        put32(bytes, VERSION_OFFSET, if self.version == Version::V2 { 2 } else { 3 });
        put32(bytes, CLUSTER_BITS_OFFSET, self.geometry.cluster_bits());
        put64(bytes, SIZE_OFFSET, self.size.get());
        let crypt_method = match self.crypt_method {
            CryptMethod::None => 0,
            CryptMethod::Aes => 1,
            CryptMethod::Luks => 2,
        };
        put32(bytes, CRYPT_METHOD_OFFSET, crypt_method);
        put32(bytes, L1_ENTRIES_OFFSET, self.l1_entries);
        put64(bytes, L1_OFFSET_OFFSET, self.l1_offset.get());
        put64(bytes, REFCOUNT_TABLE_OFFSET_OFFSET, self.refcount_table_offset.get());
        put32(bytes, REFCOUNT_TABLE_CLUSTERS_OFFSET, self.refcount_table_clusters);
        put32(bytes, SNAPSHOT_COUNT_OFFSET, self.snapshot_count);
        put64(bytes, SNAPSHOT_OFFSET_OFFSET, self.snapshot_offset.get());
        if self.version == Version::V2 {
            return;
        }
        put64(bytes, INCOMPATIBLE_OFFSET, self.incompatible.bits());
        put64(bytes, COMPATIBLE_OFFSET, self.compatible.bits());
        put64(bytes, AUTOCLEAR_OFFSET, self.autoclear.bits());
        put32(bytes, REFCOUNT_ORDER_OFFSET, self.geometry.refcount_order());
        put32(bytes, HEADER_LENGTH_OFFSET, self.header_length());
        bytes[COMPRESSION_TYPE_OFFSET] = match self.compression_type {
            CompressionType::Zlib => 0,
            CompressionType::Zstd => 1,
        };
    }

    fn assert_rules(&self) {
        let geometry = self.geometry;
        let zstd = self.compression_type == CompressionType::Zstd;
        assert_eq!(self.incompatible.contains(IncompatibleFeatures::COMPRESSION_TYPE), zstd);
        let extended = self.incompatible.contains(IncompatibleFeatures::EXTENDED_L2);
        assert_eq!(extended, geometry.has_extended_l2());
        assert!(geometry.is_cluster_aligned(self.l1_offset.get()));
        assert!(geometry.is_cluster_aligned(self.refcount_table_offset.get()));
        assert!(geometry.is_cluster_aligned(self.snapshot_offset.get()));
        assert_eq!(self.crypt_method == CryptMethod::Luks, self.crypto_header.is_some());
        if self.version == Version::V2 {
            assert_eq!(geometry.refcount_order(), u32::from(REFCOUNT_ORDER_V2));
            assert_eq!(self.incompatible.bits(), 0);
            assert!(self.unknown_fields.is_empty());
        }
    }

    /// Where a field group lies and its new bytes, for an update that touches one sector only.
    #[must_use]
    pub fn encode_field(&self, field: HeaderField) -> (HostOffset, Vec<u8>) {
        let mut bytes = vec![0; HEADER_LEN_V3];
        self.encode_fixed(&mut bytes);
        let range = match field {
            HeaderField::Size => SIZE_OFFSET..CRYPT_METHOD_OFFSET,
            HeaderField::L1Table => L1_ENTRIES_OFFSET..REFCOUNT_TABLE_OFFSET_OFFSET,
            HeaderField::RefcountTable => REFCOUNT_TABLE_OFFSET_OFFSET..SNAPSHOT_COUNT_OFFSET,
            HeaderField::Snapshots => SNAPSHOT_COUNT_OFFSET..HEADER_LEN_V2,
            HeaderField::IncompatibleFeatures => INCOMPATIBLE_OFFSET..COMPATIBLE_OFFSET,
            HeaderField::AutoclearFeatures => AUTOCLEAR_OFFSET..REFCOUNT_ORDER_OFFSET,
        };
        (HostOffset::new(range.start as u64), bytes[range].to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::{CompressionType, CryptMethod, Header, HeaderField, UncheckedHeader, Version};
    use crate::{
        AutoclearFeatures, BackingReference, ByteCount, CompatibleFeatures, Corruption, Extension,
        ExtensionKind, FeatureNameTable, Geometry, HostOffset, IncompatibleFeatures, Table,
    };

    fn sample() -> Header {
        Header {
            version: Version::V3,
            geometry: Geometry::new(16, 4, false).unwrap(),
            size: ByteCount::new(1 << 30),
            crypt_method: CryptMethod::None,
            l1_entries: 2,
            l1_offset: HostOffset::new(0x30000),
            refcount_table_offset: HostOffset::new(0x10000),
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshot_offset: HostOffset::ZERO,
            incompatible: IncompatibleFeatures::NONE,
            compatible: CompatibleFeatures::NONE,
            autoclear: AutoclearFeatures::NONE,
            compression_type: CompressionType::Zlib,
            unknown_fields: Vec::new(),
            backing: None,
            backing_format: None,
            data_file_name: None,
            crypto_header: None,
            feature_names: Some(FeatureNameTable::standard()),
            bitmaps: None,
            unknown_extensions: Vec::new(),
        }
    }

    fn bytes_of(header: &Header) -> Vec<u8> {
        let mut bytes = header.encode().unwrap();
        bytes.resize(header.geometry.cluster_len(), 0);
        bytes
    }

    #[track_caller]
    fn refused(at: usize, value: &[u8], expected: Corruption) {
        let mut bytes = bytes_of(&sample());
        bytes[at..at + value.len()].copy_from_slice(value);
        assert_eq!(Header::decode(&bytes), Err(expected));
    }

    #[test]
    fn version_3_header_round_trips_with_everything_unknown_kept() {
        let mut header = sample();
        header.unknown_fields = vec![1, 2, 3, 4, 5, 6, 7, 8];
        header.compatible = CompatibleFeatures::from_bits(1 << 50);
        header.autoclear = AutoclearFeatures::from_bits(1 << 51);
        header.backing = Some(BackingReference { name: b"base.qcow2".to_vec() });
        header.backing_format = Some(b"qcow2".to_vec());
        let unknown = Extension { kind: ExtensionKind::Unknown(0x1234_5678), payload: vec![9; 13] };
        header.unknown_extensions = vec![unknown];
        assert_eq!(Header::decode(&bytes_of(&header)).unwrap(), header);
    }

    #[test]
    fn version_2_header_round_trips_with_extensions_at_72() {
        let mut header = sample();
        header.version = Version::V2;
        header.feature_names = None;
        header.backing_format = Some(b"raw".to_vec());
        let bytes = bytes_of(&header);
        assert_eq!(&bytes[72..76], &0xe279_2aca_u32.to_be_bytes());
        assert_eq!(Header::decode(&bytes).unwrap(), header);
    }

    #[test]
    fn each_broken_rule_is_named() {
        refused(0, b"QFI\xfa", Corruption::NotQcow2);
        refused(4, &4_u32.to_be_bytes(), Corruption::UnsupportedVersion { version: 4 });
        refused(8, &65_537_u64.to_be_bytes(), Corruption::BackingOffset { offset: 65_537 });
        refused(8, &64_u64.to_be_bytes(), Corruption::BackingOffset { offset: 64 });
        refused(20, &8_u32.to_be_bytes(), Corruption::ClusterBits { bits: 8 });
        refused(24, &(1_u64 << 31).to_be_bytes(), Corruption::L1TooSmall { entries: 2, needed: 4 });
        refused(32, &3_u32.to_be_bytes(), Corruption::CryptMethod { method: 3 });
        refused(32, &2_u32.to_be_bytes(), Corruption::CryptoHeaderMissing);
        let table = Table::ActiveL1;
        let bytes = 8 * 4_194_305;
        refused(36, &4_194_305_u32.to_be_bytes(), Corruption::TableTooLarge { table, bytes });
        refused(40, &7_u64.to_be_bytes(), Corruption::TableOffset { table, offset: 7 });
        refused(100, &96_u32.to_be_bytes(), Corruption::HeaderTooShort { length: 96 });
        refused(100, &65_544_u32.to_be_bytes(), Corruption::HeaderTooLong { length: 65_544 });
        refused(100, &105_u32.to_be_bytes(), Corruption::HeaderLengthUnaligned { length: 105 });
        refused(96, &7_u32.to_be_bytes(), Corruption::RefcountOrder { order: 7 });
        refused(60, &65_537_u32.to_be_bytes(), Corruption::SnapshotCount { count: 65_537 });
        refused(104, &[1], Corruption::CompressionTypeBit { compression_type: 1, bit_set: false });
        refused(104, &[2], Corruption::CompressionType { compression_type: 2 });
        let names = "Unknown incompatible feature: 8000000000000000".to_owned();
        refused(72, &(1_u64 << 63).to_be_bytes(), Corruption::UnknownIncompatible { names });
    }

    #[test]
    fn a_104_byte_header_has_no_compression_type() {
        let mut bytes = bytes_of(&sample());
        bytes[100..104].copy_from_slice(&104_u32.to_be_bytes());
        bytes[104..].fill(0);
        // The first extension byte is where newer headers keep the compression type.
        bytes[104..112].copy_from_slice(&[0x01, 0, 0, 0, 0, 0, 0, 0]);
        let header = Header::decode(&bytes).unwrap();
        assert_eq!(header.compression_type, CompressionType::Zlib);
    }

    #[test]
    fn a_partial_read_is_told_how_much_more_to_read() {
        let bytes = bytes_of(&sample());
        let error = UncheckedHeader::decode(&bytes[..120]).unwrap().validate(&bytes[..120]);
        let Err(Corruption::HeaderTruncated { needed }) = error else { panic!("{error:?}") };
        assert!(needed.as_usize() > 120);
    }

    #[test]
    fn overlapping_tables_are_found() {
        let mut header = sample();
        assert_eq!(header.check_overlap(), Ok(()));
        header.l1_offset = header.refcount_table_offset;
        let error = Corruption::TableOverlap { table: Table::ActiveL1, offset: 0x10000 };
        assert_eq!(header.check_overlap(), Err(error));
    }

    #[test]
    fn field_updates_stay_inside_the_first_sector() {
        let header = sample();
        for field in [
            HeaderField::Size,
            HeaderField::L1Table,
            HeaderField::RefcountTable,
            HeaderField::Snapshots,
            HeaderField::IncompatibleFeatures,
            HeaderField::AutoclearFeatures,
        ] {
            let (at, bytes) = header.encode_field(field);
            let start = at.since(HostOffset::ZERO).as_usize();
            assert_eq!(bytes_of(&header)[start..start + bytes.len()], bytes[..]);
        }
    }

    #[test]
    fn truncated_headers_never_panic() {
        let bytes = bytes_of(&sample());
        for length in 0..bytes.len().min(700) {
            assert!(Header::decode(&bytes[..length]).is_err() || length >= 120);
        }
    }
}
