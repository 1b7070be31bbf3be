//! What an image has in addition when it may be changed.

use std::sync::PoisonError;

use cowl_format::{Header, HeaderField};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::allocator::{Arenas, Quarantine, RoleMap, Space};
use crate::flush::{Commits, Edge};
use crate::request::{Claims, Epochs, Spares};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{AsyncMutex, AsyncMutexGuard, Event, Mutex, OnceCell};
use crate::{Error, Layer};

/// The host space, locked.
pub(crate) type SpaceGuard<'w> = AsyncMutexGuard<'w, Space>;

/// Locks for making L2 tables; two tables seldom share one.
const TABLE_LOCKS: usize = 16;

/// Bytes of spare buffers; at least one cluster, whatever its size.
const FILL_BYTES_MAX: usize = 2 << 20;

/// The changing half of an open image.
pub(crate) struct Writer<S> {
    pub(crate) epochs: Epochs,
    pub(crate) claims: Claims,
    pub(crate) roles: RoleMap,
    pub(crate) arenas: Arenas,
    pub(crate) quarantine: Quarantine,
    pub(crate) space: AsyncMutex<Space>,
    pub(crate) commits: Commits,
    pub(crate) counters: Counters,
    /// Buffers of a cluster each, for what lies around the guest's bytes.
    pub(crate) fills: Spares<IoBuffer>,
    /// Done before the first change.
    pub(crate) first_write: OnceCell<()>,
    /// Whether marks on bitmaps were written and not made durable.
    pub(crate) is_marking: AtomicBool,
    /// One change of size at a time.
    pub(crate) resizing: AsyncMutex<()>,
    table_locks: [AsyncMutex<()>; TABLE_LOCKS],
    header: Mutex<Header>,
    header_lock: AsyncMutex<()>,
    /// Told when much waits to be written.
    pub(crate) pressed: Event,
    /// Whether something waited to be written when the clock was last heard.
    pub(crate) waited_at_tick: AtomicBool,
    /// Fields of the header in the file that may differ from the one in memory.
    unsure: Mutex<Vec<HeaderField>>,
    is_unsure: AtomicBool,
    is_lazy: bool,
    storage: core::marker::PhantomData<fn() -> S>,
}

