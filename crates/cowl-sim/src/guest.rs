//! The guest: sends requests to a device and tells the model what became of them.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use cowl_block::{BlockDevice, BlockError, DeviceResult, ZeroRequest};
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::Preallocation;
use cowl_storage::IoBuffer;

use crate::executor::DropAfter;
use crate::model::{Illegal, Model, RequestId, Value};
use crate::stamp::{self, Texture};
use crate::subject::Subject;
use crate::workload::{Operation, Request};
use crate::{SimWorld, Violation};

/// What all tasks of a history share.
pub(crate) struct Guest<S: Subject> {
    pub(crate) subject: S,
    pub(crate) world: SimWorld,
    pub(crate) model: RefCell<Model>,
    pub(crate) violations: RefCell<Vec<Violation>>,
    pub(crate) operations: Cell<u64>,
    /// Requests that failed or were dropped since the host was last without orphans.
    pub(crate) unsettled: Cell<bool>,
    /// Whether any request of this history was dropped or failed.
    pub(crate) disturbed: Cell<bool>,
    /// Requests of this history that were dropped.
    pub(crate) drops: Cell<u64>,
    /// Turns that a task has between the wait at which its request is given up and the drop.
    pub(crate) drop_late: u32,
    /// What both sizes have while one becomes the other.
    pub(crate) resizing: Cell<Option<u64>>,
    /// Whether the size has ever changed beside other requests.
    pub(crate) resized: Cell<bool>,
    /// What the engine says that a crash may cost; nothing before it was opened.
    pub(crate) leaks_max: Cell<u64>,
    /// A flush has just succeeded: a good moment for a power cut.
    pub(crate) flushed: Cell<bool>,
}

/// A range within the disk.
#[derive(Clone, Copy)]
struct Range {
    at: u64,
    length: u64,
}

impl Range {
    fn start(self) -> GuestOffset {
        GuestOffset::new(self.at)
    }

    fn count(self) -> ByteCount {
        ByteCount::new(self.length)
    }

    fn buffer(self) -> IoBuffer {
        IoBuffer::zeroed(self.count().as_usize())
    }
}

