//! What a copy shall be like, and how it can fail.

use cowl::{ByteCount, Caching, Error, StorageError};
use cowl_block::BlockError;
use cowl_qcow2::{CreateError, CreateOptions, Preallocation};
use cowl_storage::Durability;

/// How zeros in the source are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroDetection {
    /// Everything is written, zeros too: the target is fully allocated.
    Off,
    /// Runs of zeros of at least this many bytes are left out.
    Runs(ByteCount),
}

/// The image to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetImage {
    /// A raw file.
    Raw {
        /// When its space is allocated.
        preallocation: Preallocation,
    },
    /// A qcow2 image.
    Qcow2 {
        /// What it shall be. Its size is that of the sources unless larger.
        create: Box<CreateOptions>,
        /// When its space is allocated.
        preallocation: Preallocation,
    },
}

/// What to do with a target that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExistingTarget {
    /// Replace it by a new file, at once, when that is complete.
    Replace,
    /// Write into it; zeros are written too. A qcow2 image is replaced by one of the same kind when
    /// that is complete, and keeps what it has behind the end of the sources.
    Overwrite,
    /// Write into it, and rely on it reading as zeros now.
    OverwriteZeroed,
}

/// How to copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertOptions {
    /// The image to make.
    pub target: TargetImage,
    /// What to do with a target that exists.
    pub existing: ExistingTarget,
    /// Whether clusters are compressed.
    pub compress: bool,
    /// Copy only what the source's own top layer has; the rest comes from the target's backing
    /// file.
    pub only_top_layer: bool,
    /// How zeros are found.
    pub zeros: ZeroDetection,
    /// Number of threads, at least 1.
    pub threads: usize,
    /// Copy at most so many bytes a second.
    pub rate_max: Option<u64>,
    /// Copy zeros where a source cannot be read.
    pub salvage: bool,
    /// Let the host copy from file to file where it can.
    pub copy_range: bool,
    /// How the target passes through the page cache, or around it.
    pub caching: Caching,
    /// Whether the target is durable in the end.
    pub durability: Durability,
    /// Read the target back and compare it with the sources.
    pub verify: bool,
    /// Compute the SHA-256 of the content.
    pub digest: bool,
}

impl ConvertOptions {
    /// What can be said before anything is opened.
    pub(super) fn check(&self, size: u64) -> Result<(), ConvertError> {
        let is_qcow2 = matches!(self.target, TargetImage::Qcow2 { .. });
        if self.compress && !is_qcow2 {
            return Err(ConvertError::CompressedRaw);
        }
        if let TargetImage::Qcow2 { create, preallocation } = &self.target {
            create.check()?;
            if self.existing == ExistingTarget::Replace && create.size.get() < size {
                let size = ByteCount::new(size);
                return Err(ConvertError::TargetTooSmall { target: create.size, size });
            }
            if self.compress && create.data_file.is_some() {
                return Err(ConvertError::CompressedDataFile);
            }
            if self.compress && *preallocation != Preallocation::Off {
                return Err(ConvertError::CompressedPreallocation);
            }
        }
        assert!(0 < self.threads);
        Ok(())
    }
}

/// A part of a source that could not be read, and is zeros in the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Salvaged {
    /// First byte.
    pub at: u64,
    /// Number of bytes.
    pub length: u64,
    /// Why.
    pub reason: String,
}

/// What was copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConvertReport {
    /// Bytes of content.
    pub size: ByteCount,
    /// SHA-256 of the content, if asked for.
    pub digest: Option<[u8; 32]>,
    /// Parts that could not be read.
    pub salvaged: Vec<Salvaged>,
}

/// Why a copy failed. The target's name is as it was before, except with
/// [`ExistingTarget::Overwrite`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConvertError {
    /// A source could not be read.
    #[error("error while reading at byte {at}: {source}")]
    Read {
        /// Where.
        at: u64,
        /// Why.
        source: Error,
    },
    /// The target could not be opened, written or made durable.
    #[error(transparent)]
    Target(#[from] StorageError),
    /// The target cannot be made as asked.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The target cannot be written.
    #[error(transparent)]
    Write(#[from] BlockError),
    /// The target is an export, which has to be there already.
    #[error(
        "Protocol driver 'nbd' does not support creating new images, so an existing image must be \
         selected as the target of the write"
    )]
    RemoteTarget,
    /// The target is smaller than the sources.
    #[error("the target has {target} bytes, but the content has {size}")]
    TargetTooSmall {
        /// Size of the target.
        target: ByteCount,
        /// Size of the content.
        size: ByteCount,
    },
    /// Raw files hold no compressed clusters.
    #[error("Compression not supported for this file format")]
    CompressedRaw,
    /// External data files hold no compressed clusters.
    #[error("an external data file cannot hold compressed clusters")]
    CompressedDataFile,
    /// Compressed clusters have no size before they exist.
    #[error("Compression and preallocation not supported at the same time")]
    CompressedPreallocation,
    /// The existing target cannot be opened.
    #[error("the existing target: {0}")]
    Existing(#[source] Error),
    /// The existing target has something that a new image of its kind would lack.
    #[error(
        "the existing target has {what}, which would be lost: leave out -n to replace it by a new \
         image, or convert to raw"
    )]
    ExistingHas {
        /// What it has.
        what: &'static str,
    },
    /// The target does not read as the sources do.
    #[error("verification failed: the target differs from the source at byte {at}")]
    VerifyMismatch {
        /// First difference, rounded down to a sector.
        at: u64,
    },
    /// The target could not be read back.
    #[error("verification failed: the target cannot be read back: {0}")]
    VerifyRead(#[source] Error),
    /// The compressor failed.
    #[error(transparent)]
    Compressor(cowl_qcow2::Error),
    /// Stopped because another worker failed first.
    #[error("stopped")]
    Stopped,
}
