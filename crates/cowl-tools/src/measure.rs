//! How many bytes an image file will need: arithmetic only.
//!
//! The answer for qcow2 has two parts: the file with every cluster allocated, and the file as the
//! source needs it, which still counts all metadata of the first (so it is an upper bound). A
//! source is looked at through its tables; its data is never read.
//!
//! The size of refcount metadata depends on itself, because refcount blocks are counted too; it is
//! the smallest fixed point, as QEMU computes it.

use cowl::Error;
use cowl_format::{ByteCount, Version};
use cowl_qcow2::{Preallocation, read_bitmaps};
use pollster::block_on;
use serde::Serialize;

use crate::block_status::{BlockStatus, BlockStatuses, disk_size};
use crate::host::Disk;

const L1_TABLE_BYTES_MAX: u64 = 32 << 20;
const L1_ENTRY_BYTES: u64 = 8;
const REFCOUNT_TABLE_ENTRY_BYTES: u64 = 8;
const BITMAP_TABLE_ENTRY_BYTES: u64 = 8;
const BITMAP_DIRECTORY_ENTRY_BYTES: u64 = 24;
const SECTOR_BYTES: u64 = 512;

/// Bytes a new image needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MeasureReport {
    /// For copying the persistent bitmaps; `None` where source or target cannot have any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<u64>,
    /// For the allocated data.
    pub required: u64,
    /// When the guest has written everything.
    pub fully_allocated: u64,
}

/// The image that will be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MeasureTarget {
    /// A raw file.
    Raw,
    /// A qcow2 image.
    Qcow2(Qcow2Target),
}

/// What decides the size of a qcow2 image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Qcow2Target {
    /// Bytes per cluster.
    pub cluster_size: u64,
    /// Bits per refcount.
    pub refcount_bits: u64,
    /// Whether L2 entries have subclusters.
    pub extended_l2: bool,
    /// Whether the image is version 3 (`compat=1.1`), which alone can hold bitmaps.
    pub version_3: bool,
    /// When space is allocated.
    pub preallocation: Preallocation,
    /// Whether it has a backing file; then nothing of the source can be skipped.
    pub has_backing: bool,
}

/// What will be copied into the new image.
#[derive(Debug)]
pub enum MeasureSource<I> {
    /// Nothing: an empty disk of this size.
    Size(ByteCount),
    /// An existing disk.
    Image {
        /// Its size.
        size: ByteCount,
        /// Its runs, in order, without gaps.
        runs: I,
        /// Its persistent bitmaps; `None` where the format has none.
        bitmaps: Option<Vec<BitmapShape>>,
    },
}

/// What decides the size of a persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BitmapShape {
    /// Length of its name in bytes.
    pub name_length: u64,
    /// Guest bytes per bit.
    pub granularity: u64,
}

/// Why a target cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// The cluster size is none the format has.
    #[error("Cluster size must be a power of two between 512 and 2048k")]
    ClusterSize,
    /// Subclusters would be smaller than a sector.
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ClusterSizeForExtendedL2,
    /// The refcount width is none the format has.
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountBits,
    /// Version 2 fixes the refcount width.
    #[error(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use \
         compat=1.1 or greater)"
    )]
    RefcountBitsForVersion2,
    /// The L1 table would exceed its limit.
    #[error("The image size is too large (try using a larger cluster size)")]
    TooLarge,
    /// Only a number above 64 bits would hold the answer.
    #[error("The image size is too large")]
    Overflow,
}

/// Measures `target` for `source`.
///
/// # Errors
/// When the target is no image that can exist, or the source's runs cannot be found.
pub fn measure<I, E>(target: MeasureTarget, source: MeasureSource<I>) -> Result<MeasureReport, E>
where
    I: Iterator<Item = Result<BlockStatus, E>>,
    E: From<TargetError>,
{
    match target {
        MeasureTarget::Raw => {
            let size = match source {
                MeasureSource::Size(size) | MeasureSource::Image { size, .. } => size.get(),
            };
            let bytes = round_up(size, SECTOR_BYTES)?;
            Ok(MeasureReport { bitmaps: None, required: bytes, fully_allocated: bytes })
        }
        MeasureTarget::Qcow2(target) => target.measure(source),
    }
}

