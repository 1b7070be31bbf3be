//! Writing "into" a qcow2 image that exists.
//!
//! The image is made anew: same version, cluster size, features and backing file, with the sources'
//! content and, behind their end, its own. The new file takes its place when it is complete, so a
//! failed copy leaves the old image whole, which writing in place could not promise.
//!
//! What a new image could not carry over is refused before anything is written.

use std::path::Path;

use cowl::{ByteCount, Follow, Format, OpenOptions, Qcow2Inspection, Sharing};
use cowl_format::{CompatibleFeatures, CryptMethod, IncompatibleFeatures};
use cowl_qcow2::{CreateOptions, Preallocation};

use crate::convert::options::{ConvertError, ConvertOptions, ExistingTarget, TargetImage};
use crate::host::{Disk, open_disk};

/// The image that will be replaced by one of its kind.
pub(super) struct ExistingImage {
    /// Its content.
    pub(super) disk: Disk,
    /// How to copy, with the image's own features.
    pub(super) options: ConvertOptions,
}

impl ExistingImage {
    /// Looks at `target`, if `options` ask for writing into a qcow2 image.
    pub(super) fn open(
        target: &Path,
        options: &ConvertOptions,
        size: u64,
    ) -> Result<Option<Self>, ConvertError> {
        let is_qcow2 = matches!(options.target, TargetImage::Qcow2 { .. });
        if !is_qcow2 || options.existing == ExistingTarget::Replace {
            return Ok(None);
        }
        let failed = ConvertError::Existing;
        let seen =
            cowl::inspect(target, Some(Format::Qcow2), Sharing::NoWriters).map_err(failed)?;
        let qcow2 = seen.qcow2.as_ref().expect("inspected as qcow2");
        if let Some(what) = irreplaceable(qcow2) {
            return Err(ConvertError::ExistingHas { what });
        }
        let target_size = seen.virtual_size();
        if target_size.get() < size {
            let size = ByteCount::new(size);
            return Err(ConvertError::TargetTooSmall { target: target_size, size });
        }
        let open = OpenOptions {
            format: Some(Format::Qcow2),
            follow: Follow::LocalFiles,
            sharing: Sharing::Anyone,
            ..OpenOptions::local()
        };
        let disk = open_disk(target, &open).map_err(failed)?;
        let create = Box::new(same_kind(qcow2, target_size));
        let target = TargetImage::Qcow2 { create, preallocation: Preallocation::Off };
        let existing = ExistingTarget::Replace;
        let options = ConvertOptions { target, existing, only_top_layer: false, ..options.clone() };
        Ok(Some(Self { disk, options }))
    }
}

/// What the image has that a new one would lack.
fn irreplaceable(qcow2: &Qcow2Inspection) -> Option<&'static str> {
    let header = &qcow2.header;
    let is_damaged = header.incompatible.contains(IncompatibleFeatures::DIRTY)
        || header.incompatible.contains(IncompatibleFeatures::CORRUPT);
    let facts = [
        (0 < header.snapshot_count, "internal snapshots"),
        (header.bitmaps.is_some(), "persistent bitmaps"),
        (header.crypt_method != CryptMethod::None, "encryption"),
        (header.has_data_file(), "an external data file"),
        (!header.unknown_extensions.is_empty(), "header extensions of a newer version"),
        (!header.unknown_fields.is_empty(), "header fields of a newer version"),
        (is_damaged, "the dirty or corrupt bit set"),
    ];
    facts.iter().find(|(has, _)| *has).map(|(_, what)| *what)
}

fn same_kind(qcow2: &Qcow2Inspection, size: ByteCount) -> CreateOptions {
    let header = &qcow2.header;
    CreateOptions {
        size,
        version: header.version,
        cluster_size: header.geometry.cluster_size(),
        refcount_bits: u64::from(header.geometry.refcount_bits()),
        extended_l2: header.geometry.has_extended_l2(),
        compression_type: header.compression_type,
        lazy_refcounts: header.compatible.contains(CompatibleFeatures::LAZY_REFCOUNTS),
        backing: header.backing.as_ref().map(|backing| backing.name.clone()),
        backing_format: header.backing_format.clone(),
        data_file: None,
        data_file_raw: false,
    }
}
