//! Disks with one deliberate mistake each: what the checkers must catch.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cowl_block::{
    BlockDevice, BlockError, DeviceResult, Extent, RawImage, RawOptions, ZeroRequest,
};
use cowl_format::{ByteCount, GuestOffset, HostOffset};
use cowl_qcow2::Preallocation;
use cowl_storage::{Access, IoBuffer, Purpose, Storage};

use crate::stamp::{self, Texture};
use crate::subject::{HostTraits, Made, MetadataReport, Subject, Traits};
use crate::{SimFile, SimStorage, SimWorld};

/// What a toy does wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToyFault {
    /// Nothing: it must pass.
    None,
    /// A flush answers without a barrier.
    FlushWithoutBarrier,
    /// A read returns what was there when the same range was read before.
    StaleRead,
    /// One acknowledged write in eight is not done.
    LostWrite,
    /// One read in eight returns the bytes of the next sector.
    ForeignRead,
    /// Writes go to a second place and then a pointer moves, without a barrier between.
    PointerBeforeData,
}

impl ToyFault {
    /// Every toy.
    pub const ALL: &[Self] = &[
        Self::None,
        Self::FlushWithoutBarrier,
        Self::StaleRead,
        Self::LostWrite,
        Self::ForeignRead,
        Self::PointerBeforeData,
    ];

    /// Its name on command lines.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "toy",
            Self::FlushWithoutBarrier => "toy-flush-without-barrier",
            Self::StaleRead => "toy-stale-read",
            Self::LostWrite => "toy-lost-write",
            Self::ForeignRead => "toy-foreign-read",
            Self::PointerBeforeData => "toy-pointer-before-data",
        }
    }
}

/// A small disk with a mistake.
#[derive(Clone, Copy, Debug)]
pub struct ToySubject {
    fault: ToyFault,
}

const SIZE: u64 = 64 * 512;

/// Where the pointers of [`ToyFault::PointerBeforeData`] lie: one sector for each guest sector, and
/// behind them the second places.
const POINTERS: u64 = SIZE;
const SECOND: u64 = 2 * SIZE;

/// An open toy.
pub struct Toy {
    raw: RawImage<SimStorage>,
    fault: ToyFault,
    count: AtomicU64,
    seen: Mutex<Vec<(u64, Vec<u8>)>>,
}

impl ToySubject {
    /// The toy with this mistake.
    #[must_use]
    pub const fn new(fault: ToyFault) -> Self {
        Self { fault }
    }
}

impl Toy {
    fn is_eighth(&self) -> bool {
        self.count.fetch_add(1, Ordering::Relaxed) % 8 == 7
    }

    /// Which of both places holds a sector.
    async fn place(&self, sector: u64) -> Result<u64, BlockError> {
        let at = HostOffset::new(POINTERS + sector * 512);
        let buffer = IoBuffer::zeroed(512);
        let (result, buffer) = self.raw.storage().read(at, buffer, Purpose::L2Table).await;
        result?;
        Ok(if buffer[0] == 1 { SECOND + sector * 512 } else { sector * 512 })
    }

    async fn write_aside(&self, at: u64, buffer: &[u8]) -> Result<(), BlockError> {
        for (sector, bytes) in (at / 512..).zip(buffer.chunks(512)) {
            let is_second = SECOND <= self.place(sector).await?;
            let target = if is_second { sector * 512 } else { SECOND + sector * 512 };
            let data = IoBuffer::from_slice(bytes);
            let storage = self.raw.storage();
            storage.write(HostOffset::new(target), data, Purpose::GuestData).await.0?;
            let mut pointer = IoBuffer::zeroed(512);
            pointer[0] = u8::from(!is_second);
            let at = HostOffset::new(POINTERS + sector * 512);
            storage.write(at, pointer, Purpose::L2Table).await.0?;
        }
        Ok(())
    }

    async fn read_aside(&self, at: u64, buffer: &mut [u8]) -> Result<(), BlockError> {
        for (sector, bytes) in (at / 512..).zip(buffer.chunks_mut(512)) {
            let place = HostOffset::new(self.place(sector).await?);
            let own = IoBuffer::zeroed(bytes.len());
            let (result, own) = self.raw.storage().read(place, own, Purpose::GuestData).await;
            result?;
            bytes.copy_from_slice(&own);
        }
        Ok(())
    }

    fn remember(&self, at: u64, buffer: &mut [u8]) {
        let mut seen = self.seen.lock().expect("one thread");
        match seen.iter().find(|(start, old)| *start == at && old.len() == buffer.len()) {
            Some((_, old)) => buffer.copy_from_slice(old),
            None => seen.push((at, buffer.to_vec())),
        }
    }
}

