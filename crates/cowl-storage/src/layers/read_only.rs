//! Storage that refuses every change, whatever is below.

use std::path::Path;

use cowl_format::{ByteCount, HostOffset};

use crate::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, Operation, Purpose,
    Storage, StorageError, ZeroMode,
};

/// EROFS.
const READ_ONLY: i32 = 30;

/// Reads pass through, changes fail with `EROFS`, barriers have nothing to do.
#[derive(Debug)]
pub struct ReadOnlyStorage<S> {
    inner: S,
}

impl<S: Storage> ReadOnlyStorage<S> {
    /// Guards `inner`.
    #[must_use]
    pub const fn new(inner: S) -> Self {
        Self { inner }
    }

    /// The storage below.
    #[must_use]
    pub const fn inner(&self) -> &S {
        &self.inner
    }

    /// Gives the storage below back.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.inner
    }

    fn refuse(
        &self,
        operation: Operation,
        purpose: Purpose,
        at: HostOffset,
        length: ByteCount,
    ) -> StorageError {
        let source = std::io::Error::from_raw_os_error(READ_ONLY);
        StorageError::new(self.name(), operation, Some(purpose), Some((at, length)), source)
    }
}

impl<S: Storage> Storage for ReadOnlyStorage<S> {
    fn capabilities(&self) -> Capabilities {
        Capabilities { read_only: true, can_discard: false, ..self.inner.capabilities() }
    }

    fn name(&self) -> &Path {
        self.inner.name()
    }

    fn identity(&self) -> Option<FileIdentity> {
        self.inner.identity()
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        self.inner.len().await
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        self.inner.allocated().await
    }

    async fn read(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        self.inner.read(at, buffer, purpose).await
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        self.inner.read_vectored(at, buffers, purpose).await
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        let length = ByteCount::from_usize(buffer.len());
        (Err(self.refuse(Operation::Write, purpose, at, length)), buffer)
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        let length = super::total_length(&buffers);
        (Err(self.refuse(Operation::Write, purpose, at, length)), buffers)
    }

    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        self.inner.try_read(at, buffer, purpose)
    }

    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        let length = ByteCount::from_usize(bytes.len());
        Some(Err(self.refuse(Operation::Write, purpose, at, length)))
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        _mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        Err(self.refuse(Operation::Zero, purpose, at, length))
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        Err(self.refuse(Operation::Discard, purpose, at, length))
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        _how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        Err(self.refuse(Operation::Allocate, purpose, at, length))
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        Err(self.refuse(Operation::SetLength, purpose, HostOffset::ZERO, length))
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        self.inner.extent(at, length_max).await
    }

    async fn barrier(&self, _purpose: Purpose) -> Result<(), StorageError> {
        Ok(())
    }

    async fn settle(&self) {
        self.inner.settle().await;
    }
}
