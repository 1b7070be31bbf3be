//! What a new image shall be, and whether that is possible.

use cowl_format::limits::{
    BACKING_FORMAT_BYTES_MAX, BACKING_NAME_BYTES_MAX, CLUSTER_BITS_EXTENDED_L2_MIN,
    DATA_FILE_NAME_BYTES_MAX,
};
use cowl_format::{ByteCount, CompressionType, Geometry, Version};
use cowl_storage::StorageError;

/// What a new image shall be.
///
/// No `Default`: who creates an image decides each of these, or takes [`CreateOptions::new`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// Size of the disk; rounded up to 512 bytes.
    pub size: ByteCount,
    /// Version of the format.
    pub version: Version,
    /// Bytes of a cluster: a power of two from 512 to 2 MiB.
    pub cluster_size: u64,
    /// Bits of a refcount: a power of two from 1 to 64.
    pub refcount_bits: u64,
    /// Whether clusters have subclusters.
    pub extended_l2: bool,
    /// How compressed clusters are compressed.
    pub compression_type: CompressionType,
    /// Whether refcounts may be written late.
    pub lazy_refcounts: bool,
    /// The backing file as the image shall name it.
    pub backing: Option<Vec<u8>>,
    /// Its format.
    pub backing_format: Option<Vec<u8>>,
    /// The external data file as the image shall name it.
    pub data_file: Option<Vec<u8>>,
    /// Whether the external data file is a raw image by itself.
    pub data_file_raw: bool,
}

impl CreateOptions {
    /// QEMU's choices for a disk of `size`: version 3, 64 KiB clusters, 16-bit refcounts, zlib.
    #[must_use]
    pub fn new(size: ByteCount) -> Self {
        Self {
            size,
            version: Version::V3,
            cluster_size: 65_536,
            refcount_bits: 16,
            extended_l2: false,
            compression_type: CompressionType::Zlib,
            lazy_refcounts: false,
            backing: None,
            backing_format: None,
            data_file: None,
            data_file_raw: false,
        }
    }

    /// Size of the disk in whole sectors.
    #[must_use]
    pub fn rounded_size(&self) -> u64 {
        self.size.get().next_multiple_of(512)
    }

    /// Checks every rule; the geometry of an image that can be.
    pub fn check(&self) -> Result<Geometry, CreateError> {
        let cluster_bits = power_of_two(self.cluster_size)
            .filter(|bits| (9..=21).contains(bits))
            .ok_or(CreateError::ClusterSize)?;
        if self.version == Version::V2 {
            self.check_version_2()?;
        }
        if self.extended_l2 && cluster_bits < u32::from(CLUSTER_BITS_EXTENDED_L2_MIN) {
            return Err(CreateError::ExtendedL2ClusterSize);
        }
        let order = power_of_two(self.refcount_bits)
            .filter(|order| *order <= 6)
            .ok_or(CreateError::RefcountBits)?;
        if self.version == Version::V2 && order != 4 {
            return Err(CreateError::RefcountBitsVersion);
        }
        self.check_names()?;
        let geometry = Geometry::new(cluster_bits, order, self.extended_l2)
            .map_err(|_| CreateError::ClusterSize)?;
        if geometry.size_max() < self.rounded_size() || i64::try_from(self.size.get()).is_err() {
            return Err(CreateError::TooLarge);
        }
        Ok(geometry)
    }

    fn check_version_2(&self) -> Result<(), CreateError> {
        if self.lazy_refcounts {
            return Err(CreateError::LazyRefcountsVersion);
        }
        if self.data_file.is_some() {
            return Err(CreateError::DataFileVersion);
        }
        if self.compression_type != CompressionType::Zlib {
            return Err(CreateError::CompressionTypeVersion);
        }
        if self.extended_l2 {
            return Err(CreateError::ExtendedL2Version);
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), CreateError> {
        let too_long = |name: &Option<Vec<u8>>, max: u32| {
            name.as_ref().is_some_and(|name| max as usize <= name.len().saturating_sub(1))
        };
        if too_long(&self.backing, BACKING_NAME_BYTES_MAX) {
            return Err(CreateError::BackingNameTooLong);
        }
        if too_long(&self.backing_format, BACKING_FORMAT_BYTES_MAX) {
            return Err(CreateError::BackingFormatTooLong);
        }
        if too_long(&self.data_file, DATA_FILE_NAME_BYTES_MAX) {
            return Err(CreateError::DataFileNameTooLong);
        }
        if self.data_file_raw && self.data_file.is_none() {
            return Err(CreateError::RawWithoutDataFile);
        }
        if self.data_file_raw && self.backing.is_some() {
            return Err(CreateError::RawDataFileWithBacking);
        }
        Ok(())
    }
}

fn power_of_two(number: u64) -> Option<u32> {
    number.is_power_of_two().then(|| number.trailing_zeros())
}

/// Why an image cannot be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the message of each variant says what it means")]
pub enum CreateError {
    #[error("an image cannot be its own external data file")]
    DataFileIsImage,
    #[error("Cluster size must be a power of two between 512 and 2048k")]
    ClusterSize,
    #[error("Extended L2 entries are only supported with cluster sizes of at least 16384 bytes")]
    ExtendedL2ClusterSize,
    #[error(
        "Extended L2 entries are only supported with compatibility level 1.1 and above (use \
         version=v3 or greater)"
    )]
    ExtendedL2Version,
    #[error("Refcount width must be a power of two and may not exceed 64 bits")]
    RefcountBits,
    #[error(
        "Different refcount widths than 16 bits require compatibility level 1.1 or above (use \
         version=v3 or greater)"
    )]
    RefcountBitsVersion,
    #[error(
        "Lazy refcounts only supported with compatibility level 1.1 and above (use version=v3 or \
         greater)"
    )]
    LazyRefcountsVersion,
    #[error(
        "External data files are only supported with compatibility level 1.1 and above (use \
         version=v3 or greater)"
    )]
    DataFileVersion,
    #[error(
        "Non-zlib compression type is only supported with compatibility level 1.1 and above (use \
         version=v3 or greater)"
    )]
    CompressionTypeVersion,
    #[error("data-file-raw requires data-file")]
    RawWithoutDataFile,
    #[error("Backing file and data-file-raw cannot be used at the same time")]
    RawDataFileWithBacking,
    #[error(
        "Backing file and preallocation can only be used at the same time if extended_l2 is enabled"
    )]
    BackingWithPreallocation,
    #[error(
        "The image size is too large for file format 'qcow2' (try using a larger cluster size)"
    )]
    TooLarge,
    #[error("the name of the backing file is too long: at most 1023 bytes")]
    BackingNameTooLong,
    #[error("the name of the backing format is too long: at most 15 bytes")]
    BackingFormatTooLong,
    #[error("the name of the data file is too long: at most 4096 bytes")]
    DataFileNameTooLong,
    #[error(
        "the header, its extensions and the file names do not fit in one cluster: use a larger \
         cluster size or shorter names"
    )]
    HeaderTooLarge,
    #[error("the image needs more refcounts than a refcount table can name: use larger clusters")]
    RefcountTableTooLarge,
    #[error("a compressed cluster cannot be stored at {at:#x}: past the range of its descriptor")]
    CompressedOutOfReach { at: u64 },
    #[error(transparent)]
    Storage(#[from] StorageError),
}
