//! A disk as the servers see it: the open image, and how requests are carried out on it.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Arc, Weak};

use cowl::{BlockDevice, BlockError, ByteCount, Disk, Extent, Growth, GuestOffset, ZeroRequest};
use cowl_storage::{IoBuffer, UringStorage};
use event_listener::{Event, EventListener};

use crate::counters::{Counters, Kind};

/// The outcome of a request together with its buffer.
type Outcome = (Result<(), BlockError>, IoBuffer);

/// An open image.
pub(crate) struct OpenDisk {
    pub(crate) path: PathBuf,
    pub(crate) disk: Disk<UringStorage>,
}

/// A reference to an open image that is heard when it is dropped.
pub(crate) struct DiskRef {
    open: Option<Arc<OpenDisk>>,
    released: Arc<Event>,
}

impl DiskRef {
    pub(crate) fn new(path: PathBuf, disk: Disk<UringStorage>) -> Self {
        Self { open: Some(Arc::new(OpenDisk { path, disk })), released: Arc::default() }
    }

    fn shared(&self) -> &Arc<OpenDisk> {
        self.open.as_ref().expect("it is there until it is dropped")
    }

    pub(crate) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(self.shared(), other.shared())
    }

    /// Which disk it is, without keeping it open.
    pub(crate) fn identity(&self) -> Weak<OpenDisk> {
        Arc::downgrade(self.shared())
    }

    pub(crate) fn is(&self, identity: &Weak<OpenDisk>) -> bool {
        std::ptr::eq(Arc::as_ptr(self.shared()), identity.as_ptr())
    }

    /// How many references there are, this one included.
    pub(crate) fn count(&self) -> usize {
        Arc::strong_count(self.shared())
    }

    /// Heard whenever a reference has gone.
    pub(crate) fn released(&self) -> EventListener {
        self.released.listen()
    }

    /// The image itself, if this is the last reference.
    pub(crate) fn into_inner(mut self) -> Result<OpenDisk, Self> {
        let shared = self.open.take().expect("it is there until it is dropped");
        Arc::try_unwrap(shared).map_err(|shared| {
            self.open = Some(shared);
            // Nothing has gone, so nobody is to hear anything.
            self
        })
    }
}

impl Clone for DiskRef {
    fn clone(&self) -> Self {
        Self { open: Some(Arc::clone(self.shared())), released: Arc::clone(&self.released) }
    }
}

impl Deref for DiskRef {
    type Target = OpenDisk;

    fn deref(&self) -> &OpenDisk {
        self.shared()
    }
}

impl Drop for DiskRef {
    fn drop(&mut self) {
        // First the reference, then the news of it.
        drop(self.open.take());
        self.released.notify(usize::MAX);
    }
}

/// What becomes of writes that hold only zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeros {
    /// They are writes like any other.
    #[default]
    Off,
    /// They become zeros that keep their space.
    On,
    /// They become zeros that may give back their space.
    Unmap,
}

/// How requests are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Every change is durable when it is acknowledged.
    pub write_through: bool,
    /// Flushes do nothing: a crash of the host may lose everything.
    pub never_flush: bool,
    /// Discards give back space; else they do nothing, and zeros keep their space.
    pub discard: bool,
    /// Writes of zeros.
    pub detect_zeros: DetectZeros,
}

impl Rules {
    /// Changes are durable when they are flushed, and discards give back space.
    #[must_use]
    pub const fn standard() -> Self {
        Self {
            write_through: false,
            never_flush: false,
            discard: true,
            detect_zeros: DetectZeros::Off,
        }
    }
}

/// A disk under the rules of one export.
pub(crate) struct ServedDisk {
    open: DiskRef,
    rules: Rules,
    pub(crate) counters: Arc<Counters>,
}

impl ServedDisk {
    pub(crate) fn new(open: DiskRef, rules: Rules) -> Self {
        Self { open, rules, counters: Arc::default() }
    }

    fn disk(&self) -> &Disk<UringStorage> {
        &self.open.disk
    }

    fn zero_request(&self, how: ZeroRequest) -> ZeroRequest {
        if self.rules.discard { how } else { ZeroRequest::KeepAllocated }
    }

