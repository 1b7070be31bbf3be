//! The trait between the engine and the host.
//!
//! Futures of a driver are `Send` when the driver's own are: the trait asks for no `Send` bound, so
//! a thread-per-core ring driver and a driver for any thread both fit, and auto traits decide.
//!
//! Dropping a future does not cancel its I/O. A driver whose kernel completes later keeps the
//! buffer until the kernel is done with it.

use core::future::Future;

use cowl_format::{ByteCount, HostOffset};

use crate::{FileIdentity, IoBuffer, Purpose, StorageError};

/// The outcome of an I/O together with the buffer, which always comes back.
pub type IoResult<T, B = IoBuffer> = (Result<T, StorageError>, B);

/// What a driver and its file can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Reads and writes whose offset and length are multiples of this go straight to the file;
    /// others pass through a buffer, and writes among them exclude each other. In bytes; 1 when any
    /// will do.
    pub io_alignment: u32,
    /// The same for the start of their memory, in bytes.
    pub memory_alignment: u32,
    /// The granularity at which the host allocates, in bytes: the best size of a metadata slice.
    pub block_size: u32,
    /// Whether writes are refused.
    pub read_only: bool,
    /// Whether [`Storage::try_read`] and [`Storage::try_write`] complete at once.
    pub inline: bool,
    /// Whether [`Storage::discard`] returns space to the host.
    pub can_discard: bool,
    /// Whether [`Storage::extent`] can tell holes from data.
    pub knows_holes: bool,
}

/// How [`Storage::zero`] may make a range read as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroMode {
    /// The host may give the space back (punch a hole).
    MayUnmap,
    /// The space stays reserved.
    KeepAllocated,
}

/// How [`Storage::allocate`] reserves space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The host reserves blocks without writing them.
    Reserve,
    /// Zeros are written.
    WriteZeros,
}

/// A run of a host file that is data throughout, or a hole throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostExtent {
    /// Length of the run, at least 1 byte.
    pub length: ByteCount,
    /// Whether the run is a hole and reads as zeros.
    pub hole: bool,
}

/// A host file, a block device or memory.
///
/// All offsets and lengths are bytes. Requests from any number of threads and tasks run in
/// parallel; two overlapping ones in flight at once have no order.
#[allow(
    clippy::len_without_is_empty,
    reason = "a length is I/O here, and an empty file no special case"
)]
pub trait Storage: Send + Sync + 'static {
    /// What this storage can do. Does not change while it is open.
    fn capabilities(&self) -> Capabilities;

    /// The name for messages: the path as the user gave it.
    fn name(&self) -> &std::path::Path;

    /// Device and inode, where there is a file.
    fn identity(&self) -> Option<FileIdentity>;

    /// Length of the file, or capacity of the device.
    fn len(&self) -> impl Future<Output = Result<ByteCount, StorageError>>;

    /// Bytes the host has allocated for the file; its length where the host cannot tell.
    fn allocated(&self) -> impl Future<Output = Result<ByteCount, StorageError>>;

    /// Fills `buffer` from `at`. Bytes past the end of the file are zero; the result says how many
    /// came from the file.
    fn read(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> impl Future<Output = IoResult<ByteCount>>;

    /// Fills `buffers` one after another from `at`, in one request where the host can. End of file
    /// as in [`Self::read`].
    fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> impl Future<Output = IoResult<ByteCount, Vec<IoBuffer>>>;

    /// Writes all of `buffer` at `at`, extending the file where needed. Not durable before a
    /// barrier.
    fn write(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> impl Future<Output = IoResult<()>>;

    /// Writes all of `buffers` one after another at `at`, in one request where the host can.
    fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> impl Future<Output = IoResult<(), Vec<IoBuffer>>>;

    /// Reads into borrowed memory without waiting: `None` when the driver would have to wait, or
    /// when offset, length or memory do not meet its alignment. End of file as in [`Self::read`].
    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>>;

    /// Writes borrowed memory without waiting; `None` as in [`Self::try_read`].
    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>>;

    /// Makes a range read as zeros, extending the file where the range ends past it.
    fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        mode: ZeroMode,
        purpose: Purpose,
    ) -> impl Future<Output = Result<(), StorageError>>;

    /// Gives a range back to the host; it reads as zeros afterwards where
    /// [`Capabilities::can_discard`] holds, and is unchanged otherwise. Never changes the length.
    fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> impl Future<Output = Result<(), StorageError>>;

    /// Reserves space for a range that reads as zeros or as before, extending the file where
    /// needed.
    fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> impl Future<Output = Result<(), StorageError>>;

    /// Cuts or extends the file to `length`; new bytes read as zeros.
    fn set_len(
        &self,
        length: ByteCount,
        purpose: Purpose,
    ) -> impl Future<Output = Result<(), StorageError>>;

    /// The run of data or hole that starts at `at`, at most `length_max` long; `None` at or past
    /// the end. Storage that cannot tell reports data up to the end.
    fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> impl Future<Output = Result<Option<HostExtent>, StorageError>>;

    /// Returns when everything written, zeroed, discarded or resized before the call is durable.
    ///
    /// After an error nothing is known about what is durable, and no later barrier can be trusted:
    /// the driver returns the same error from then on.
    fn barrier(&self, purpose: Purpose) -> impl Future<Output = Result<(), StorageError>>;

    /// Returns when every I/O whose future was dropped before the call has come to its end: none of
    /// them changes anything any more. Requests made meanwhile may have to wait for it.
    fn settle(&self) -> impl Future<Output = ()>;
}

/// A storage whose futures complete on any thread, without a runtime around them: the blocking
/// calls of a disk wait for them on the calling thread.
pub trait Blocking: Storage {}
