//! A disk in memory that can be told to fail or to keep requests waiting.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::time::Duration;

use cowl_block::{
    BlockDevice, BlockError, DeviceResult, Extent, RawImage, RawOptions, ZeroRequest,
};
use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::{IoBuffer, MemoryStorage};

pub(crate) struct OddDevice {
    memory: RawImage<MemoryStorage>,
    /// What writes, or flushes, fail with; 0 is success.
    pub(crate) write_errno: AtomicI32,
    pub(crate) flush_errno: AtomicI32,
    pub(crate) read_errno: AtomicI32,
    /// Requests stay where they are while this is set.
    pub(crate) is_stuck: Mutex<bool>,
    pub(crate) waiting: AtomicUsize,
}

impl OddDevice {
    pub(crate) fn new(size: usize) -> Self {
        let storage = MemoryStorage::from_vec(vec![0; size]);
        let open = RawImage::open(storage, RawOptions::whole_file());
        let memory = compio::runtime::Runtime::new().unwrap().block_on(open).unwrap();
        Self {
            memory,
            write_errno: AtomicI32::new(0),
            flush_errno: AtomicI32::new(0),
            read_errno: AtomicI32::new(0),
            is_stuck: Mutex::new(false),
            waiting: AtomicUsize::new(0),
        }
    }

    fn outcome(errno: &AtomicI32) -> Result<(), BlockError> {
        match errno.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(BlockError::Format { errno, source: "as it was told to".into() }),
        }
    }

    async fn pass(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while *self.is_stuck.lock().unwrap() {
            compio::runtime::time::sleep(Duration::from_millis(1)).await;
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl BlockDevice for OddDevice {
    fn size(&self) -> ByteCount {
        self.memory.size()
    }

    fn request_alignment(&self) -> ByteCount {
        ByteCount::new(1)
    }

    fn is_read_only(&self) -> bool {
        false
    }

    async fn read(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        self.pass().await;
        match Self::outcome(&self.read_errno) {
            Ok(()) => self.memory.read(at, buffer).await,
            failed => (failed, buffer),
        }
    }

    async fn write(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        self.pass().await;
        match Self::outcome(&self.write_errno) {
            Ok(()) => self.memory.write(at, buffer).await,
            failed => (failed, buffer),
        }
    }

    async fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> Result<(), BlockError> {
        self.memory.zero(at, length, how).await
    }

    async fn discard(&self, at: GuestOffset, length: ByteCount) -> Result<(), BlockError> {
        self.memory.discard(at, length).await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Self::outcome(&self.flush_errno)
    }

    async fn extents(&self, at: GuestOffset, length: ByteCount) -> Result<Vec<Extent>, BlockError> {
        self.memory.extents(at, length).await
    }
}
