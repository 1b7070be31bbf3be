//! The header's fields as read from a file, and the rules that make a [`Header`] of them.

use crate::bytes::{be32, be64};
use crate::extension::{Extension, ExtensionKind, KnownExtensions, text_fault};
use crate::header::layout::{
    AUTOCLEAR_OFFSET, BACKING_LENGTH_OFFSET, BACKING_OFFSET_OFFSET, CLUSTER_BITS_OFFSET,
    COMPATIBLE_OFFSET, COMPRESSION_TYPE_OFFSET, CRYPT_METHOD_OFFSET, HEADER_LEN_V2, HEADER_LEN_V3,
    HEADER_LEN_V3_MIN, HEADER_LENGTH_OFFSET, HEADER_LENGTH_V2, INCOMPATIBLE_OFFSET,
    L1_ENTRIES_OFFSET, L1_OFFSET_OFFSET, REFCOUNT_ORDER_OFFSET, REFCOUNT_TABLE_CLUSTERS_OFFSET,
    REFCOUNT_TABLE_OFFSET_OFFSET, SIZE_OFFSET, SNAPSHOT_COUNT_OFFSET, SNAPSHOT_OFFSET_OFFSET,
    VERSION_OFFSET,
};
use crate::header::{BackingReference, CompressionType, CryptMethod, Header, MAGIC, Version};
use crate::limits::{
    BACKING_NAME_BYTES_MAX, L1_BYTES_MAX, REFCOUNT_ORDER_V2, REFCOUNT_TABLE_BYTES_MAX,
    SNAPSHOT_COUNT_MAX,
};
use crate::{
    AutoclearFeatures, ByteCount, CompatibleFeatures, Corruption, FeatureClass, FeatureNameTable,
    Geometry, HostOffset, IncompatibleFeatures, Table,
};

/// The header's fields as read, before any rule is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the table in `header.rs` says what each field is")]
pub struct UncheckedHeader {
    pub version: u32,
    pub backing_offset: u64,
    pub backing_length: u32,
    pub cluster_bits: u32,
    pub size: u64,
    pub crypt_method: u32,
    pub l1_entries: u32,
    pub l1_offset: u64,
    pub refcount_table_offset: u64,
    pub refcount_table_clusters: u32,
    pub snapshot_count: u32,
    pub snapshot_offset: u64,
    pub incompatible: u64,
    pub compatible: u64,
    pub autoclear: u64,
    pub refcount_order: u32,
    pub header_length: u32,
    pub compression_type: u8,
}

impl UncheckedHeader {
    /// Bytes that [`Self::decode`] always suffices with.
    pub const LEN: usize = HEADER_LEN_V3;

    /// Reads the fields. Fewer than [`Self::LEN`] bytes count as a file that ends there.
    pub fn decode(bytes: &[u8]) -> Result<Self, Corruption> {
        let mut head = [0; HEADER_LEN_V3];
        let length = bytes.len().min(HEADER_LEN_V3);
        head[..length].copy_from_slice(&bytes[..length]);
        if length < HEADER_LEN_V2 || head[..4] != MAGIC {
            return Err(Corruption::NotQcow2);
        }
        let version = be32(&head, VERSION_OFFSET);
        if !(2..=3).contains(&version) {
            return Err(Corruption::UnsupportedVersion { version });
        }
        let v3 = version == 3;
        let field64 = |at| if v3 { be64(&head, at) } else { 0 };
        let header_length = match v3 {
            true => be32(&head, HEADER_LENGTH_OFFSET),
            false => HEADER_LENGTH_V2,
        };
        let has_compression_type = v3 && header_length as usize > COMPRESSION_TYPE_OFFSET;
        Ok(Self {
            version,
            backing_offset: be64(&head, BACKING_OFFSET_OFFSET),
            backing_length: be32(&head, BACKING_LENGTH_OFFSET),
            cluster_bits: be32(&head, CLUSTER_BITS_OFFSET),
            size: be64(&head, SIZE_OFFSET),
            crypt_method: be32(&head, CRYPT_METHOD_OFFSET),
            l1_entries: be32(&head, L1_ENTRIES_OFFSET),
            l1_offset: be64(&head, L1_OFFSET_OFFSET),
            refcount_table_offset: be64(&head, REFCOUNT_TABLE_OFFSET_OFFSET),
            refcount_table_clusters: be32(&head, REFCOUNT_TABLE_CLUSTERS_OFFSET),
            snapshot_count: be32(&head, SNAPSHOT_COUNT_OFFSET),
            snapshot_offset: be64(&head, SNAPSHOT_OFFSET_OFFSET),
            incompatible: field64(INCOMPATIBLE_OFFSET),
            compatible: field64(COMPATIBLE_OFFSET),
            autoclear: field64(AUTOCLEAR_OFFSET),
            refcount_order: match v3 {
                true => be32(&head, REFCOUNT_ORDER_OFFSET),
                false => u32::from(REFCOUNT_ORDER_V2),
            },
            header_length,
            compression_type: match has_compression_type {
                true => head[COMPRESSION_TYPE_OFFSET],
                false => 0,
            },
        })
    }