/// Why an image cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The target cannot be made.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The tables of the source cannot be read.
    #[error(transparent)]
    Source(#[from] Error),
}

/// Measures `target` for the content of `disk`.
///
/// # Errors
/// As [`measure`].
pub fn measure_image(target: MeasureTarget, disk: &Disk) -> Result<MeasureReport, MeasureError> {
    let runs = BlockStatuses::whole(disk).map(|run| run.map_err(MeasureError::from));
    let size = ByteCount::new(disk_size(disk));
    measure(target, MeasureSource::Image { size, runs, bitmaps: bitmap_shapes(disk) })
}

/// The persistent bitmaps of `disk`, broken ones included, as QEMU counts them. A directory that
/// cannot be read holds none.
fn bitmap_shapes(disk: &Disk) -> Option<Vec<BitmapShape>> {
    let layer = disk.qcow2()?.layers().first()?;
    let header = layer.header();
    if header.version == Version::V2 {
        return None;
    }
    let directory = block_on(read_bitmaps(layer.file().as_ref(), header)).unwrap_or_default();
    let shape = |name: &[u8], bits: u8| BitmapShape {
        name_length: name.len() as u64,
        granularity: 1 << bits,
    };
    let entries = directory.entries.iter();
    Some(entries.map(|bitmap| shape(&bitmap.name, bitmap.granularity_bits)).collect())
}

impl Qcow2Target {
    fn measure<I, E>(self, source: MeasureSource<I>) -> Result<MeasureReport, E>
    where
        I: Iterator<Item = Result<BlockStatus, E>>,
        E: From<TargetError>,
    {
        self.validate()?;
        let (size, data, bitmaps) = match source {
            MeasureSource::Size(size) => (size, 0, None),
            MeasureSource::Image { size, runs, bitmaps } => {
                let data = if self.has_backing { None } else { Some(self.data_bytes(runs)?) };
                let data = match data {
                    Some(bytes) => bytes,
                    None => round_up(size.get(), self.cluster_size)?,
                };
                (size, data, bitmaps)
            }
        };
        let virtual_size = round_up(size.get(), self.cluster_size)?;
        self.validate_size(virtual_size)?;
        let metadata = self.metadata_bytes(virtual_size);
        let required = match self.preallocation {
            Preallocation::Falloc | Preallocation::Full => virtual_size,
            Preallocation::Off | Preallocation::Metadata => data,
        };
        Ok(MeasureReport {
            bitmaps: bitmaps.filter(|_| self.version_3).map(|list| self.bitmap_bytes(size, &list)),
            required: metadata + required,
            fully_allocated: metadata + virtual_size,
        })
    }

    /// Checks everything that does not depend on the size, in the order QEMU reports it.
    ///
    /// # Errors
    /// When no such image can exist.
    pub fn validate(&self) -> Result<(), TargetError> {
        if !self.cluster_size.is_power_of_two() || !(512..=2 << 20).contains(&self.cluster_size) {
            return Err(TargetError::ClusterSize);
        }
        if self.extended_l2 && self.cluster_size < 16 << 10 {
            return Err(TargetError::ClusterSizeForExtendedL2);
        }
        if !self.refcount_bits.is_power_of_two() || 64 < self.refcount_bits {
            return Err(TargetError::RefcountBits);
        }
        if !self.version_3 && self.refcount_bits != 16 {
            return Err(TargetError::RefcountBitsForVersion2);
        }
        Ok(())
    }

    fn validate_size(&self, virtual_size: u64) -> Result<(), TargetError> {
        let tables = (virtual_size / self.cluster_size).div_ceil(self.l2_entries());
        if L1_TABLE_BYTES_MAX / L1_ENTRY_BYTES < tables {
            return Err(TargetError::TooLarge);
        }
        Ok(())
    }

    fn l2_entries(&self) -> u64 {
        self.cluster_size / if self.extended_l2 { 16 } else { 8 }
    }