    /// What a write of these bytes is turned into, if anything.
    fn as_zeros(&self, bytes: &[u8]) -> Option<ZeroRequest> {
        let how = match self.rules.detect_zeros {
            DetectZeros::Off => return None,
            DetectZeros::On => ZeroRequest::KeepAllocated,
            DetectZeros::Unmap => self.zero_request(ZeroRequest::MayUnmap),
        };
        cowl_tools::is_zero(bytes).then_some(how)
    }

    async fn flush_uncounted(&self) -> Result<(), BlockError> {
        if self.rules.never_flush {
            return Ok(());
        }
        BlockDevice::flush(self.disk()).await
    }

    /// After a change: durable, where every change has to be.
    async fn settle(&self, outcome: Result<(), BlockError>) -> Result<(), BlockError> {
        outcome?;
        if self.rules.write_through { self.flush_uncounted().await } else { Ok(()) }
    }

    async fn write_uncounted(&self, at: GuestOffset, buffer: IoBuffer) -> Outcome {
        if let Some(how) = self.as_zeros(&buffer) {
            let length = ByteCount::from_usize(buffer.len());
            let outcome = BlockDevice::zero(self.disk(), at, length, how).await;
            return (self.settle(outcome).await, buffer);
        }
        let (outcome, buffer) = self.disk().write(at, buffer).await;
        (self.settle(outcome).await, buffer)
    }

    fn count(&self, kind: Kind, bytes: u64, outcome: &Result<(), BlockError>) {
        if let Err(error) = outcome {
            tracing::warn!(request = kind.name(), bytes, %error, "a request failed");
        }
        self.counters.add(kind, bytes, outcome.is_ok());
    }
}

impl BlockDevice for ServedDisk {
    fn size(&self) -> ByteCount {
        self.disk().size()
    }

    fn request_alignment(&self) -> ByteCount {
        self.disk().request_alignment()
    }

    fn is_read_only(&self) -> bool {
        self.disk().is_read_only()
    }

    async fn read(&self, at: GuestOffset, buffer: IoBuffer) -> Outcome {
        let (outcome, buffer) = self.disk().read(at, buffer).await;
        self.count(Kind::Read, ByteCount::from_usize(buffer.len()).get(), &outcome);
        (outcome, buffer)
    }

    async fn write(&self, at: GuestOffset, buffer: IoBuffer) -> Outcome {
        let (outcome, buffer) = self.write_uncounted(at, buffer).await;
        self.count(Kind::Write, ByteCount::from_usize(buffer.len()).get(), &outcome);
        (outcome, buffer)
    }

    async fn write_through(&self, at: GuestOffset, buffer: IoBuffer) -> Outcome {
        let (mut outcome, buffer) = self.write_uncounted(at, buffer).await;
        if outcome.is_ok() && !self.rules.write_through {
            outcome = self.flush_uncounted().await;
        }
        self.count(Kind::Write, ByteCount::from_usize(buffer.len()).get(), &outcome);
        (outcome, buffer)
    }

    async fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> Result<(), BlockError> {
        let zero = BlockDevice::zero(self.disk(), at, length, self.zero_request(how));
        let outcome = self.settle(zero.await).await;
        self.count(Kind::Zero, length.get(), &outcome);
        outcome
    }

    async fn discard(&self, at: GuestOffset, length: ByteCount) -> Result<(), BlockError> {
        let outcome = match self.rules.discard {
            true => self.settle(BlockDevice::discard(self.disk(), at, length).await).await,
            false => Ok(()),
        };
        self.count(Kind::Discard, length.get(), &outcome);
        outcome
    }

    async fn flush(&self) -> Result<(), BlockError> {
        let outcome = self.flush_uncounted().await;
        self.count(Kind::Flush, 0, &outcome);
        outcome
    }

    async fn persist(&self) -> Result<(), BlockError> {
        self.disk().persist().await
    }

    async fn extents(&self, at: GuestOffset, length: ByteCount) -> Result<Vec<Extent>, BlockError> {
        self.disk().extents(at, length).await
    }

    async fn resize(&self, size: ByteCount, growth: Growth) -> Result<(), BlockError> {
        let resized = BlockDevice::resize(self.disk(), size, growth).await;
        self.settle(resized).await
    }

    async fn allocated(&self) -> Result<ByteCount, BlockError> {
        self.disk().allocated().await
    }
}