/// What was written so far.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) commits: AtomicU64,
    pub(crate) metadata_writes: AtomicU64,
    pub(crate) metadata_bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn add_metadata(&self, writes: u64, bytes: u64) {
        self.metadata_writes.fetch_add(writes, Ordering::Relaxed);
        self.metadata_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// No space left on the device.
const ENOSPC: i32 = 28;

impl<S: Storage> Writer<S> {
    pub(crate) fn new(header: Header, roles: RoleMap, space: Space, is_lazy: bool) -> Self {
        let cluster_len = header.geometry.cluster_len();
        Self {
            epochs: Epochs::new(),
            claims: Claims::default(),
            roles,
            arenas: Arenas::new(),
            quarantine: Quarantine::default(),
            space: AsyncMutex::new(space),
            commits: Commits::default(),
            counters: Counters::default(),
            fills: Spares::new(FILL_BYTES_MAX / cluster_len),
            first_write: OnceCell::new(),
            is_marking: AtomicBool::new(false),
            resizing: AsyncMutex::new(()),
            table_locks: Default::default(),
            header: Mutex::new(header),
            header_lock: AsyncMutex::new(()),
            pressed: Event::new(),
            waited_at_tick: AtomicBool::new(false),
            unsure: Mutex::default(),
            is_unsure: AtomicBool::new(false),
            is_lazy,
            storage: core::marker::PhantomData,
        }
    }

    /// Whether refcounts are written at close only, and the dirty bit is set until then.
    pub(crate) fn is_lazy(&self) -> bool {
        self.is_lazy
    }

    /// Whether something that was dropped on its way has to be put right first.
    pub(crate) fn needs_recovery(&self) -> bool {
        self.epochs.has_abandoned() || self.is_unsure.load(Ordering::SeqCst)
    }

    /// The header as it is in the file.
    pub(crate) fn header(&self) -> Header {
        self.header.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The lock of whoever makes the L2 table at this index of the L1 table.
    pub(crate) fn table_lock(&self, l1_index: usize) -> &AsyncMutex<()> {
        &self.table_locks[l1_index % TABLE_LOCKS]
    }

    /// All of these locks: nobody makes a table until they are released.
    pub(crate) async fn lock_all_tables(&self) -> Vec<AsyncMutexGuard<'_, ()>> {
        let mut locks = Vec::new();
        for lock in &self.table_locks {
            locks.push(lock.lock().await);
        }
        locks
    }

    /// Runs an I/O that changes a host file. If whoever waits for it is dropped, the I/O counts as
    /// in flight until the storage has settled.
    pub(crate) async fn change<T>(&self, io: impl Future<Output = T>) -> T {
        let pin = self.epochs.enter();
        pin.while_changing(io).await
    }
}

impl<S: Storage> Layer<S> {
    /// Waits until what dropped requests left behind has come to its end.
    pub(crate) async fn settle(&self) {
        let Ok(writer) = self.writer() else { return };
        while writer.epochs.has_abandoned() {
            let abandoned = writer.epochs.take_abandoned();
            self.file().settle().await;
            if !std::sync::Arc::ptr_eq(self.file(), self.data_file()) {
                self.data_file().settle().await;
            }
            abandoned.release();
        }
    }

    /// A lock whose holders change files. What one of them was doing when it was dropped has come
    /// to its end: else the length that it was setting would cut off what comes next.
    pub(crate) async fn lock_settled<'l, T>(
        &self,
        lock: &'l AsyncMutex<T>,
    ) -> AsyncMutexGuard<'l, T> {
        let guard = lock.lock().await;
        self.settle().await;
        guard
    }

    /// The host space.
    pub(crate) async fn lock_space<'w>(&self, writer: &'w Writer<S>) -> SpaceGuard<'w> {
        self.lock_settled(&writer.space).await
    }

    /// Settles, and writes the header anew where an update of it was dropped on its way: it is as
    /// it was before that update.
    pub(crate) async fn recover(&self) -> Result<(), Error> {
        self.settle().await;
        let Ok(writer) = self.writer() else { return Ok(()) };
        if !writer.is_unsure.load(Ordering::SeqCst) {
            return Ok(());
        }
        let _one_at_a_time = self.lock_settled(&writer.header_lock).await;
        self.metadata().latch().check()?;
        let fields = writer.unsure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let header = writer.header();
        for field in &fields {
            self.write_header_field(writer, &header, *field).await?;
        }
        self.barrier().await?;
        let mut unsure = writer.unsure.lock().unwrap_or_else(PoisonError::into_inner);
        unsure.drain(..fields.len());
        writer.is_unsure.store(!unsure.is_empty(), Ordering::SeqCst);
        Ok(())
    }

    /// Makes everything complete so far durable.
    pub(crate) async fn barrier(&self) -> Result<(), Error> {
        self.metadata().barriers().run(self.metadata().latch()).await
    }

    /// Makes everything complete so far durable, because `edge` asks for it.
    pub(crate) async fn barrier_for(&self, edge: Edge) -> Result<(), Error> {
        if edge.holds() { self.barrier().await } else { Ok(()) }
    }

    /// Makes the image read-only when the result is dropped: what the file says is not known then.
    pub(crate) fn close_if_dropped(&self, what: &'static str) -> CloseIfDropped<'_, S> {
        CloseIfDropped { layer: self, what }
    }

    /// Changes a part of the header that lies in one sector, and makes the change durable. The
    /// header in memory changes only then. A full file system fails the caller alone: before the
    /// next change the header is written as it was. After any other failure the image is read-only.
    pub(crate) async fn update_header(
        &self,
        field: HeaderField,
        change: impl FnOnce(&mut Header),
    ) -> Result<(), Error> {
        let writer = self.writer()?;
        let _one_at_a_time = self.lock_settled(&writer.header_lock).await;
        self.metadata().latch().check()?;
        let mut header = writer.header();
        change(&mut header);
        let unsure = UnsureIfDropped { writer, field };
        self.write_header_field(writer, &header, field).await?;
        self.barrier().await?;
        core::mem::forget(unsure);
        self.metadata().header_changed(&header);
        *writer.header.lock().unwrap_or_else(PoisonError::into_inner) = header;
        Ok(())
    }
}

impl<S: Storage> Layer<S> {
    /// Writes one field of `header`. Where that fails, what the file says is not known: the image
    /// is read-only then, unless it was for want of space, when the caller has noted it as unsure.
    async fn write_header_field(
        &self,
        writer: &Writer<S>,
        header: &Header,
        field: HeaderField,
    ) -> Result<(), Error> {
        let (at, bytes) = header.encode_field(field);
        let buffer = IoBuffer::from_slice(&bytes);
        let write = self.file().write(at, buffer, Purpose::HeaderUpdate);
        if let (Err(error), _) = writer.change(write).await {
            if error.errno() != ENOSPC {
                self.metadata().latch().close(&error);
            }
            return Err(error.into());
        }
        Ok(())
    }
}

/// Notes a header update whose fate nobody waits for any more, unless it is forgotten.
struct UnsureIfDropped<'a, S> {
    writer: &'a Writer<S>,
    field: HeaderField,
}

impl<S> Drop for UnsureIfDropped<'_, S> {
    fn drop(&mut self) {
        let mut unsure = self.writer.unsure.lock().unwrap_or_else(PoisonError::into_inner);
        unsure.push(self.field);
        self.writer.is_unsure.store(true, Ordering::SeqCst);
    }
}

/// Makes the image read-only unless it is forgotten.
pub(crate) struct CloseIfDropped<'a, S: Storage> {
    layer: &'a Layer<S>,
    what: &'static str,
}

impl<S: Storage> Drop for CloseIfDropped<'_, S> {
    fn drop(&mut self) {
        const EIO: i32 = 5;
        self.layer.metadata().latch().close_with(EIO, self.what);
    }
}