    /// Header, L2 and L1 tables, and the refcounts of those and of the data. The size was
    /// validated, so nothing here comes near 64 bits.
    fn metadata_bytes(&self, virtual_size: u64) -> u64 {
        let data_clusters = virtual_size / self.cluster_size;
        let l2_tables = data_clusters.div_ceil(self.l2_entries());
        let l1_clusters = (l2_tables * L1_ENTRY_BYTES).div_ceil(self.cluster_size);
        let counted = 1 + l2_tables + l1_clusters;
        let refcounts = self.refcount_clusters(counted + data_clusters);
        (counted + refcounts) * self.cluster_size
    }

    fn refcount_clusters(&self, clusters: u64) -> u64 {
        let entries_per_block = self.cluster_size * 8 / self.refcount_bits;
        let entries_per_table_cluster = self.cluster_size / REFCOUNT_TABLE_ENTRY_BYTES;
        let mut refcount_clusters = 0;
        // Grows by at least one each round and converges: a block covers far more than one cluster.
        loop {
            let blocks = (clusters + refcount_clusters).div_ceil(entries_per_block);
            let table = blocks.div_ceil(entries_per_table_cluster);
            if blocks + table == refcount_clusters {
                return refcount_clusters;
            }
            refcount_clusters = blocks + table;
        }
    }

    /// Bytes of the clusters that the source's data touches.
    fn data_bytes<I, E>(&self, runs: I) -> Result<u64, E>
    where
        I: Iterator<Item = Result<BlockStatus, E>>,
        E: From<TargetError>,
    {
        let mut bytes = 0;
        let mut counted_up_to = 0;
        for run in runs {
            let run = run?;
            let end = run.start + run.length;
            if run.zero || end <= counted_up_to {
                continue;
            }
            let start = run.start.max(counted_up_to);
            let start = start - start % self.cluster_size;
            let end = round_up(end, self.cluster_size)?;
            bytes += end - start;
            counted_up_to = end;
        }
        Ok(bytes)
    }

    fn bitmap_bytes(&self, size: ByteCount, bitmaps: &[BitmapShape]) -> u64 {
        let mut clusters = 0;
        let mut directory = 0;
        for bitmap in bitmaps {
            let bits = size.get().div_ceil(bitmap.granularity);
            let data_clusters = bits.div_ceil(8).div_ceil(self.cluster_size);
            let table_bytes = data_clusters * BITMAP_TABLE_ENTRY_BYTES;
            clusters += data_clusters + table_bytes.div_ceil(self.cluster_size);
            directory += (BITMAP_DIRECTORY_ENTRY_BYTES + bitmap.name_length).next_multiple_of(8);
        }
        (clusters + u64::div_ceil(directory, self.cluster_size)) * self.cluster_size
    }
}

fn round_up(value: u64, multiple: u64) -> Result<u64, TargetError> {
    value.checked_next_multiple_of(multiple).ok_or(TargetError::Overflow)
}

#[cfg(test)]
mod tests {
    use super::{
        BitmapShape, MeasureReport, MeasureSource, MeasureTarget, Qcow2Target, TargetError, measure,
    };
    use crate::block_status::BlockStatus;
    use cowl_format::ByteCount;
    use cowl_qcow2::Preallocation;

    const DEFAULT: Qcow2Target = Qcow2Target {
        cluster_size: 65536,
        refcount_bits: 16,
        extended_l2: false,
        version_3: true,
        preallocation: Preallocation::Off,
        has_backing: false,
    };

    type Runs = std::vec::IntoIter<Result<BlockStatus, TargetError>>;

    fn size(bytes: u64) -> MeasureSource<Runs> {
        MeasureSource::Size(ByteCount::new(bytes))
    }