    /// Checks every rule that the header alone can break. `cluster0` is the start of the file, as
    /// much of cluster 0 as the caller has read; [`Corruption::HeaderTruncated`] asks for more.
    pub fn validate(self, cluster0: &[u8]) -> Result<Header, Corruption> {
        // The cluster size is needed to judge everything else, the refcount order is judged later,
        // in QEMU's order of checks.
        let sizes = Geometry::new(self.cluster_bits, u32::from(REFCOUNT_ORDER_V2), false)?;
        self.check_lengths(sizes)?;
        let extensions = self.extensions(cluster0, sizes)?;
        self.check_features(&extensions)?;
        let incompatible = IncompatibleFeatures::from_bits(self.incompatible);
        let extended_l2 = incompatible.contains(IncompatibleFeatures::EXTENDED_L2);
        let compression_type = self.check_compression_type(incompatible)?;
        let geometry = Geometry::new(self.cluster_bits, self.refcount_order, extended_l2)?;
        let crypt_method = self.check_crypt_method()?;
        self.check_tables(geometry)?;
        let known = KnownExtensions::sort(extensions, geometry)?;
        match (crypt_method, known.crypto_header.is_some()) {
            (CryptMethod::Luks, false) => return Err(Corruption::CryptoHeaderMissing),
            (CryptMethod::None | CryptMethod::Aes, true) => {
                return Err(Corruption::CryptoHeaderUnexpected);
            }
            _ => {}
        }
        let backing = self.backing(cluster0, geometry)?;
        let autoclear = AutoclearFeatures::from_bits(self.autoclear);
        let has_data_file = incompatible.contains(IncompatibleFeatures::DATA_FILE);
        let raw_data_file = has_data_file && autoclear.contains(AutoclearFeatures::RAW_DATA_FILE);
        if raw_data_file && backing.is_some() {
            return Err(Corruption::BackingWithRawDataFile);
        }
        let tail = HEADER_LEN_V3.min(self.header_length as usize)..self.header_length as usize;
        Ok(Header {
            version: if self.version == 2 { Version::V2 } else { Version::V3 },
            geometry,
            size: ByteCount::new(self.size),
            crypt_method,
            l1_entries: self.l1_entries,
            l1_offset: HostOffset::new(self.l1_offset),
            refcount_table_offset: HostOffset::new(self.refcount_table_offset),
            refcount_table_clusters: self.refcount_table_clusters,
            snapshot_count: self.snapshot_count,
            snapshot_offset: HostOffset::new(self.snapshot_offset),
            incompatible,
            compatible: CompatibleFeatures::from_bits(self.compatible),
            autoclear,
            compression_type,
            unknown_fields: cluster0[tail].to_vec(),
            backing,
            backing_format: known.backing_format,
            data_file_name: known.data_file_name,
            crypto_header: known.crypto_header,
            feature_names: known.feature_names,
            bitmaps: known.bitmaps,
            unknown_extensions: known.unknown,
        })
    }

    fn check_lengths(&self, sizes: Geometry) -> Result<(), Corruption> {
        let length = self.header_length;
        if self.version == 3 {
            if (length as usize) < HEADER_LEN_V3_MIN {
                return Err(Corruption::HeaderTooShort { length });
            }
            if u64::from(length) > sizes.cluster_size() {
                return Err(Corruption::HeaderTooLong { length });
            }
            if !length.is_multiple_of(8) {
                return Err(Corruption::HeaderLengthUnaligned { length });
            }
        }
        let offset = self.backing_offset;
        if offset > sizes.cluster_size() || (offset != 0 && offset < u64::from(length)) {
            return Err(Corruption::BackingOffset { offset });
        }
        Ok(())
    }

