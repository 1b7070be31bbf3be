//! A disk: an open image of any format, with its chain.

use std::path::Path;

use cowl_block::{BlockDevice, BlockError, DeviceResult, Extent, Growth, RawImage, ZeroRequest};
use cowl_format::{ByteCount, GuestOffset, HostOffset};
use cowl_qcow2::{Image, Preallocation};
use cowl_storage::{Allocation, Blocking, FileStorage, IoBuffer, Purpose, Storage};

use crate::error::Error;
use crate::format::Format;
use crate::open::{Chain, Files, OpenOptions, StorageOpener, open_chain};

/// An open disk.
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
}

impl<S: Blocking> Disk<S> {
    /// Fills `buffer` from byte `at` of the disk, on the calling thread.
    ///
    /// Any offset and length within the disk. After an error the content of `buffer` is
    /// unspecified.
    pub fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<(), Error> {
        let at = GuestOffset::new(at);
        if let Chain::Qcow2(image) = &self.chain
            && let Some(result) = image.read_now(at, buffer)
        {
            return Ok(result.map_err(BlockError::from)?);
        }
        Ok(pollster::block_on(self.read_into(at, buffer))?)
    }

    /// Writes `bytes` at byte `at` of the disk, on the calling thread. Not durable before
    /// [`flush`](Self::flush).
    pub fn write_at(&self, bytes: &[u8], at: u64) -> Result<(), Error> {
        Ok(pollster::block_on(self.write_from(GuestOffset::new(at), bytes))?)
    }

    /// Makes `length` bytes from `at` on read as zeros.
    pub fn zero_at(&self, at: u64, length: u64, how: ZeroRequest) -> Result<(), Error> {
        let zero = BlockDevice::zero(self, GuestOffset::new(at), ByteCount::new(length), how);
        Ok(pollster::block_on(zero)?)
    }

    /// Gives up the content of `length` bytes from `at` on. Whole clusters read as zeros
    /// afterwards, where the format can say so; the rest keeps its content.
    pub fn discard_at(&self, at: u64, length: u64) -> Result<(), Error> {
        let discard = BlockDevice::discard(self, GuestOffset::new(at), ByteCount::new(length));
        Ok(pollster::block_on(discard)?)
    }

    /// Writes a whole cluster, or the part of the last one within the disk, in compressed form.
    /// What does not get smaller is stored as it is. Raw disks have no compression.
    pub fn write_compressed_at(&self, bytes: &[u8], at: u64) -> Result<(), Error> {
        Ok(pollster::block_on(self.write_compressed(GuestOffset::new(at), bytes))?)
    }

    /// Changes the size of the disk. New bytes read as zeros, also over a longer backing file; what
    /// a smaller size cuts off is gone.
    pub fn resize(&self, size: u64, preallocation: Preallocation) -> Result<(), Error> {
        Ok(pollster::block_on(self.change_size(ByteCount::new(size), preallocation))?)
    }

    /// Makes everything durable, and gives back the space that was reserved for coming writes.
    ///
    /// A disk that is dropped without it is correct too; of what was reserved, a bounded part stays
    /// allocated and unused.
    pub fn close(self) -> Result<(), Error> {
        Ok(pollster::block_on(self.shut())?)
    }

