//! Memory that the rings of a thread have pinned beforehand.
//!
//! A request that names it spares the kernel to find and pin the pages. Random reads of 4 KiB
//! with `O_DIRECT` at depth 32: 4.49 us of processor time instead of 4.83, 69.3 k/s instead of
//! 65.0. Each thread that makes a ring with [`ring_runtime`](crate::ring_runtime) has 256 KiB of
//! it, cut into pages; small buffers for requests that are made on that thread are such pages while
//! there are any, and are like all others to everybody else.
//!
//! Pinned memory counts for a limit (`RLIMIT_MEMLOCK`, 8 MiB as a rule) that all processes of a
//! user share, and rings themselves count for it on some kernels. So a process pins 1 MiB at most,
//! which counts once for each of two rings; threads beyond that go without.
//!
//! What makes it sound:
//!   - a page belongs to one buffer at a time: it is taken from the list of free ones and comes
//!     back when the buffer is dropped, on whatever thread,
//!   - it stays mapped at its address while its thread lives and while any buffer has a part of it,
//!     and all rings of the thread register the same memory. So no ring ever knows an address
//!     under which something else lies now; a ring that does not know the memory says `EFAULT`.

use std::cell::{Cell, OnceCell};
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

/// Bytes of a piece.
const PAGE: usize = 4096;

/// Pieces of a thread: enough for the requests of a busy one.
const PAGES: u16 = 64;

const LENGTH: usize = PAGE * PAGES as usize;

/// Threads of the process that have such memory at a time.
const THREADS_MAX: usize = 4;

static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static MEMORY: OnceCell<Arc<Memory>> = const { OnceCell::new() };
    /// Whether the rings of this thread know its memory.
    static IS_REGISTERED: Cell<bool> = const { Cell::new(false) };
}

/// The memory of one thread.
struct Memory {
    start: NonNull<u8>,
    free: Mutex<Vec<u16>>,
}

// SAFETY: the address belongs to the mapping, which any thread may use and unmap.
unsafe impl Send for Memory {}
// SAFETY: bytes are reached through pages only, and a page belongs to one buffer at a time.
unsafe impl Sync for Memory {}

impl Memory {
    fn new() -> Result<Arc<Self>, Errno> {
        let one_more = |threads| (threads < THREADS_MAX).then_some(threads + 1);
        let is_free = THREADS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok();
        if !is_free {
            return Err(Errno::NOMEM);
        }
        let outcome = Self::map();
        if outcome.is_err() {
            THREADS.fetch_sub(1, Ordering::Relaxed);
        }
        outcome
    }

    fn map() -> Result<Arc<Self>, Errno> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: without MAP_FIXED the kernel chooses a place where nothing is mapped.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), LENGTH, protection, flags) }?;
        let start = NonNull::new(start.cast::<u8>()).ok_or(Errno::NOMEM)?;
        Ok(Arc::new(Self { start, free: Mutex::new((0..PAGES).rev().collect()) }))
    }

    /// Tells `ring` of it. Whether that went well.
    fn register(&self, ring: &impl AsRawFd) -> bool {
        const REGISTER_BUFFERS: libc::c_uint = 0;
        const COUNT: libc::c_uint = 1;
        let all = libc::iovec { iov_base: self.start.as_ptr().cast(), iov_len: LENGTH };
        let (call, ring) = (libc::SYS_io_uring_register, ring.as_raw_fd());
        // SAFETY: the kernel reads one description of memory that is mapped, and pins its pages;
        // it writes there only for requests that name them.
        0 == unsafe { libc::syscall(call, ring, REGISTER_BUFFERS, &raw const all, COUNT) }
    }

    fn take(self: &Arc<Self>, length: usize) -> Option<RegisteredPage> {
        let number = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(RegisteredPage { memory: Arc::clone(self), number, length })
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: this is the mapping that `new` made; every page holds an Arc of it, so none is
        // left. A ring that still knows it keeps the pages, not the address.
        let outcome = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), LENGTH) };
        debug_assert!(outcome.is_ok());
        THREADS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes the memory of this thread known to `ring`, which belongs to it. Where the process has
