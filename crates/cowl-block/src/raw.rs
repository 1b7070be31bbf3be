//! The raw format: guest byte n is byte n of the host file, or of a window of it.
//!
//! The size is fixed when the image is opened and needs not be a multiple of 512. Where the file is
//! shorter than the image the rest reads as zeros; writing there extends the file.
//!
//! Not here: changing the size of an open image while requests run, beyond [`RawImage::resize`].

use std::sync::atomic::{AtomicU64, Ordering};

use cowl_format::{ByteCount, GuestOffset, HostOffset};
use cowl_storage::{Allocation, IoBuffer, Purpose, Storage, ZeroMode};

use crate::{BlockDevice, BlockError, DeviceResult, Extent, ExtentKind, Growth, ZeroRequest};

/// Runs told by one call of [`BlockDevice::extents`]: bounds its memory on badly fragmented files.
const EXTENTS_MAX: usize = 4096;

/// Which part of the file is the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawOptions {
    /// Where in the file guest byte 0 lies.
    pub offset: HostOffset,
    /// Size of the image; `None` for everything from `offset` to the end of the file.
    pub size: Option<ByteCount>,
    /// What its reads and writes are for, in traces: [`Purpose::BackingData`] for a layer below.
    pub purpose: Purpose,
}

impl RawOptions {
    /// The whole file, as guest data.
    #[must_use]
    pub const fn whole_file() -> Self {
        Self { offset: HostOffset::ZERO, size: None, purpose: Purpose::GuestData }
    }
}

/// A raw image.
#[derive(Debug)]
pub struct RawImage<S> {
    storage: S,
    offset: HostOffset,
    /// In bytes. Only `resize` changes it.
    size: AtomicU64,
    /// Whether the file may go on behind the image.
    is_window: bool,
    purpose: Purpose,
}

impl<S: Storage> RawImage<S> {
    /// The image in `storage`.
    ///
    /// A window that starts behind the end of the file, without a size of its own, is empty.
    pub async fn open(storage: S, options: RawOptions) -> Result<Self, BlockError> {
        let size = match options.size {
            Some(size) => size,
            None => {
                let length = storage.len().await?;
                ByteCount::new(length.get().saturating_sub(options.offset.get()))
            }
        };
        if options.offset.checked_add(size).is_none() {
            return Err(BlockError::OutOfRange { at: GuestOffset::ZERO, length: size, size });
        }
        Ok(Self {
            storage,
            offset: options.offset,
            size: AtomicU64::new(size.get()),
            is_window: options.size.is_some(),
            purpose: options.purpose,
        })
    }

    /// The file below.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Gives the file back.
    #[must_use]
    pub fn into_storage(self) -> S {
        self.storage
    }

    /// Makes the image `size` bytes long, and the file end with it. New bytes read as zeros.
    ///
    /// Requests past the smaller of both sizes must not run at the same time. A window of given
    /// size cannot change: what lies behind it is not the image's.
    pub async fn resize(&self, size: ByteCount) -> Result<(), BlockError> {
        self.check_writable()?;
        if self.is_window {
            return Err(BlockError::Unsupported { what: "resizing a window of a file" });
        }
        let Some(end) = self.offset.checked_add(size) else {
            return Err(BlockError::OutOfRange {
                at: GuestOffset::ZERO,
                length: size,
                size: self.size(),
            });
        };
        let length = end.since(HostOffset::ZERO);
        // A write that was dropped may still be on its way, and would make the file longer again.
        self.storage.settle().await;
        self.storage.set_len(length, Purpose::FileLength).await?;
        self.size.store(size.get(), Ordering::Release);
        Ok(())
    }

    /// Fills `bytes` from guest offset `at`, without a copy where the storage answers at once.
    pub async fn read_into(&self, at: GuestOffset, bytes: &mut [u8]) -> Result<(), BlockError> {
        let host = self.host(at, ByteCount::from_usize(bytes.len()))?;
        if let Some(result) = self.storage.try_read(host, bytes, self.purpose) {
            result?;
            return Ok(());
        }
        let buffer = IoBuffer::zeroed(bytes.len());
        let (result, buffer) = self.storage.read(host, buffer, self.purpose).await;
        result?;
        bytes.copy_from_slice(&buffer);
        Ok(())
    }

    /// Writes `bytes` at guest offset `at`, without a copy where the storage answers at once.
    pub async fn write_from(&self, at: GuestOffset, bytes: &[u8]) -> Result<(), BlockError> {
        let host = self.host_of_write(at, ByteCount::from_usize(bytes.len()))?;
        if let Some(result) = self.storage.try_write(host, bytes, self.purpose) {
            return Ok(result?);
        }
        let (result, _) = self.storage.write(host, IoBuffer::from_slice(bytes), self.purpose).await;
        Ok(result?)
    }

