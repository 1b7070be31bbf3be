//! A disk: an open image of any format, with its chain.

use std::path::Path;

use cowl_block::{BlockDevice, BlockError, DeviceResult, Extent, RawImage, ZeroRequest};
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::Image;
use cowl_storage::{FileStorage, IoBuffer, Storage};

use crate::error::Error;
use crate::format::Format;
use crate::open::{Chain, Files, OpenOptions, StorageOpener, open_chain};

/// An open disk, for reading.
///
/// `S` is the driver below; [`Disk::open`] takes the plain one, whose requests complete on the
/// calling thread.
pub struct Disk<S: Storage = FileStorage> {
    chain: Chain<S>,
}

impl Disk<FileStorage> {
    /// Opens the image at `path`, and what it needs as far as `options` allows.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<Self, Error> {
        pollster::block_on(Self::open_with(&Files, path, options))
    }

    /// Fills `buffer` from byte `at` of the disk, on the calling thread.
    ///
    /// Any offset and length within the disk. After an error the content of `buffer` is
    /// unspecified.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        Ok(pollster::block_on(self.read_into(GuestOffset::new(at), buffer))?)
    }

    /// How `length` bytes from `at` on are stored; see [`BlockDevice::extents`]. May stop early.
    pub fn extents_at(&self, at: u64, length: u64) -> Result<Vec<Extent>, Error> {
        let extents = BlockDevice::extents(self, GuestOffset::new(at), ByteCount::new(length));
        Ok(pollster::block_on(extents)?)
    }
}

impl<S: Storage> Disk<S> {
    /// Opens the image at `path` with files from `opener`.
    pub async fn open_with<O: StorageOpener<Storage = S>>(
        opener: &O,
        path: &Path,
        options: &OpenOptions,
    ) -> Result<Self, Error> {
        Ok(Self { chain: open_chain(opener, path, options).await? })
    }

    /// The format of the top image.
    #[must_use]
    pub fn format(&self) -> Format {
        match &self.chain {
            Chain::Raw(_) => Format::Raw,
            Chain::Qcow2(_) => Format::Qcow2,
        }
    }

    /// The qcow2 image, when the top image is one.
    #[must_use]
    pub fn qcow2(&self) -> Option<&Image<S>> {
        match &self.chain {
            Chain::Raw(_) => None,
            Chain::Qcow2(image) => Some(image),
        }
    }

    /// The raw image, when the top image is one.
    #[must_use]
    pub fn raw(&self) -> Option<&RawImage<S>> {
        match &self.chain {
            Chain::Raw(raw) => Some(raw),
            Chain::Qcow2(_) => None,
        }
    }

    /// Fills `buffer` from guest offset `at`; bytes go straight from the host file to `buffer`
    /// where the driver answers inline.
    pub async fn read_into(&self, at: GuestOffset, buffer: &mut [u8]) -> Result<(), BlockError> {
        match &self.chain {
            Chain::Raw(raw) => raw.read_into(at, buffer).await,
            Chain::Qcow2(image) => Ok(image.read_into(at, buffer).await?),
        }
    }
}

impl<S: Storage> BlockDevice for Disk<S> {
    fn size(&self) -> ByteCount {
        match &self.chain {
            Chain::Raw(raw) => BlockDevice::size(raw),
            Chain::Qcow2(image) => BlockDevice::size(image),
        }
    }

    fn request_alignment(&self) -> ByteCount {
        match &self.chain {
            Chain::Raw(raw) => raw.request_alignment(),
            Chain::Qcow2(image) => image.request_alignment(),
        }
    }

    fn is_read_only(&self) -> bool {
        true
    }

    async fn read(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        match &self.chain {
            Chain::Raw(raw) => raw.read(at, buffer).await,
            Chain::Qcow2(image) => BlockDevice::read(image, at, buffer).await,
        }
    }

    async fn write(&self, _: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        (Err(BlockError::ReadOnly), buffer)
    }

    async fn zero(&self, _: GuestOffset, _: ByteCount, _: ZeroRequest) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    async fn discard(&self, _: GuestOffset, _: ByteCount) -> Result<(), BlockError> {
        Err(BlockError::ReadOnly)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn extents(&self, at: GuestOffset, length: ByteCount) -> Result<Vec<Extent>, BlockError> {
        match &self.chain {
            Chain::Raw(raw) => raw.extents(at, length).await,
            Chain::Qcow2(image) => BlockDevice::extents(image, at, length).await,
        }
    }
}