    fn extensions(&self, cluster0: &[u8], sizes: Geometry) -> Result<Vec<Extension>, Corruption> {
        let start = self.header_length as usize;
        if cluster0.len() < start {
            let needed = ByteCount::from_usize(start);
            return Err(Corruption::HeaderTruncated { needed });
        }
        let end = match self.backing_offset {
            0 => sizes.cluster_len(),
            offset => usize::try_from(offset).expect("checked: within cluster 0"),
        };
        let area = &cluster0[start..end.min(cluster0.len()).max(start)];
        Extension::decode_all(area, start, end)
    }

    fn check_features(&self, extensions: &[Extension]) -> Result<(), Corruption> {
        let unknown = IncompatibleFeatures::from_bits(self.incompatible).unknown();
        if unknown == 0 {
            return Ok(());
        }
        let names = extensions
            .iter()
            .find(|extension| extension.kind == ExtensionKind::FeatureNames)
            .map(|extension| FeatureNameTable::decode(&extension.payload))
            .unwrap_or_default();
        let names = names.describe(FeatureClass::Incompatible, unknown);
        Err(Corruption::UnknownIncompatible { names })
    }

    fn check_compression_type(
        &self,
        incompatible: IncompatibleFeatures,
    ) -> Result<CompressionType, Corruption> {
        let number = self.compression_type;
        let bit_set = incompatible.contains(IncompatibleFeatures::COMPRESSION_TYPE);
        let compression_type = match number {
            0 => CompressionType::Zlib,
            1 => CompressionType::Zstd,
            compression_type => return Err(Corruption::CompressionType { compression_type }),
        };
        if bit_set != (number != 0) {
            return Err(Corruption::CompressionTypeBit { compression_type: number, bit_set });
        }
        Ok(compression_type)
    }

    fn check_crypt_method(&self) -> Result<CryptMethod, Corruption> {
        match self.crypt_method {
            0 => Ok(CryptMethod::None),
            1 => Ok(CryptMethod::Aes),
            2 => Ok(CryptMethod::Luks),
            method => Err(Corruption::CryptMethod { method }),
        }
    }

    fn check_tables(&self, geometry: Geometry) -> Result<(), Corruption> {
        let table = Table::Refcount;
        let bytes = u64::from(self.refcount_table_clusters) * geometry.cluster_size();
        check_table(table, self.refcount_table_offset, bytes, REFCOUNT_TABLE_BYTES_MAX, geometry)?;
        if self.snapshot_count > SNAPSHOT_COUNT_MAX {
            return Err(Corruption::SnapshotCount { count: self.snapshot_count });
        }
        // The real length is known only after reading it; a snapshot has at least 40 bytes.
        let bytes = u64::from(self.snapshot_count) * 40;
        check_table(Table::Snapshot, self.snapshot_offset, bytes, u64::MAX, geometry)?;
        let bytes = u64::from(self.l1_entries) * 8;
        check_table(Table::ActiveL1, self.l1_offset, bytes, L1_BYTES_MAX, geometry)?;
        let needed = geometry.l1_entries_for(self.size);
        if needed > u64::from(i32::MAX as u32) {
            return Err(Corruption::ImageTooBig { size: self.size });
        }
        if u64::from(self.l1_entries) < needed {
            return Err(Corruption::L1TooSmall { entries: self.l1_entries, needed });
        }
        Ok(())
    }

    fn backing(
        &self,
        cluster0: &[u8],
        geometry: Geometry,
    ) -> Result<Option<BackingReference>, Corruption> {
        if self.backing_offset == 0 {
            return Ok(None);
        }
        let length = self.backing_length;
        let room = geometry.cluster_size() - self.backing_offset;
        if length > BACKING_NAME_BYTES_MAX || u64::from(length) > room {
            return Err(Corruption::BackingNameLength { length });
        }
        let start = usize::try_from(self.backing_offset).expect("checked: within cluster 0");
        let end = start + length as usize;
        let Some(name) = cluster0.get(start..end) else {
            return Err(Corruption::HeaderTruncated { needed: ByteCount::from_usize(end) });
        };
        if let Some(reason) = text_fault(name) {
            return Err(Corruption::BackingName { reason });
        }
        if name.is_empty() {
            return Ok(None);
        }
        Ok(Some(BackingReference { name: name.to_vec() }))
    }
}

fn check_table(
    table: Table,
    offset: u64,
    bytes: u64,
    bytes_max: u64,
    geometry: Geometry,
) -> Result<(), Corruption> {
    if bytes > bytes_max {
        return Err(Corruption::TableTooLarge { table, bytes });
    }
    let end = offset.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok());
    if end.is_none() || !geometry.is_cluster_aligned(offset) {
        return Err(Corruption::TableOffset { table, offset });
    }
    Ok(())
}