/// pinned enough or may pin no more, requests go on without.
pub(crate) fn register_here(ring: &impl AsRawFd) {
    let is_done = MEMORY.with(|cell| {
        let Some(memory) = cell.get().cloned().or_else(|| Memory::new().ok()) else { return false };
        let is_done = memory.register(ring);
        if is_done {
            // The first one stays: rings know it.
            cell.get_or_init(|| memory);
        }
        is_done
    });
    if is_done {
        IS_REGISTERED.set(true);
    }
}

/// Makes the memory of this thread known to another ring of it. `false` if that ring does not know
/// it then, although there is such memory.
pub(crate) fn register_also(ring: &impl AsFd) -> bool {
    let ring = ring.as_fd();
    let is_known =
        |memory: &OnceCell<Arc<Memory>>| memory.get().is_none_or(|memory| memory.register(&ring));
    !IS_REGISTERED.get() || MEMORY.with(is_known)
}

/// A ring of this thread does not know the memory: no request names it any more.
#[cold]
pub(crate) fn forget_here() {
    IS_REGISTERED.set(false);
}

/// A piece of the memory, as long as its user asked for and a page at most.
pub(crate) struct RegisteredPage {
    memory: Arc<Memory>,
    number: u16,
    length: usize,
}

impl RegisteredPage {
    /// A page of this thread for `length` bytes, with any content; `None` where there is none.
    #[inline]
    pub(crate) fn take(length: usize) -> Option<Self> {
        if PAGE < length || length == 0 || !IS_REGISTERED.try_with(Cell::get).unwrap_or(false) {
            return None;
        }
        MEMORY.try_with(|memory| memory.get()?.take(length)).ok()?
    }

    /// Whether the rings of the calling thread know it.
    #[inline]
    pub(crate) fn is_known_here(&self) -> bool {
        let is_own = |memory: &OnceCell<Arc<Memory>>| {
            memory.get().is_some_and(|memory| Arc::ptr_eq(memory, &self.memory))
        };
        IS_REGISTERED.try_with(Cell::get).unwrap_or(false)
            && MEMORY.try_with(is_own).unwrap_or(false)
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the number is one of the memory's pages.
        let start = unsafe { self.memory.start.as_ptr().add(usize::from(self.number) * PAGE) };
        // SAFETY: the page is mapped while `memory` is held and was zero from the start; it belongs
        // to this value alone, and this borrow of it excludes `bytes_mut`.
        unsafe { std::slice::from_raw_parts(start, self.length) }
    }

    #[inline]
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`.
        let start = unsafe { self.memory.start.as_ptr().add(usize::from(self.number) * PAGE) };
        // SAFETY: as in `bytes`, and the page is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(start, self.length) }
    }
}

impl Drop for RegisteredPage {
    fn drop(&mut self) {
        self.memory.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::{Memory, PAGE, PAGES};

    #[test]
    fn a_page_belongs_to_one_buffer_until_that_is_dropped() {
        let memory = Memory::new().expect("memory");
        let mut pages: Vec<_> = (0..PAGES).map_while(|_| memory.take(PAGE)).collect();
        assert_eq!(pages.len(), usize::from(PAGES));
        assert!(memory.take(1).is_none());
        for (mark, page) in (0_u8..).zip(&mut pages) {
            page.bytes_mut().fill(mark);
        }
        for (mark, page) in (0_u8..).zip(&pages) {
            assert!(page.bytes().iter().all(|&byte| byte == mark));
            assert_eq!(page.bytes().as_ptr() as usize % PAGE, 0);
        }
        let one = pages.swap_remove(20);
        std::thread::spawn(move || drop(one)).join().expect("no thread panics");
        assert_eq!(memory.take(512).expect("a page is free again").bytes().len(), 512);
    }

    #[test]
    fn what_is_no_ring_registers_nothing() {
        let file = tempfile::tempfile().expect("a temporary file");
        assert!(!Memory::new().expect("memory").register(&file));
        std::thread::spawn(move || {
            super::register_here(&file);
            assert!(super::RegisteredPage::take(512).is_none());
        })
        .join()
        .expect("no thread panics");
    }
}