impl<S: Subject + 'static> Guest<S> {
    pub(crate) fn report(&self, checker: &'static str, text: String) {
        self.world.note(&format!("violation {checker}"));
        self.violations.borrow_mut().push(Violation { checker, text });
    }

    pub(crate) fn has_failed(&self) -> bool {
        !self.violations.borrow().is_empty()
    }

    /// Sends one request after the other.
    pub(crate) async fn run(self: Rc<Self>, device: Rc<S::Device>, requests: Vec<Request>) {
        for request in requests {
            if self.has_failed() {
                return;
            }
            self.operations.set(self.operations.get() + 1);
            self.world.note(&format!("request {} {:?}", request.number, request.operation));
            self.send(&device, request).await;
        }
    }

    async fn send(&self, device: &S::Device, request: Request) {
        let drop_after = request.drop_after;
        let Request { number, operation, .. } = request;
        match operation {
            Operation::Write { at, length, texture } => {
                let Some(range) = self.fit(at, length) else { return };
                let (id, buffer) = self.stamped(number, texture, range);
                let io = device.write(range.start(), buffer);
                self.end(number, id, self.droppable(io, drop_after).await.map(without_buffer));
            }
            Operation::WriteThrough { at, length, texture } => {
                let Some(range) = self.fit(at, length) else { return };
                self.write_through(device, number, (range, texture), drop_after).await;
            }
            Operation::WriteCompressed { at, length, texture } => {
                let Some(range) = self.fit(at, length) else { return };
                let (id, buffer) = self.stamped(number, texture, range);
                let io = self.subject.write_compressed(device, range.start(), &buffer);
                self.end(number, id, self.droppable(io, drop_after).await);
            }
            Operation::Zero { at, length, unmap } => {
                let Some(range) = self.fit(at, length) else { return };
                let how = if unmap { ZeroRequest::MayUnmap } else { ZeroRequest::KeepAllocated };
                let id = self.model.borrow_mut().issue(Value::Zero, range.at, range.length);
                let io = device.zero(range.start(), range.count(), how);
                self.end(number, id, self.droppable(io, drop_after).await);
            }
            Operation::Discard { at, length } => {
                let Some(range) = self.fit(at, length) else { return };
                let id = self.issue_discard(range);
                let io = device.discard(range.start(), range.count());
                self.end(number, id, self.droppable(io, drop_after).await);
            }
            Operation::Read { at, length } => {
                let Some(range) = self.fit(at, length) else { return };
                self.read(device, number, range, drop_after).await;
            }
            Operation::Flush => self.flush(device, number, drop_after).await,
            Operation::Resize { size, preallocation } => {
                self.resize(device, number, (size, preallocation), drop_after).await;
            }
        }
    }

    /// The part of a range that lies on the disk, which may have shrunk.
    fn fit(&self, at: u64, length: u64) -> Option<Range> {
        let size = self.resizing.get().unwrap_or_else(|| self.model.borrow().size());
        let length = length.min(size.checked_sub(at)?);
        (0 < length).then_some(Range { at, length })
    }

    fn stamped(&self, number: u32, texture: Texture, range: Range) -> (RequestId, IoBuffer) {
        let write = u64::from(number);
        let mut buffer = range.buffer();
        stamp::fill(write, texture, range.at, &mut buffer);
        let value = Value::Stamp { write, texture };
        (self.model.borrow_mut().issue(value, range.at, range.length), buffer)
    }

    /// Only whole units may become zeros; the disk's end completes the last one.
    fn issue_discard(&self, range: Range) -> RequestId {
        let unit = self.subject.traits().discard_unit;
        let mut model = self.model.borrow_mut();
        let end = range.at + range.length;
        let start = range.at.next_multiple_of(unit);
        let is_end = end == model.size() || self.resizing.get() == Some(end);
        let end = if is_end { end } else { end / unit * unit };
        model.issue(Value::Discarded, start, end.saturating_sub(start))
    }

    async fn write_through(
        &self,
        device: &S::Device,
        number: u32,
        (range, texture): (Range, Texture),
        drop_after: Option<u32>,
    ) {
        let flush = self.model.borrow_mut().issue_flush();
        let (id, buffer) = self.stamped(number, texture, range);
        let io = device.write_through(range.start(), buffer);
        match self.droppable(io, drop_after).await.map(without_buffer) {
            Some(Ok(())) => {
                let mut model = self.model.borrow_mut();
                model.succeed_durably(id);
                model.succeed_flush(flush);
                self.flushed.set(true);
            }
            other => self.end(number, id, other),
        }
    }

    /// Changes the size, unless somebody else does; requests beside it keep to what both sizes
    /// have.
    async fn resize(
        &self,
        device: &S::Device,
        number: u32,
        (size, preallocation): (u64, Preallocation),
        drop_after: Option<u32>,
    ) {
        if self.resizing.get().is_some() {
            return;
        }
        let old = self.model.borrow().size();
        let grows = old < size;
        let preallocation = if grows { preallocation } else { Preallocation::Off };
        self.resizing.set(Some(old.min(size)));
        self.resized.set(true);
        let clusters = old.max(size).div_ceil(self.subject.traits().cluster);
        let leaks_max = self.subject.leaks_max(device) + clusters;
        self.leaks_max.set(self.leaks_max.get().max(leaks_max));
        let id = self.model.borrow_mut().issue_resize(size);
        let resize = self.subject.resize(device, ByteCount::new(size), preallocation);
        let result = self.droppable(resize, drop_after).await;
        self.resizing.set(None);
        if let Some(Ok(())) = result {
            self.model.borrow_mut().succeed_resize(id);
            return;
        }
        self.model.borrow_mut().fail_resize(id, device.size().get());
        match result {
            Some(Err(error)) => self.failed(number, &error),
            _ => {
                self.unsettled.set(true);
                self.was_dropped();
            }
        }
    }

    async fn flush(&self, device: &S::Device, number: u32, drop_after: Option<u32>) {
        let flush = self.model.borrow_mut().issue_flush();
        match self.droppable(device.flush(), drop_after).await {
            Some(Ok(())) => {
                self.model.borrow_mut().succeed_flush(flush);
                self.flushed.set(true);
            }
            Some(Err(error)) => self.failed(number, &error),
            None => self.was_dropped(),
        }
    }

    /// The request's output; `None` when it was dropped after `polls`.
    async fn droppable<F: Future>(&self, request: F, polls: Option<u32>) -> Option<F::Output> {
        match polls {
            None => Some(request.await),
            Some(polls) => DropAfter::new(request, polls).late(self.drop_late).await,
        }
    }

    fn was_dropped(&self) {
        self.disturbed.set(true);
        self.drops.set(self.drops.get() + 1);
    }

    async fn read(&self, device: &S::Device, number: u32, range: Range, drop_after: Option<u32>) {
        let read = self.model.borrow_mut().issue_read();
        let result = self.droppable(device.read(range.start(), range.buffer()), drop_after).await;
        let bytes = match &result {
            Some((Ok(()), buffer)) => Some(&buffer[..]),
            Some((Err(error), _)) => {
                self.failed(number, error);
                None
            }
            None => {
                self.was_dropped();
                None
            }
        };
        let ended = self.model.borrow_mut().end_read(read, range.at, bytes);
        if let Err(illegal) = ended {
            self.report("read", format!("request {number}: {}", describe(&illegal)));
        }
    }

    /// Tells the model how a request ended.
    fn end(&self, number: u32, id: RequestId, result: Option<Result<(), BlockError>>) {
        match result {
            Some(Ok(())) => self.model.borrow_mut().succeed(id),
            Some(Err(error)) => {
                self.model.borrow_mut().fail(id);
                self.failed(number, &error);
            }
            None => {
                self.model.borrow_mut().fail(id);
                self.unsettled.set(true);
                self.was_dropped();
            }
        }
    }

    /// Without a fault in the host nothing fails.
    pub(crate) fn failed(&self, number: u32, error: &BlockError) {
        self.unsettled.set(true);
        self.disturbed.set(true);
        self.world.note(&format!("request {number} fails: {error}"));
        /// EOPNOTSUPP: the engine says that it does not do this.
        const UNSUPPORTED: i32 = 95;
        let is_cut_off = self.resized.get() && is_past_end(error);
        if self.world.faults_injected() == 0 && !is_cut_off && error.errno() != UNSUPPORTED {
            self.report("errors", format!("request {number} failed without a fault: {error}"));
        }
        if is_latched(error) && self.world.was_only_full() && self.drops.get() == 0 {
            self.report("full disk", format!("request {number}: {error}"));
        }
    }

    /// What failed or dropped requests did, they have done once no I/O of theirs is left.
    pub(crate) fn settle(&self) {
        if self.unsettled.get() && !self.world.has_orphans() {
            self.unsettled.set(false);
            self.model.borrow_mut().settle();
        }
    }
}

