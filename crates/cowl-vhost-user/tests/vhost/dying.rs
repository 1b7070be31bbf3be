//! A disk that answers later writes before earlier ones, and whose process dies in the middle.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use compio::runtime::time::sleep;
use cowl_block::{BlockDevice, BlockError, DeviceResult, Extent, ZeroRequest};
use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::IoBuffer;
use rustix::process::{Signal, getpid, kill_process};

/// Writes that are to be in flight on the dying thread, besides the one that ends.
const LEFT_MIN: usize = 2;

/// Writes that are to have ended there before the oldest one in flight.
const OVERTAKING_MIN: u64 = 3;

/// Writes of one thread, which has one queue here, so they are the writes of a queue.
#[derive(Default)]
struct Writes {
    begun: u64,
    in_flight: BTreeSet<u64>,
}

impl Writes {
    /// How many of them ended although an older one is in flight.
    fn overtaking(&self) -> u64 {
        let oldest = self.in_flight.first().copied().unwrap_or(self.begun);
        self.begun - oldest - self.in_flight.len() as u64
    }
}

thread_local! {
    static WRITES: RefCell<Writes> = RefCell::default();
}

/// See the head of this file.
pub(crate) struct Dying<B> {
    inner: B,
    /// Writes on all threads that are answered for certain.
    writes: u64,
    ended: AtomicU64,
}

impl<B> Dying<B> {
    /// Answers at least `writes`, then kills its process as soon as that leaves later writes
    /// answered and earlier ones not.
    pub(crate) fn after(writes: u64, inner: B) -> Self {
        Self { inner, writes, ended: AtomicU64::new(0) }
    }

    /// A write has reached the disk and is not answered.
    fn end(&self, number: u64) {
        WRITES.with_borrow_mut(|writes| {
            let _was_there = writes.in_flight.remove(&number);
            let enough = self.writes <= self.ended.fetch_add(1, Ordering::SeqCst);
            let left = LEFT_MIN <= writes.in_flight.len();
            if enough && left && OVERTAKING_MIN < writes.overtaking() {
                kill_process(getpid(), Signal::KILL).unwrap();
            }
        });
    }
}

fn begin() -> u64 {
    WRITES.with_borrow_mut(|writes| {
        let number = writes.begun;
        writes.begun += 1;
        let _is_new = writes.in_flight.insert(number);
        number
    })
}

/// Writes next to each other take differently long.
fn delay(number: u64) -> Duration {
    Duration::from_millis(number * 3 % 8 * 4)
}

impl<B: BlockDevice> BlockDevice for Dying<B> {
    fn size(&self) -> ByteCount {
        self.inner.size()
    }

    fn request_alignment(&self) -> ByteCount {
        self.inner.request_alignment()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    async fn read(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        self.inner.read(at, buffer).await
    }

    async fn write(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        let number = begin();
        sleep(delay(number)).await;
        let outcome = self.inner.write(at, buffer).await;
        self.end(number);
        outcome
    }

    async fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> Result<(), BlockError> {
        self.inner.zero(at, length, how).await
    }

    async fn discard(&self, at: GuestOffset, length: ByteCount) -> Result<(), BlockError> {
        self.inner.discard(at, length).await
    }

    async fn persist(&self) -> Result<(), BlockError> {
        self.inner.persist().await
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.inner.flush().await
    }

    async fn extents(&self, at: GuestOffset, length: ByteCount) -> Result<Vec<Extent>, BlockError> {
        self.inner.extents(at, length).await
    }
}