impl BlockDevice for Toy {
    fn size(&self) -> ByteCount {
        ByteCount::new(SIZE)
    }

    fn request_alignment(&self) -> ByteCount {
        ByteCount::new(512)
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn read(&self, at: GuestOffset, mut buffer: IoBuffer) -> DeviceResult {
        if self.fault == ToyFault::PointerBeforeData {
            return (self.read_aside(at.get(), &mut buffer).await, buffer);
        }
        let next = GuestOffset::new(at.get() + 512);
        let fits = next.get() + buffer.len() as u64 <= SIZE;
        let is_foreign = self.fault == ToyFault::ForeignRead && fits && self.is_eighth();
        let from = if is_foreign { next } else { at };
        let (result, mut buffer) = self.raw.read(from, buffer).await;
        if self.fault == ToyFault::StaleRead {
            self.remember(at.get(), &mut buffer);
        }
        (result, buffer)
    }

    async fn write(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        match self.fault {
            ToyFault::LostWrite if self.is_eighth() => (Ok(()), buffer),
            ToyFault::PointerBeforeData => (self.write_aside(at.get(), &buffer).await, buffer),
            _ => self.raw.write(at, buffer).await,
        }
    }

    async fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> Result<(), BlockError> {
        if self.fault == ToyFault::PointerBeforeData {
            return self.write_aside(at.get(), &vec![0; length.as_usize()]).await;
        }
        self.raw.zero(at, length, how).await
    }

    async fn discard(&self, at: GuestOffset, length: ByteCount) -> Result<(), BlockError> {
        if self.fault == ToyFault::PointerBeforeData {
            return Ok(());
        }
        self.raw.discard(at, length).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        match self.fault {
            ToyFault::FlushWithoutBarrier => Ok(()),
            _ => self.raw.flush().await,
        }
    }

    async fn extents(&self, at: GuestOffset, length: ByteCount) -> Result<Vec<Extent>, BlockError> {
        self.raw.extents(at, length).await
    }
}

impl Subject for ToySubject {
    type Device = Toy;

    fn traits(&self) -> Traits {
        Traits {
            alignment: 512,
            cluster: 2048,
            discard_unit: 1,
            compresses: false,
            resizes: false,
            size_is_file_length: false,
        }
    }

    fn host(&self) -> HostTraits {
        HostTraits { io_alignment: 1, block_size: 512, can_discard: true, knows_holes: true }
    }

    fn make(&self) -> Result<Made, String> {
        let mut content = vec![0; usize::try_from(SIZE).expect("small")];
        stamp::fill(0, Texture::Plain, 0, &mut content);
        let mut bytes = content.clone();
        if self.fault == ToyFault::PointerBeforeData {
            bytes.resize(bytes.len() * 3, 0);
        }
        let file = SimFile { name: "toy".to_owned(), bytes, read_only: false };
        Ok(Made { files: vec![file], content, snapshots: Vec::new() })
    }

    async fn open(&self, world: &SimWorld, _: Access) -> Result<Self::Device, BlockError> {
        Ok(Toy {
            raw: RawImage::open(world.storage(0), RawOptions::whole_file()).await?,
            fault: self.fault,
            count: AtomicU64::new(0),
            seen: Mutex::default(),
        })
    }

    async fn close(&self, device: Self::Device) -> Result<(), BlockError> {
        device.flush().await
    }

    async fn write_compressed(
        &self,
        _: &Self::Device,
        _: GuestOffset,
        _: &[u8],
    ) -> Result<(), BlockError> {
        Err(BlockError::Unsupported { what: "compression" })
    }

    async fn resize(
        &self,
        _: &Self::Device,
        _: ByteCount,
        _: Preallocation,
    ) -> Result<(), BlockError> {
        Err(BlockError::Unsupported { what: "a change of size" })
    }

    async fn check(&self, _: &SimWorld) -> Option<Result<MetadataReport, BlockError>> {
        None
    }

    async fn snapshots(&self, _: &SimWorld) -> Result<Vec<Vec<u8>>, BlockError> {
        Ok(Vec::new())
    }

    async fn promises_unchanged(&self, _: &SimWorld) -> Result<bool, BlockError> {
        Ok(false)
    }

    fn raw_view(&self) -> Option<usize> {
        None
    }

    fn qemu_format(&self) -> Option<&'static str> {
        None
    }

    fn leaks_max(&self, _: &Self::Device) -> u64 {
        0
    }
}
