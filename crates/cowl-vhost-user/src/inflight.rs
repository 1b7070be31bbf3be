//! What is in flight, where it outlives this process: the shared memory of INFLIGHT_SHMFD.
//!
//! The front-end keeps the memory and hands it to the next back-end, which then knows which
//! requests were taken from the rings and not answered. One area for each queue:
//!
//! ```text
//!   0  features u64 (0) | version u16 | count u16 | last_batch_head u16 | used_index u16
//!  16  of descriptor 0:  inflight u8 | 5 bytes | next u16 | counter u64
//!  32  of descriptor 1:  …
//! ```
//!
//! The order of stores is what makes it work, wherever the process ends:
//!   - a request is marked before anything is done about it, with a growing counter, so that the
//!     next back-end repeats requests in their order,
//!   - an answer is announced (`last_batch_head`), then given (the used ring), then the mark is
//!     taken away, then `used_index` follows. If `used_index` lags behind the used ring, the marks
//!     of the last batch were still to be taken away.
//!
//! Whether the guest was called for its answers stands nowhere, so a ring that starts calls it.
//!
//! Behind the areas of the queues lies a note of our own, which other back-ends do not look at:
//!
//! ```text
//!   0  mark u64 | writeback u8
//! ```
//!
//! A guest that switched the write cache off tells the front-end once. The next back-end does not
//! hear of it again, and would take writes for durable that are not.
//!
//! Each store releases the ones before it, so whoever maps the memory later sees a prefix of them.
//!
//! The front-end can write here, so nothing that is read is believed beyond its range.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::MemfdFlags;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Error, Result};
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory, VolatileSlice};

const VERSION: u16 = 1;

const VERSION_OFFSET: usize = 8;
const COUNT_OFFSET: usize = VERSION_OFFSET + size_of::<u16>();
const LAST_BATCH_HEAD_OFFSET: usize = COUNT_OFFSET + size_of::<u16>();
const USED_INDEX_OFFSET: usize = LAST_BATCH_HEAD_OFFSET + size_of::<u16>();
const HEADER_SIZE: usize = USED_INDEX_OFFSET + size_of::<u16>();
const _: () = assert!(HEADER_SIZE == 16);

const STATE_NEXT_OFFSET: usize = 6;
const STATE_COUNTER_OFFSET: usize = STATE_NEXT_OFFSET + size_of::<u16>();
const STATE_SIZE: usize = STATE_COUNTER_OFFSET + size_of::<u64>();
const _: () = assert!(STATE_SIZE == 16);

/// What begins our note.
const NOTE_MARK: u64 = u64::from_le_bytes(*b"cowlnote");
const NOTE_WRITEBACK_OFFSET: usize = size_of::<u64>();

/// Areas start at a cache line, so that queues on two cores do not disturb each other.
const AREA_ALIGNMENT: usize = 64;

/// The areas of all queues.
pub(crate) struct Inflight {
    mapping: MmapRegion,
    queue_count: u16,
    queue_size: u16,
    /// Where our note lies, if there is room for one.
    note: Option<usize>,
}

/// The areas of all queues of an agreement.
fn areas_size(of: &VhostUserInflight) -> usize {
    area_size(of.queue_size) * usize::from(of.num_queues)
}

fn area_size(queue_size: u16) -> usize {
    (HEADER_SIZE + STATE_SIZE * usize::from(queue_size)).next_multiple_of(AREA_ALIGNMENT)
}

impl Inflight {
    /// New memory in which nothing is in flight.
    pub(crate) fn create(asked: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let size = (areas_size(asked) + AREA_ALIGNMENT) as u64;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let failed = |errno: rustix::io::Errno| Error::ReqHandlerError(errno.into());
        let fd: OwnedFd = rustix::fs::memfd_create("in flight", flags).map_err(failed)?;
        rustix::fs::ftruncate(&fd, size).map_err(failed)?;
        let seals = rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW;
        rustix::fs::fcntl_add_seals(&fd, seals).map_err(failed)?;
        let given = VhostUserInflight::new(size, 0, asked.num_queues, asked.queue_size);
        Ok((given, File::from(fd)))
    }

    /// The memory that `create` of this or an earlier process made.
    pub(crate) fn adopt(given: &VhostUserInflight, file: File) -> Result<Arc<Self>> {
        let needed = areas_size(given);
        let length = usize::try_from(given.mmap_size).map_err(|_| Error::InvalidParam)?;
        let end = given.mmap_offset.checked_add(given.mmap_size).ok_or(Error::InvalidParam)?;
        let size = file.metadata().map_err(Error::ReqHandlerError)?.len();
        if length < needed || size < end {
            return Err(Error::InvalidParam);
        }
        let note = (needed + AREA_ALIGNMENT <= length).then_some(needed);
        let mapped = note.map_or(needed, |note| note + AREA_ALIGNMENT);
        let file = FileOffset::new(file, given.mmap_offset);
        let mapping = MmapRegion::from_file(file, mapped).map_err(|_| Error::InvalidParam)?;
        let (queue_count, queue_size) = (given.num_queues, given.queue_size);
        Ok(Arc::new(Self { mapping, queue_count, queue_size, note }))
    }