    fn image(
        bytes: u64,
        data: &[(u64, u64)],
        bitmaps: Option<Vec<BitmapShape>>,
    ) -> MeasureSource<Runs> {
        let run = |start, length, zero: bool| BlockStatus {
            start,
            length,
            depth: 0,
            present: !zero,
            zero,
            data: !zero,
            compressed: false,
            offset: None,
        };
        let mut runs = Vec::new();
        let mut at = 0;
        for &(start, length) in data {
            runs.push(Ok(run(at, start - at, true)));
            runs.push(Ok(run(start, length, false)));
            at = start + length;
        }
        runs.push(Ok(run(at, bytes - at, true)));
        MeasureSource::Image { size: ByteCount::new(bytes), runs: runs.into_iter(), bitmaps }
    }

    #[test]
    fn a_raw_file_needs_its_size_in_whole_sectors() {
        let report = measure(MeasureTarget::Raw, size(1000)).unwrap();
        assert_eq!(report, MeasureReport { bitmaps: None, required: 1024, fully_allocated: 1024 });
    }

    #[test]
    fn an_empty_qcow2_image_needs_its_metadata() {
        let report = measure(MeasureTarget::Qcow2(DEFAULT), size(1 << 20)).unwrap();
        assert_eq!(report.required, 5 * 65536);
        assert_eq!(report.fully_allocated, 5 * 65536 + (1 << 20));
        assert_eq!(report.bitmaps, None);
    }

    #[test]
    fn data_counts_in_whole_clusters_and_a_cluster_counts_once() {
        let runs = [(100, 100), (300, 100), (65535, 2), (200_000, 65536)];
        let report = measure(MeasureTarget::Qcow2(DEFAULT), image(1 << 20, &runs, None)).unwrap();
        assert_eq!(report.required, (5 + 2 + 2) * 65536);
    }

    #[test]
    fn over_a_backing_file_or_preallocated_everything_is_needed() {
        for target in [
            Qcow2Target { has_backing: true, ..DEFAULT },
            Qcow2Target { preallocation: Preallocation::Falloc, ..DEFAULT },
            Qcow2Target { preallocation: Preallocation::Full, ..DEFAULT },
        ] {
            let report = measure(MeasureTarget::Qcow2(target), image(1 << 20, &[], None)).unwrap();
            assert_eq!(report.required, report.fully_allocated);
        }
    }

    #[test]
    fn bitmaps_count_data_tables_and_directory() {
        let shape = |granularity| BitmapShape { name_length: 2, granularity };
        let bitmaps = Some(vec![shape(65536), shape(4096)]);
        let source = image(1 << 20, &[], bitmaps.clone());
        let report = measure(MeasureTarget::Qcow2(DEFAULT), source).unwrap();
        assert_eq!(report.bitmaps, Some(5 * 65536));
        let version_2 = Qcow2Target { version_3: false, ..DEFAULT };
        let report =
            measure(MeasureTarget::Qcow2(version_2), image(1 << 20, &[], bitmaps)).unwrap();
        assert_eq!(report.bitmaps, None);
    }

    #[test]
    fn impossible_targets_are_refused() {
        let small = Qcow2Target { cluster_size: 512, ..DEFAULT };
        for (target, bytes, error) in [
            (Qcow2Target { cluster_size: 123, ..DEFAULT }, 1, TargetError::ClusterSize),
            (Qcow2Target { cluster_size: 4 << 20, ..DEFAULT }, 1, TargetError::ClusterSize),
            (Qcow2Target { extended_l2: true, ..small }, 1, TargetError::ClusterSizeForExtendedL2),
            (Qcow2Target { refcount_bits: 0, ..DEFAULT }, 1, TargetError::RefcountBits),
            (Qcow2Target { refcount_bits: 128, ..DEFAULT }, 1, TargetError::RefcountBits),
            (
                Qcow2Target { refcount_bits: 8, version_3: false, ..DEFAULT },
                1,
                TargetError::RefcountBitsForVersion2,
            ),
            (small, (128 << 30) + 1, TargetError::TooLarge),
            (DEFAULT, u64::MAX, TargetError::Overflow),
        ] {
            assert_eq!(measure(MeasureTarget::Qcow2(target), size(bytes)), Err(error));
        }
        assert!(measure(MeasureTarget::Qcow2(small), size(128 << 30)).is_ok());
    }
}
