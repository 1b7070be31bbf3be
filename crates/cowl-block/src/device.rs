//! The trait that servers and tools speak.

use core::future::Future;

use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::IoBuffer;

use crate::{BlockError, Extent};

/// The outcome of a request together with its buffer, which always comes back.
pub type DeviceResult = (Result<(), BlockError>, IoBuffer);

/// How a write of zeros may be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroRequest {
    /// Host space may be given back.
    MayUnmap,
    /// Host space stays allocated.
    KeepAllocated,
}

/// What new bytes of a device that grows stand on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Growth {
    /// Nothing yet: space is taken when they are written.
    Sparse,
    /// Space that the host has reserved, so that writing them cannot run out of it.
    Allocated,
}

/// A virtual disk.
///
/// Offsets and lengths are bytes and need no alignment; requests that meet
/// [`request_alignment`](Self::request_alignment) are served without copying. A request past
/// [`size`](Self::size) fails as a whole. Requests run in parallel, from any number of tasks.
pub trait BlockDevice: Send + Sync {
    /// Size of the disk as the guest sees it, in bytes.
    fn size(&self) -> ByteCount;

    /// The alignment that is served best, in bytes.
    fn request_alignment(&self) -> ByteCount;

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool;

    /// Fills `buffer` from guest offset `at`.
    fn read(&self, at: GuestOffset, buffer: IoBuffer) -> impl Future<Output = DeviceResult>;

    /// Writes all of `buffer` at guest offset `at`. Not durable before [`flush`](Self::flush).
    fn write(&self, at: GuestOffset, buffer: IoBuffer) -> impl Future<Output = DeviceResult>;

    /// As [`write`](Self::write), and durable when it returns (force unit access). So is then
    /// everything acknowledged before.
    fn write_through(
        &self,
        at: GuestOffset,
        buffer: IoBuffer,
    ) -> impl Future<Output = DeviceResult> {
        async move {
            match self.write(at, buffer).await {
                (Ok(()), buffer) => (self.flush().await, buffer),
                failed => failed,
            }
        }
    }

    /// Makes a range read as zeros.
    fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Gives up the content of a range.
    fn discard(
        &self,
        at: GuestOffset,
        length: ByteCount,
    ) -> impl Future<Output = Result<(), BlockError>>;

    /// Returns when every request acknowledged before the call is durable.
    fn flush(&self) -> impl Future<Output = Result<(), BlockError>>;

    /// Returns when every request acknowledged before the call outlives this process, though not
    /// the host: nothing of it is in the memory of the process alone.
    fn persist(&self) -> impl Future<Output = Result<(), BlockError>> {
        self.flush()
    }

    /// How `at..at + length` is stored, in order, without gaps, neighbours that continue each other
    /// merged. May stop early, but never before the first extent.
    fn extents(
        &self,
        at: GuestOffset,
        length: ByteCount,
    ) -> impl Future<Output = Result<Vec<Extent>, BlockError>>;

    /// Makes the device `size` bytes large. New bytes read as zeros, what a smaller size cuts off
    /// is gone. Requests past the smaller of both sizes must not run at the same time.
    ///
    /// Devices of fixed size refuse it.
    fn resize(
        &self,
        size: ByteCount,
        growth: Growth,
    ) -> impl Future<Output = Result<(), BlockError>> {
        let _nothing_is_changed = (size, growth);
        async { Err(BlockError::Unsupported { what: "changing the size of the device" }) }
    }

    /// Bytes that the host has given to the device so far, its metadata included: what `du` would
    /// say. Cheap, and out of date as soon as it is told. A device that cannot tell takes its size.
    fn allocated(&self) -> impl Future<Output = Result<ByteCount, BlockError>> {
        async { Ok(self.size()) }
    }
}