    fn note(&self) -> Option<VolatileSlice<'_>> {
        self.mapping.get_slice(self.note?, AREA_ALIGNMENT).ok()
    }

    /// Whether an earlier back-end was to keep the write cache on.
    pub(crate) fn writeback(&self) -> Option<bool> {
        let note = self.note()?;
        let mark: u64 = note.load(0, Ordering::Acquire).ok()?;
        let writeback: u8 = note.load(NOTE_WRITEBACK_OFFSET, Ordering::Acquire).ok()?;
        (mark == NOTE_MARK).then_some(writeback != 0)
    }

    /// For the next back-end.
    pub(crate) fn set_writeback(&self, writeback: bool) {
        let Some(note) = self.note() else { return };
        let stored = note
            .store(u8::from(writeback), NOTE_WRITEBACK_OFFSET, Ordering::Release)
            .and_then(|()| note.store(NOTE_MARK, 0, Ordering::Release));
        debug_assert!(stored.is_ok());
    }
}

/// The area of one queue.
pub(crate) struct Track {
    inflight: Arc<Inflight>,
    start: usize,
    /// Descriptors of the queue; at most what the area has room for.
    count: u16,
    counter: u64,
}

impl Track {
    /// `None` where the memory has no room for this queue.
    pub(crate) fn new(inflight: &Arc<Inflight>, queue: u16, count: u16) -> Option<Self> {
        let fits = queue < inflight.queue_count && count <= inflight.queue_size;
        let start = area_size(inflight.queue_size) * usize::from(queue);
        fits.then(|| Self { inflight: Arc::clone(inflight), start, count, counter: 0 })
    }

    fn area(&self) -> Option<VolatileSlice<'_>> {
        self.inflight.mapping.get_slice(self.start, area_size(self.count)).ok()
    }

    fn load<T: vm_memory::AtomicAccess + Default>(&self, offset: usize) -> T {
        // The area was mapped whole, so these never fail.
        self.area().and_then(|area| area.load(offset, Ordering::Acquire).ok()).unwrap_or_default()
    }

    fn store<T: vm_memory::AtomicAccess>(&self, value: T, offset: usize) {
        let stored = self.area().map(|area| area.store(value, offset, Ordering::Release));
        debug_assert!(stored.is_some_and(|stored| stored.is_ok()));
    }

    fn state(&self, head: u16) -> usize {
        assert!(head < self.count);
        HEADER_SIZE + STATE_SIZE * usize::from(head)
    }

    /// A request was taken from the ring.
    pub(crate) fn begin(&mut self, head: u16) {
        let state = self.state(head);
        self.store(self.counter, state + STATE_COUNTER_OFFSET);
        self.counter = self.counter.wrapping_add(1);
        self.store(1_u8, state);
    }

    /// The request is about to be answered.
    pub(crate) fn announce(&self, head: u16) {
        let last: u16 = self.load(LAST_BATCH_HEAD_OFFSET);
        self.store(last, self.state(head) + STATE_NEXT_OFFSET);
        self.store(head, LAST_BATCH_HEAD_OFFSET);
    }

    /// The request was answered; the used ring stands at `used_index`.
    pub(crate) fn end(&self, head: u16, used_index: u16) {
        self.store(0_u8, self.state(head));
        self.store(used_index, USED_INDEX_OFFSET);
    }

    /// Finds what an earlier back-end left: requests that were taken and not answered, in the order
    /// in which they were taken. `used_index` is where the used ring stands.
    pub(crate) fn recover(&mut self, used_index: u16) -> Vec<u16> {
        if self.load::<u16>(VERSION_OFFSET) != VERSION {
            self.store(self.count, COUNT_OFFSET);
            self.store(0_u16, LAST_BATCH_HEAD_OFFSET);
            self.forget(used_index);
            self.store(VERSION, VERSION_OFFSET);
            return Vec::new();
        }
        let answered = used_index.wrapping_sub(self.load(USED_INDEX_OFFSET));
        if self.count < answered {
            // No batch is longer than its ring: this one was set up anew since.
            self.forget(used_index);
            return Vec::new();
        }
        let mut head: u16 = self.load(LAST_BATCH_HEAD_OFFSET);
        for _ in 0..answered {
            if self.count <= head {
                break;
            }
            self.store(0_u8, self.state(head));
            head = self.load(self.state(head) + STATE_NEXT_OFFSET);
        }
        self.store(used_index, USED_INDEX_OFFSET);
        let mut left: Vec<(u64, u16)> = (0..self.count)
            .filter(|&head| self.load::<u8>(self.state(head)) == 1)
            .map(|head| (self.load(self.state(head) + STATE_COUNTER_OFFSET), head))
            .collect();
        left.sort_unstable();
        self.counter = left.last().map_or(0, |(counter, _)| counter.saturating_add(1));
        left.into_iter().map(|(_, head)| head).collect()
    }

    fn forget(&self, used_index: u16) {
        for head in 0..self.count {
            self.store(0_u8, self.state(head));
        }
        self.store(used_index, USED_INDEX_OFFSET);
    }
}
