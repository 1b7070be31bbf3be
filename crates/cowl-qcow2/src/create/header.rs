//! The header of a new image.

use cowl_format::{
    AutoclearFeatures, BackingReference, ByteCount, CompatibleFeatures, CompressionType,
    CryptMethod, FeatureNameTable, Geometry, Header, HostOffset, IncompatibleFeatures, Version,
};

use crate::create::options::CreateOptions;

/// Clusters that QEMU finds too small for the feature name table.
const FEATURE_NAMES_CLUSTER_MIN: u64 = 4096;

/// The header for `options`; table positions are still to be filled in.
pub(super) fn header(options: &CreateOptions, geometry: Geometry) -> Header {
    let size = options.rounded_size();
    let v3 = options.version == Version::V3;
    let when = |set: bool, bit: IncompatibleFeatures| match set {
        true => bit,
        false => IncompatibleFeatures::NONE,
    };
    let has_data_file = options.data_file.is_some();
    let has_zstd = options.compression_type == CompressionType::Zstd;
    Header {
        version: options.version,
        geometry,
        size: ByteCount::new(size),
        crypt_method: CryptMethod::None,
        l1_entries: u32::try_from(geometry.l1_entries_for(size)).expect("checked: within limits"),
        l1_offset: HostOffset::ZERO,
        refcount_table_offset: HostOffset::ZERO,
        refcount_table_clusters: 0,
        snapshot_count: 0,
        snapshot_offset: HostOffset::ZERO,
        incompatible: when(has_data_file, IncompatibleFeatures::DATA_FILE)
            .union(when(has_zstd, IncompatibleFeatures::COMPRESSION_TYPE))
            .union(when(options.extended_l2, IncompatibleFeatures::EXTENDED_L2)),
        compatible: match options.lazy_refcounts {
            true => CompatibleFeatures::LAZY_REFCOUNTS,
            false => CompatibleFeatures::NONE,
        },
        autoclear: match options.data_file_raw {
            true => AutoclearFeatures::RAW_DATA_FILE,
            false => AutoclearFeatures::NONE,
        },
        compression_type: options.compression_type,
        unknown_fields: Vec::new(),
        backing: options.backing.clone().map(|name| BackingReference { name }),
        backing_format: options.backing_format.clone(),
        data_file_name: options.data_file.clone(),
        crypto_header: None,
        feature_names: (v3 && FEATURE_NAMES_CLUSTER_MIN < geometry.cluster_size())
            .then(FeatureNameTable::standard),
        bitmaps: None,
        unknown_extensions: Vec::new(),
    }
}