    /// Where in the file a request goes, if it lies in the image.
    fn host(&self, at: GuestOffset, length: ByteCount) -> Result<HostOffset, BlockError> {
        let size = self.size();
        match at.checked_add(length) {
            Some(end) if end.get() <= size.get() => Ok(self.offset + at.since(GuestOffset::ZERO)),
            _ => Err(BlockError::OutOfRange { at, length, size }),
        }
    }

    fn check_writable(&self) -> Result<(), BlockError> {
        if self.is_read_only() { Err(BlockError::ReadOnly) } else { Ok(()) }
    }

    fn host_of_write(&self, at: GuestOffset, length: ByteCount) -> Result<HostOffset, BlockError> {
        self.check_writable()?;
        self.host(at, length)
    }
}

impl<S: Storage> BlockDevice for RawImage<S> {
    fn size(&self) -> ByteCount {
        ByteCount::new(self.size.load(Ordering::Acquire))
    }

    fn request_alignment(&self) -> ByteCount {
        ByteCount::new(u64::from(self.storage.capabilities().io_alignment))
    }

    fn is_read_only(&self) -> bool {
        self.storage.capabilities().read_only
    }

    async fn read(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        let host = match self.host(at, ByteCount::from_usize(buffer.len())) {
            Ok(host) => host,
            Err(error) => return (Err(error), buffer),
        };
        let (result, buffer) = self.storage.read(host, buffer, self.purpose).await;
        (result.map(|_| ()).map_err(BlockError::from), buffer)
    }

    async fn write(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        let host = match self.host_of_write(at, ByteCount::from_usize(buffer.len())) {
            Ok(host) => host,
            Err(error) => return (Err(error), buffer),
        };
        let (result, buffer) = self.storage.write(host, buffer, self.purpose).await;
        (result.map_err(BlockError::from), buffer)
    }

    async fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> Result<(), BlockError> {
        let host = self.host_of_write(at, length)?;
        let mode = match how {
            ZeroRequest::MayUnmap => ZeroMode::MayUnmap,
            ZeroRequest::KeepAllocated => ZeroMode::KeepAllocated,
        };
        self.storage.zero(host, length, mode, self.purpose).await?;
        Ok(())
    }

    async fn discard(&self, at: GuestOffset, length: ByteCount) -> Result<(), BlockError> {
        let host = self.host_of_write(at, length)?;
        self.storage.discard(host, length, self.purpose).await?;
        Ok(())
    }

    /// The host has what was written.
    async fn persist(&self) -> Result<(), BlockError> {
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        // Nothing was written, and a barrier on a file opened for reading can only fail.
        if self.is_read_only() {
            return Ok(());
        }
        self.storage.barrier(Purpose::Barrier).await?;
        Ok(())
    }

    async fn resize(&self, size: ByteCount, growth: Growth) -> Result<(), BlockError> {
        let before = BlockDevice::size(self);
        RawImage::resize(self, size).await?;
        if growth == Growth::Allocated && before < size {
            let at = self.offset + before;
            let how = Allocation::Reserve;
            self.storage.allocate(at, size - before, how, Purpose::Preallocation).await?;
        }
        Ok(())
    }

    async fn allocated(&self) -> Result<ByteCount, BlockError> {
        Ok(self.storage.allocated().await?)
    }

    async fn extents(&self, at: GuestOffset, length: ByteCount) -> Result<Vec<Extent>, BlockError> {
        let mut host = self.host(at, length)?;
        let mut extents = Vec::new();
        let mut start = at;
        let mut rest = length;
        while ByteCount::ZERO < rest && extents.len() < EXTENTS_MAX {
            let run = self.storage.extent(host, rest).await?;
            // Behind the end of the file the image reads as zeros.
            let (run_length, hole) = run.map_or((rest, true), |run| (run.length, run.hole));
            // A driver that told too much must not make us wrap around.
            let run_length = run_length.min(rest);
            push_merged(&mut extents, start, host, run_length, hole);
            start = start + run_length;
            host = host + run_length;
            rest = rest - run_length;
        }
        Ok(extents)
    }
}

/// Adds a run, or lengthens the last one if it is of the same kind.
fn push_merged(
    extents: &mut Vec<Extent>,
    start: GuestOffset,
    host: HostOffset,
    length: ByteCount,
    hole: bool,
) {
    if let Some(last) = extents.last_mut()
        && let ExtentKind::Data { hole: last_hole, .. } = last.kind
        && last_hole == hole
    {
        last.length = last.length + length;
        return;
    }
    let kind = ExtentKind::Data { host: Some(host), hole };
    extents.push(Extent { start, length, depth: 0, kind });
}
