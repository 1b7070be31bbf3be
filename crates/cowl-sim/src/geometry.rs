//! What a qcow2 disk is like: everything about the format that a seed decides.

use cowl_format::{ByteCount, CompressionType, Version};
use cowl_qcow2::{CacheLimits, CreateOptions, Preallocation};

use crate::{Extent, Random};

/// What lies below the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Nothing: unallocated is zero.
    None,
    /// A raw file of this length.
    Raw(u64),
    /// A qcow2 image of this size.
    Qcow2(u64),
}

/// Where the data of the guest lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataFile {
    /// In the image.
    Internal,
    /// In a file of its own.
    External,
    /// In a file of its own that is a raw image at all times.
    Raw,
}

/// A qcow2 disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Version of the format.
    pub version: Version,
    /// The size of a cluster is two to this power.
    pub cluster_bits: u32,
    /// Bits of a refcount.
    pub refcount_bits: u64,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// How compressed clusters are compressed.
    pub compression_type: CompressionType,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: bool,
    /// Size of the disk.
    pub size: u64,
    /// What lies below.
    pub backing: Backing,
    /// Where guest data lies.
    pub data_file: DataFile,
    /// What is allocated from the start.
    pub preallocation: Preallocation,
    /// Whether caches hold next to nothing.
    pub tiny_caches: bool,
    /// How much of the disk has data from the start, in percent.
    pub filled_percent: u64,
    /// Whether there is an internal snapshot.
    pub has_snapshot: bool,
    /// Whether there is a bitmap that records writes.
    pub has_bitmap: bool,
}

impl Shape {
    /// The simplest one: a cluster, empty, without anything that a shape may have.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            version: Version::V3,
            cluster_bits: 9,
            refcount_bits: 16,
            extended_l2: false,
            compression_type: CompressionType::Zlib,
            lazy_refcounts: false,
            size: 512,
            backing: Backing::None,
            data_file: DataFile::Internal,
            preallocation: Preallocation::Off,
            tiny_caches: true,
            filled_percent: 0,
            has_snapshot: false,
            has_bitmap: false,
        }
    }

    /// Draws one. Small clusters come often: with them tables grow and caches overflow soon.
    #[must_use]
    pub fn draw(random: &mut Random, extent: Extent) -> Self {
        let version = random.pick(&[Version::V3, Version::V3, Version::V3, Version::V2]);
        let is_v3 = version == Version::V3;
        let extended_l2 = is_v3 && random.chance(20);
        let bits: &[u32] = match (extended_l2, extent) {
            (true, Extent::Full) => &[14, 14, 15, 16],
            (true, Extent::Tiny) => &[14],
            (false, Extent::Full) => &[9, 9, 9, 10, 11, 12, 12, 13, 14, 16],
            (false, Extent::Tiny) => &[9, 9, 9, 12],
        };
        let cluster_bits = random.pick(bits);
        let mut shape = Self {
            version,
            cluster_bits,
            refcount_bits: if is_v3 { random.pick(&[16, 16, 16, 1, 2, 8, 32, 64]) } else { 16 },
            extended_l2,
            compression_type: match is_v3 && random.chance(30) {
                true => CompressionType::Zstd,
                false => CompressionType::Zlib,
            },
            lazy_refcounts: is_v3 && random.chance(15),
            size: draw_size(random, cluster_bits, extent),
            backing: Backing::None,
            data_file: DataFile::Internal,
            preallocation: Preallocation::Off,
            tiny_caches: random.chance(50),
            filled_percent: random.pick(&[0, 0, 30, 100]),
            has_snapshot: false,
            has_bitmap: false,
        };
        shape.draw_files(random);
        shape
    }

    fn draw_files(&mut self, random: &mut Random) {
        let is_v3 = self.version == Version::V3;
        if random.chance(40) {
            let size = self.size * random.pick(&[1, 2, 3]) / 2 / 512 * 512 + 512;
            let is_raw = random.chance(50);
            self.backing = if is_raw { Backing::Raw(size) } else { Backing::Qcow2(size) };
        }
        if is_v3 && random.chance(20) {
            self.data_file = match self.backing {
                Backing::None => random.pick(&[DataFile::External, DataFile::Raw]),
                // What a raw data file has not stored would have to come from two places.
                Backing::Raw(_) | Backing::Qcow2(_) => DataFile::External,
            };
        }
        if self.backing == Backing::None || self.extended_l2 {
            self.preallocation = match random.below(8) {
                0 => Preallocation::Metadata,
                1 => Preallocation::Falloc,
                2 => Preallocation::Full,
                _ => Preallocation::Off,
            };
        }
        self.has_snapshot = self.data_file == DataFile::Internal
            && self.refcount_bits != 1
            && self.preallocation == Preallocation::Off
            && random.chance(25);
    }

    /// Bytes of a cluster.
    #[must_use]
    pub fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How to create it.
    #[must_use]
    pub fn create_options(&self) -> CreateOptions {
        let (backing, backing_format) = match self.backing {
            Backing::None => (None, None),
            Backing::Raw(_) => (Some(BACKING_NAME), Some(&b"raw"[..])),
            Backing::Qcow2(_) => (Some(BACKING_NAME), Some(&b"qcow2"[..])),
        };
        let external = self.data_file != DataFile::Internal;
        CreateOptions {
            version: self.version,
            cluster_size: self.cluster(),
            refcount_bits: self.refcount_bits,
            extended_l2: self.extended_l2,
            compression_type: self.compression_type,
            lazy_refcounts: self.lazy_refcounts,
            backing: backing.map(|name| name.as_bytes().to_vec()),
            backing_format: backing_format.map(<[u8]>::to_vec),
            data_file: external.then(|| DATA_NAME.as_bytes().to_vec()),
            data_file_raw: self.data_file == DataFile::Raw,
            ..CreateOptions::new(ByteCount::new(self.size))
        }
    }

    /// What the caches may hold.
    #[must_use]
    pub fn cache_limits(&self) -> CacheLimits {
        if !self.tiny_caches {
            return CacheLimits::STANDARD;
        }
        let cluster = ByteCount::new(self.cluster()).as_usize();
        CacheLimits { l2_bytes: 2 * cluster, refcount_bytes: cluster, decoded_bytes: cluster }
    }
}

/// The name of the image.
pub(crate) const IMAGE_NAME: &str = "disk.qcow2";
/// The name of the external data file.
pub(crate) const DATA_NAME: &str = "disk.data";
/// The name of the backing file.
pub(crate) const BACKING_NAME: &str = "base";

/// A few tables' worth of clusters, the last one often not whole.
fn draw_size(random: &mut Random, cluster_bits: u32, extent: Extent) -> u64 {
    let clusters = match cluster_bits {
        9 if extent == Extent::Tiny => 100,
        _ if extent == Extent::Tiny => 6,
        9 | 10 => 400,
        11..=13 => 120,
        14 => 40,
        _ => 14,
    };
    let cluster = 1 << cluster_bits;
    let whole = (1 + random.below(clusters)) * cluster;
    let sectors = 1 + random.below(cluster / 512);
    let tail = random.pick(&[0, 0, sectors]) * 512;
    whole + tail
}