    /// Returns when everything written before is durable.
    pub fn flush(&self) -> Result<(), Error> {
        Ok(pollster::block_on(BlockDevice::flush(self))?)
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

impl<S: Storage> Disk<S> {
    /// Writes `bytes` at guest offset `at`; they go straight to the host file where the driver
    /// answers inline.
    pub async fn write_from(&self, at: GuestOffset, bytes: &[u8]) -> Result<(), BlockError> {
        match &self.chain {
            Chain::Raw(raw) => raw.write_from(at, bytes).await,
            Chain::Qcow2(image) => Ok(image.write_from(at, bytes).await?),
        }
    }
}

impl<S: Storage> Disk<S> {
    /// See [`Disk::write_compressed_at`].
    pub async fn write_compressed(&self, at: GuestOffset, bytes: &[u8]) -> Result<(), BlockError> {
        match &self.chain {
            Chain::Raw(_) => Err(BlockError::Unsupported { what: "compression of a raw disk" }),
            Chain::Qcow2(image) => Ok(image.write_compressed(at, bytes).await?),
        }
    }

    /// See [`Disk::resize`].
    pub async fn change_size(
        &self,
        size: ByteCount,
        preallocation: Preallocation,
    ) -> Result<(), BlockError> {
        match &self.chain {
            Chain::Raw(raw) => resize_raw(raw, size, preallocation).await,
            Chain::Qcow2(image) => Ok(image.resize(size, preallocation).await?),
        }
    }

    /// See [`Disk::close`].
    pub async fn shut(self) -> Result<(), BlockError> {
        match self.chain {
            Chain::Raw(raw) => raw.flush().await,
            Chain::Qcow2(image) => Ok(image.close().await?),
        }
    }
}

/// A raw image is preallocated as a whole or not at all.
async fn resize_raw<S: Storage>(
    raw: &RawImage<S>,
    size: ByteCount,
    preallocation: Preallocation,
) -> Result<(), BlockError> {
    let how = match preallocation {
        Preallocation::Off => None,
        Preallocation::Falloc => Some(Allocation::Reserve),
        Preallocation::Full => Some(Allocation::WriteZeros),
        Preallocation::Metadata => {
            return Err(BlockError::Unsupported { what: "preallocated metadata of a raw disk" });
        }
    };
    let before = BlockDevice::size(raw);
    RawImage::resize(raw, size).await?;
    if let Some(how) = how
        && before < size
    {
        let at = HostOffset::new(before.get());
        raw.storage().allocate(at, size - before, how, Purpose::Preallocation).await?;
    }
    Ok(())
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
        match &self.chain {
            Chain::Raw(raw) => raw.is_read_only(),
            Chain::Qcow2(image) => image.is_read_only(),
        }
    }

    async fn read(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        match &self.chain {
            Chain::Raw(raw) => raw.read(at, buffer).await,
            Chain::Qcow2(image) => {
                // As `Image::read` has it, once more: each call that takes the buffer along costs
                // as much as finding the bytes does.
                let mut buffer = buffer;
                if let Some(result) = image.read_now(at, &mut buffer) {
                    return (result.map_err(BlockError::from), buffer);
                }
                if let Some(place) = image.host_place(at, buffer.len()) {
                    let (result, buffer) = place.read(buffer).await;
                    return match result {
                        Ok(_) => (Ok(()), buffer),
                        Err(error) => (Err(cowl_qcow2::Error::from(error).into()), buffer),
                    };
                }
                let (result, buffer) = Box::pin(image.read_waiting(at, buffer)).await;
                (result.map_err(BlockError::from), buffer)
            }
        }
    }

    async fn write(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        match &self.chain {
            Chain::Raw(raw) => raw.write(at, buffer).await,
            Chain::Qcow2(image) => BlockDevice::write(image, at, buffer).await,
        }
    }

    async fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> Result<(), BlockError> {
        match &self.chain {
            Chain::Raw(raw) => raw.zero(at, length, how).await,
            Chain::Qcow2(image) => BlockDevice::zero(image, at, length, how).await,
        }
    }

    async fn discard(&self, at: GuestOffset, length: ByteCount) -> Result<(), BlockError> {
        match &self.chain {
            Chain::Raw(raw) => raw.discard(at, length).await,
            Chain::Qcow2(image) => BlockDevice::discard(image, at, length).await,
        }
    }

    async fn flush(&self) -> Result<(), BlockError> {
        match &self.chain {
            Chain::Raw(raw) => raw.flush().await,
            Chain::Qcow2(image) => BlockDevice::flush(image).await,
        }
    }

    async fn persist(&self) -> Result<(), BlockError> {
        match &self.chain {
            Chain::Raw(raw) => raw.persist().await,
            Chain::Qcow2(image) => BlockDevice::persist(image).await,
        }
    }

    async fn extents(&self, at: GuestOffset, length: ByteCount) -> Result<Vec<Extent>, BlockError> {
        match &self.chain {
            Chain::Raw(raw) => raw.extents(at, length).await,
            Chain::Qcow2(image) => BlockDevice::extents(image, at, length).await,
        }
    }

    async fn resize(&self, size: ByteCount, growth: Growth) -> Result<(), BlockError> {
        let preallocation = match growth {
            Growth::Sparse => Preallocation::Off,
            Growth::Allocated => Preallocation::Falloc,
        };
        self.change_size(size, preallocation).await
    }

    async fn allocated(&self) -> Result<ByteCount, BlockError> {
        match &self.chain {
            Chain::Raw(raw) => raw.allocated().await,
            Chain::Qcow2(image) => image.allocated().await,
        }
    }
}
