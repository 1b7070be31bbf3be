//! A lane: one request after the other, each awaited.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use async_lock::RwLock;
use cowl::{BlockDevice, BlockError, ByteCount, Disk, GuestOffset};
use cowl_storage::{IoBuffer, Storage, yield_now};

use super::report::Lap;
use super::{BenchError, BenchOptions};

/// Requests that a lane makes before it lets the others of its thread go on: what the page cache
/// has is there at once, and no await would ever wait.
const REQUESTS_BEFORE_YIELD: u64 = 16;

/// What all lanes share.
pub(super) struct Course<'a> {
    options: &'a BenchOptions,
    size: u64,
    end: Option<Instant>,
    next: AtomicU64,
    stopped: AtomicBool,
    /// A request holds it for reading, a flush that waits for all of them for writing.
    gate: RwLock<()>,
}

impl<'a> Course<'a> {
    pub(super) fn new(size: ByteCount, options: &'a BenchOptions, start: Instant) -> Self {
        Self {
            options,
            size: size.get(),
            end: options.duration.map(|duration| start + duration),
            next: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            gate: RwLock::new(()),
        }
    }

    /// The number of the next request; `None` when there is none.
    fn next_request(&self) -> Option<u64> {
        let is_over = self.end.is_some_and(|end| end <= Instant::now());
        if is_over || self.stopped.load(Ordering::Relaxed) {
            return None;
        }
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (self.options.count.is_none_or(|count| index < count)).then_some(index)
    }
}

/// Makes requests until there are none left; with an error the other lanes stop too.
pub(super) async fn lane<S: Storage>(
    disk: &Disk<S>,
    course: &Course<'_>,
) -> Result<Lap, BenchError> {
    let length = ByteCount::new(course.options.length).as_usize();
    let mut buffer = IoBuffer::for_requests(length);
    buffer.fill(course.options.pattern);
    // Reads have a buffer of their own: what they bring must not be written elsewhere.
    let mut buffers = Buffers { read: Some(IoBuffer::for_requests(length)), written: Some(buffer) };
    let mut lap = Lap::new();
    while let Some(index) = course.next_request() {
        if let Err(error) = request(disk, course, index, &mut buffers, &mut lap).await {
            course.stopped.store(true, Ordering::Relaxed);
            return Err(error);
        }
        if index % REQUESTS_BEFORE_YIELD == 0 {
            yield_now().await;
        }
    }
    Ok(lap)
}

/// The buffers of a lane; a request in flight owns the one it uses.
struct Buffers {
    read: Option<IoBuffer>,
    written: Option<IoBuffer>,
}

async fn request<S: Storage>(
    disk: &Disk<S>,
    course: &Course<'_>,
    index: u64,
    buffers: &mut Buffers,
    lap: &mut Lap,
) -> Result<(), BenchError> {
    let options = course.options;
    let at = options.order.offset(index, options.length, course.size);
    if at.checked_add(options.length).is_none_or(|end| course.size < end) {
        return Err(BenchError::PastEnd);
    }
    let (at, reads) = (GuestOffset::new(at), options.work.reads(index));
    let place = if reads { &mut buffers.read } else { &mut buffers.written };
    let buffer = place.take().expect("the last request gave it back");
    let guard = match options.flush {
        Some(flush) if flush.drain => Some(course.gate.read().await),
        _ => None,
    };
    let start = Instant::now();
    let (result, buffer) = match (reads, options.write_through) {
        (true, _) => disk.read(at, buffer).await,
        (false, true) => disk.write_through(at, buffer).await,
        (false, false) => disk.write(at, buffer).await,
    };
    lap.add(start.elapsed(), reads);
    *place = Some(buffer);
    drop(guard);
    result.map_err(BenchError::Request)?;
    match options.flush {
        Some(flush) if (index + 1).is_multiple_of(flush.every) => {
            flush_now(disk, course, flush.drain).await.map_err(BenchError::Request)?;
            lap.add_flush();
        }
        _ => {}
    }
    Ok(())
}

async fn flush_now<S: Storage>(
    disk: &Disk<S>,
    course: &Course<'_>,
    drain: bool,
) -> Result<(), BlockError> {
    let _alone = if drain { Some(course.gate.write().await) } else { None };
    BlockDevice::flush(disk).await
}