/// Whether the range was on the disk when the request was sent, and the disk has shrunk.
fn is_past_end(error: &BlockError) -> bool {
    /// EINVAL: a compressed write that ends where the disk did.
    const INVALID: i32 = 22;
    matches!(error, BlockError::OutOfRange { .. }) || error.errno() == INVALID
}

/// Whether the engine takes no changes any more.
fn is_latched(error: &BlockError) -> bool {
    let BlockError::Format { source, .. } = error else { return false };
    matches!(source.downcast_ref(), Some(cowl_qcow2::Error::Latched { .. }))
}

/// An illegal range, in words.
pub(crate) fn describe(illegal: &Illegal) -> String {
    format!("{:#x}+{:#x}: {}", illegal.at, illegal.length, illegal.text)
}

fn without_buffer((result, _): DeviceResult) -> Result<(), BlockError> {
    result
}

/// Reads the whole disk.
pub(crate) async fn read_all<D: BlockDevice>(device: &D) -> Result<Vec<u8>, BlockError> {
    /// Bytes of one request.
    const PART: u64 = 16 << 10;
    let size = device.size().get();
    let mut all = Vec::new();
    let mut at = 0;
    while at < size {
        let length = ByteCount::new(PART.min(size - at));
        let buffer = IoBuffer::zeroed(length.as_usize());
        let (result, buffer) = device.read(GuestOffset::new(at), buffer).await;
        result?;
        all.extend_from_slice(&buffer);
        at += length.get();
    }
    Ok(all)
}
