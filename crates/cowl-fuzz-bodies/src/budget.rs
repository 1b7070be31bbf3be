//! Storage that panics when it is asked for too much: an endless loop over a hostile table ends
//! here.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use cowl_format::{ByteCount, HostOffset};
use cowl_storage::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, MemoryStorage, Purpose,
    Storage, StorageError, ZeroMode,
};

/// How much may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Number of reads.
    pub reads: u64,
    /// Bytes of all reads together.
    pub bytes: u64,
}

/// A file in memory, for reading, with a budget.
pub struct BudgetStorage {
    inner: MemoryStorage,
    budget: Budget,
    reads: AtomicU64,
    bytes: AtomicU64,
}

impl BudgetStorage {
    /// A file of `bytes`.
    #[must_use]
    pub fn new(bytes: &[u8], budget: Budget) -> Self {
        let inner = MemoryStorage::from_vec(bytes.to_vec());
        Self { inner, budget, reads: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// What was asked for so far.
    #[must_use]
    pub fn spent(&self) -> Budget {
        Budget {
            reads: self.reads.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }

    fn spend(&self, bytes: usize, purpose: Purpose) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        let spent = self.spent();
        let within = spent.reads <= self.budget.reads && spent.bytes <= self.budget.bytes;
        assert!(
            within,
            "over the budget with a read for {purpose}: {spent:?} of {:?}",
            self.budget
        );
    }
}

impl Storage for BudgetStorage {
    fn capabilities(&self) -> Capabilities {
        // The smallest block: the smallest slices, and so the most loads.
        Capabilities { block_size: 512, read_only: true, ..self.inner.capabilities() }
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
        self.spend(buffer.len(), purpose);
        self.inner.read(at, buffer, purpose).await
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        self.spend(buffers.iter().map(|buffer| buffer.len()).sum(), purpose);
        self.inner.read_vectored(at, buffers, purpose).await
    }

    async fn write(&self, _: HostOffset, _: IoBuffer, purpose: Purpose) -> IoResult<()> {
        panic!("a reader wrote for {purpose}");
    }

    async fn write_vectored(
        &self,
        _: HostOffset,
        _: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        panic!("a reader wrote for {purpose}");
    }

    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        self.spend(buffer.len(), purpose);
        self.inner.try_read(at, buffer, purpose)
    }

    fn try_write(
        &self,
        _: HostOffset,
        _: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        panic!("a reader wrote for {purpose}");
    }

    async fn zero(
        &self,
        _: HostOffset,
        _: ByteCount,
        _: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        panic!("a reader zeroed for {purpose}");
    }

    async fn discard(
        &self,
        _: HostOffset,
        _: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        panic!("a reader discarded for {purpose}");
    }

    async fn allocate(
        &self,
        _: HostOffset,
        _: ByteCount,
        _: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        panic!("a reader allocated for {purpose}");
    }

    async fn set_len(&self, _: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        panic!("a reader changed the length for {purpose}");
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        self.inner.extent(at, length_max).await
    }

    async fn barrier(&self, purpose: Purpose) -> Result<(), StorageError> {
        panic!("a reader flushed for {purpose}");
    }

    async fn settle(&self) {}
}
