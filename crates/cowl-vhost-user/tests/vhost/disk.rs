//! A disk in memory that writes down what it was asked, and that waits when it is told to.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard};

use cowl_block::{BlockDevice, BlockError, DeviceResult, Extent, ZeroRequest};
use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::IoBuffer;
use event_listener::Event;

/// A call of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Read { at: u64, length: usize, shared: bool },
    Write { at: u64, length: usize, shared: bool },
    WriteThrough { at: u64, length: usize },
    Zero { at: u64, length: u64, how: ZeroRequest },
    Discard { at: u64, length: u64 },
    Flush,
}

#[derive(Default)]
pub(crate) struct TestDisk {
    bytes: Mutex<Vec<u8>>,
    calls: Mutex<Vec<Call>>,
    size: AtomicU64,
    pub(crate) read_only: AtomicBool,
    pub(crate) failing: AtomicBool,
    /// Requests that touch this offset or lie behind it wait until the gate opens.
    held_from: Mutex<Option<u64>>,
    opened: Event,
    waiting: AtomicUsize,
    /// How often it was asked to let what it did outlive the process.
    pub(crate) persisted: AtomicUsize,
}

impl TestDisk {
    pub(crate) fn new(size: usize) -> Self {
        let disk = Self { bytes: Mutex::new(vec![0; size]), ..Self::default() };
        disk.size.store(size as u64, Ordering::SeqCst);
        disk
    }

    pub(crate) fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap()
    }

    /// The calls since the last time.
    pub(crate) fn calls(&self) -> Vec<Call> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    pub(crate) fn grow(&self, size: usize) {
        self.bytes().resize(size, 0);
        self.size.store(size as u64, Ordering::SeqCst);
    }

    /// Lets requests at `at` and behind wait.
    pub(crate) fn hold(&self, at: u64) {
        *self.held_from.lock().unwrap() = Some(at);
    }

    pub(crate) fn release(&self) {
        *self.held_from.lock().unwrap() = None;
        self.opened.notify(usize::MAX);
    }

    /// Waits until `count` requests wait.
    pub(crate) fn await_waiting(&self, count: usize) {
        while self.waiting.load(Ordering::SeqCst) < count {
            std::thread::yield_now();
        }
    }

    async fn pass(&self, at: u64, call: Call) -> Result<(), BlockError> {
        self.calls.lock().unwrap().push(call);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        loop {
            let opened = self.opened.listen();
            let held = *self.held_from.lock().unwrap();
            if held.is_none_or(|from| at < from) {
                break;
            }
            opened.await;
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        match self.failing.load(Ordering::SeqCst) {
            true => Err(BlockError::Unsupported { what: "anything" }),
            false => Ok(()),
        }
    }

    fn put(&self, at: u64, bytes: &[u8]) {
        self.bytes()[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }
}

impl BlockDevice for TestDisk {
    fn size(&self) -> ByteCount {
        ByteCount::new(self.size.load(Ordering::SeqCst))
    }

    fn request_alignment(&self) -> ByteCount {
        ByteCount::new(4096)
    }

    fn is_read_only(&self) -> bool {
        self.read_only.load(Ordering::SeqCst)
    }

    async fn read(&self, at: GuestOffset, mut buffer: IoBuffer) -> DeviceResult {
        let (at, length, shared) = (at.get(), buffer.len(), buffer.is_shared());
        let result = self.pass(at, Call::Read { at, length, shared }).await;
        if result.is_ok() {
            buffer.copy_from_slice(&self.bytes()[at as usize..at as usize + length]);
        }
        (result, buffer)
    }

    async fn write(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        let (at, length, shared) = (at.get(), buffer.len(), buffer.is_shared());
        let result = self.pass(at, Call::Write { at, length, shared }).await;
        if result.is_ok() {
            self.put(at, &buffer);
        }
        (result, buffer)
    }

    async fn write_through(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        let (at, length) = (at.get(), buffer.len());
        let result = self.pass(at, Call::WriteThrough { at, length }).await;
        if result.is_ok() {
            self.put(at, &buffer);
        }
        (result, buffer)
    }

    async fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> Result<(), BlockError> {
        let (at, length) = (at.get(), length.get());
        self.pass(at, Call::Zero { at, length, how }).await?;
        self.put(at, &vec![0; length as usize]);
        Ok(())
    }

    async fn discard(&self, at: GuestOffset, length: ByteCount) -> Result<(), BlockError> {
        let (at, length) = (at.get(), length.get());
        self.pass(at, Call::Discard { at, length }).await
    }

    async fn persist(&self) -> Result<(), BlockError> {
        self.persisted.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.pass(0, Call::Flush).await
    }

    async fn extents(&self, _: GuestOffset, _: ByteCount) -> Result<Vec<Extent>, BlockError> {
        Err(BlockError::Unsupported { what: "extents" })
    }
}
