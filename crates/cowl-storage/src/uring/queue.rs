//! The way of transfers to the kernel.
//!
//! Each request to the ring of a runtime takes 1400 instructions around it, where a read of the
//! device itself takes three microseconds. So where a thread has many transfers under way they go
//! through a ring of their own that knows nothing else; the runtime waits for that ring as it waits
//! for a socket. Where they are few that wait would cost more than it saves, and the runtime's ring
//! takes them. (`docs/decisions/0015-a-ring-for-transfers.md`)
//!
//! ```text
//!   transfer --- few ---> ring of the runtime -----------------------------------> done
//!         `----- many --> TransferRing: handed over in batches, or when the
//!                         thread has nothing else to do (submit), until the
//!                         ring has answers (take_answers) ----------------------> done
//! ```
//!
//! A transfer whose future is dropped is carried out all the same; buffer and file stay with the
//! ring until then. A runtime that ends waits for the transfers of its queue.

use std::cell::{Cell, OnceCell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use compio::BufResult;
use compio::driver::op::{Interest, PollOnce};
use compio::runtime::Runtime;

use super::ring::Target;
use super::yield_now;
use crate::sys::{TRANSFERS_MAX, Transfer, TransferRing, register_also};

/// So many transfers are handed over at once, although the thread may have more to come: the
/// device begins with them meanwhile. Smaller batches make it busier and ring it more often.
const BATCH: usize = 24;

/// So many transfers under way at a time are many.
const MANY: u32 = 8;

/// After so many transfers it is looked at again how many were under way at a time.
const LOOK: u32 = 64;

thread_local! {
    static HERE: RefCell<Option<Rc<Queue>>> = const { RefCell::new(None) };
}

/// The transfers of one runtime.
struct Queue {
    /// Made when it is needed for the first time; `None` then where the system has none to give, or
    /// may pin no more memory.
    ring: OnceCell<Option<Rc<TransferRing<Target>>>>,
    load: Load,
    /// The runtime's own ring: requests of another runtime of this thread are not for this queue.
    runtime: RawFd,
    /// Woken when something waits to be handed over.
    submitter: Cell<Option<Waker>>,
}

/// Gives the transfers of `runtime` a ring of their own, as soon as they are many.
pub(super) fn install(runtime: &Runtime) {
    let queue = Queue {
        ring: OnceCell::new(),
        load: Load::default(),
        runtime: runtime.as_raw_fd(),
        submitter: Cell::new(None),
    };
    drop(HERE.replace(Some(Rc::new(queue))));
}

/// Has `transfer` done. Returns how many bytes were moved, and the transfer.
#[inline]
pub(super) async fn run(transfer: Transfer<Target>) -> Outcome {
    match start(transfer) {
        Ok(queued) => queued.await,
        Err(transfer) => by_runtime(transfer).await,
    }
}

/// What became of a transfer: how many bytes were moved.
pub(super) type Outcome = (io::Result<usize>, Transfer<Target>);

/// Begins with `transfer` if it is one of many, or gives it back.
#[inline]
pub(super) fn start(transfer: Transfer<Target>) -> Result<Queued, Transfer<Target>> {
    let Some(queue) = Queue::here() else { return Err(transfer) };
    let Some(ring) = queue.ring_for_one_more() else { return Err(transfer) };
    let slot = queue.queue(ring, transfer);
    Ok(Queued { ring: Rc::clone(ring), slot: Some(slot) })
}

/// By the ring of the runtime.
pub(super) async fn by_runtime(transfer: Transfer<Target>) -> Outcome {
    let queue = Queue::here();
    let _under_way = queue.as_ref().map(|queue| queue.load.enter());
    let BufResult(result, transfer) = compio::runtime::submit(transfer).await;
    (result, transfer)
}

impl Queue {
    /// That of the runtime that runs on this thread.
    #[inline]
    fn here() -> Option<Rc<Self>> {
        let queue = HERE.try_with(|here| here.borrow().clone()).ok()??;
        let runtime = Runtime::try_with_current(|runtime| runtime.as_raw_fd()).ok()?;
        (queue.runtime == runtime).then_some(queue)
    }

    /// The ring, if the next transfer goes through it.
    #[inline]
    fn ring_for_one_more(self: &Rc<Self>) -> Option<&Rc<TransferRing<Target>>> {
        let under_way = self.ring.get().into_iter().flatten().map(|ring| ring.under_way()).sum();
        if !self.load.is_deep_with(under_way) || TRANSFERS_MAX <= under_way {
            return None;
        }
        self.ring.get_or_init(|| self.make_ring()).as_ref()
    }

    /// A ring and the tasks that serve it.
    #[cold]
    fn make_ring(self: &Rc<Self>) -> Option<Rc<TransferRing<Target>>> {
        let ring = Rc::new(TransferRing::new().ok().filter(register_also)?);
        let running = || Running { queue: Rc::clone(self), ring: Rc::clone(&ring) };
        compio::runtime::spawn(submit(running())).detach();
        compio::runtime::spawn(reap(running())).detach();
        Some(ring)
    }

    /// Queues a transfer; its slot.
    #[inline]
    fn queue(&self, ring: &TransferRing<Target>, transfer: Transfer<Target>) -> u32 {
        let (slot, waiting) = ring.queue(transfer);
        if BATCH <= waiting {
            // What could not be handed over is tried again by the task.
            ring.submit().ok();
        }
        if let Some(submitter) = self.submitter.take() {
            submitter.wake();
        }
        slot
    }
}

/// Hands over what waits, each time behind all that the thread has to do now.
async fn submit(running: Running) {
    let Running { queue, ring } = &running;
    loop {
        poll_fn(|context| {
            if ring.has_waiting() {
                return Poll::Ready(());
            }
            queue.submitter.set(Some(context.waker().clone()));
            Poll::Pending
        })
        .await;
        while ring.submit().is_err() {
            // The kernel wants its answers to be taken first, or is short of something.
            ring.take_answers();
            yield_now().await;
        }
    }
}

/// Takes answers when there are some.
async fn reap(running: Running) {
    loop {
        let ready = PollOnce::new(Rc::clone(&running.ring), Interest::Readable);
        if compio::runtime::submit(ready).await.0.is_err() {
            // Nobody would hear of an answer any more: this is the end of the queue.
            return;
        }
        running.ring.take_answers();
    }
}

/// While both tasks of a queue run: without one of them it is of no use, and nobody finds it any
/// more. Their runtime drops them when it ends.
struct Running {
    queue: Rc<Queue>,
    ring: Rc<TransferRing<Target>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        let is_this = |here: &RefCell<Option<Rc<Queue>>>| {
            let mut here = here.borrow_mut();
            here.take_if(|queue| Rc::ptr_eq(queue, &self.queue))
        };
        drop(HERE.try_with(is_this));
        // What is under way finds its answer all the same, also when somebody keeps it beyond the
        // runtime. An error here leaves that to the end of the ring.
        self.ring.finish_all().ok();
    }
}

/// A transfer on its way through the ring.
pub(super) struct Queued {
    ring: Rc<TransferRing<Target>>,
    /// `None` when it is done.
    slot: Option<u32>,
}

impl Queued {
    /// Polls it; makes `R` of its outcome, without moving that about.
    #[inline(always)]
    pub(super) fn poll_with<R>(
        &mut self,
        context: &Context<'_>,
        make: impl FnOnce(io::Result<usize>, Transfer<Target>) -> R,
    ) -> Poll<R> {
        let Self { ring, slot } = self;
        let number = slot.expect("nobody polls what is done");
        ring.take(number, context.waker(), |answer, transfer| {
            *slot = None;
            let result = usize::try_from(answer);
            make(result.map_err(|_| io::Error::from_raw_os_error(-answer)), transfer)
        })
    }
}

impl Future for Queued {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcome> {
        self.poll_with(context, |result, transfer| (result, transfer))
    }
}

impl Drop for Queued {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.ring.abandon(slot);
        }
    }
}

/// How many transfers are under way at a time.
#[derive(Default)]
struct Load {
    /// Through the ring of the runtime.
    elsewhere: Cell<u32>,
    /// Since the last look: the most at a time, and how many began.
    most: Cell<u32>,
    begun: Cell<u32>,
    /// Whether they were many at the last look.
    is_deep: Cell<bool>,
}

impl Load {
    /// Whether they are many, now that one more begins beside `under_way` in the transfers' ring.
    #[inline]
    fn is_deep_with(&self, under_way: u32) -> bool {
        self.most.set(self.most.get().max(under_way + self.elsewhere.get() + 1));
        self.begun.set(self.begun.get() + 1);
        if self.begun.get() == LOOK {
            self.is_deep.set(MANY <= self.most.get());
            self.begun.set(0);
            self.most.set(0);
        }
        self.is_deep.get()
    }

    fn enter(&self) -> Elsewhere<'_> {
        self.elsewhere.set(self.elsewhere.get() + 1);
        Elsewhere(self)
    }
}

/// A transfer through the ring of the runtime.
struct Elsewhere<'a>(&'a Load);

impl Drop for Elsewhere<'_> {
    fn drop(&mut self) {
        self.0.elsewhere.set(self.0.elsewhere.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::future::Future;
    use std::pin::Pin;
    use std::rc::Rc;
    use std::sync::Arc;
    use std::task::{Context, Wake, Waker};

    use futures_util::future::join_all;

    use super::{HERE, LOOK, Load, MANY, Queue, run};
    use crate::file::OpenFile;
    use crate::sys::faults::{self, Fault};
    use crate::sys::{Direction, TRANSFERS_MAX, Transfer};
    use crate::uring::ring::Target;
    use crate::{FileOptions, IoBuffer, ring_runtime};

    const BLOCK: usize = 4096;

    /// A file whose block `n` is full of byte `n`.
    fn blocks(count: u8) -> (tempfile::NamedTempFile, Arc<OpenFile>) {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = (0..count).flat_map(|mark| [mark; BLOCK]).collect();
        std::fs::write(file.path(), content).unwrap();
        let open = OpenFile::open(file.path(), FileOptions::read_only()).unwrap();
        (file, Arc::new(open))
    }

    async fn read(file: &Arc<OpenFile>, mark: u8) {
        let (at, buffer) = (u64::from(mark) * BLOCK as u64, IoBuffer::for_requests(BLOCK));
        let transfer = Transfer::new(Target::reading(file), Direction::Read, at, buffer, 0..BLOCK);
        let (count, transfer) = run(transfer).await;
        assert_eq!(count.unwrap(), BLOCK);
        assert!(transfer.buffer.iter().all(|byte| *byte == mark));
    }

    /// Makes sure that the queue has seen many at a time.
    async fn read_many(file: &Arc<OpenFile>) {
        for _ in 0..8 {
            join_all((0..32).map(|mark| read(file, mark))).await;
        }
    }

    /// Whether this thread's queue, if it has one, has a ring.
    fn has_ring_here() -> Option<bool> {
        let has_ring = |queue: &Rc<Queue>| matches!(queue.ring.get(), Some(Some(_)));
        HERE.with(|here| here.borrow().as_ref().map(has_ring))
    }

    #[test]
    fn many_are_many_at_a_time() {
        let load = Load::default();
        for _ in 0..2 * LOOK {
            assert!(!load.is_deep_with(MANY - 2));
        }
        // One look that finds many is enough, and one that does not.
        let looks = (0..LOOK).map(|number| load.is_deep_with(number % MANY)).collect::<Vec<_>>();
        assert_eq!(looks.iter().filter(|is_deep| **is_deep).count(), 1);
        for _ in 1..LOOK {
            assert!(load.is_deep_with(0));
        }
        assert!(!load.is_deep_with(0));
        // Those of the runtime's ring count.
        let _elsewhere: Vec<_> = (1..MANY).map(|_| load.enter()).collect();
        for _ in 1..LOOK {
            load.is_deep_with(0);
        }
        assert!(load.is_deep_with(0));
    }

    #[test]
    fn few_transfers_take_the_ring_of_the_runtime_and_many_their_own() {
        let (_kept, file) = blocks(32);
        ring_runtime().unwrap().block_on(async {
            for _ in 0..8 {
                for mark in 0..32 {
                    read(&file, mark).await;
                }
            }
            assert_eq!(has_ring_here(), Some(false));
            read_many(&file).await;
            assert_eq!(has_ring_here(), Some(true));
            // More than have room: the others take the other way.
            let marks = (0..=u8::MAX).cycle().map(|mark| mark % 32);
            let crowd = marks.take(2 * TRANSFERS_MAX as usize).map(|mark| read(&file, mark));
            join_all(crowd).await;
            let queue = Queue::here().unwrap();
            let under_way = queue.ring.get().unwrap().as_ref().unwrap().under_way();
            assert_eq!((under_way, queue.load.elsewhere.get()), (0, 0));
        });
        // It went with its runtime.
        assert_eq!(has_ring_here(), None);
        assert_eq!(Arc::strong_count(&file), 1);
    }

    /// The kernel may take none or some of what it is given.
    #[test]
    fn what_was_not_taken_is_handed_over_again() {
        let (_kept, file) = blocks(32);
        for faults in [
            vec![Fault::Busy],
            vec![Fault::One],
            vec![Fault::One, Fault::Busy, Fault::Busy, Fault::One, Fault::Busy],
        ] {
            ring_runtime().unwrap().block_on(async {
                read_many(&file).await;
                assert_eq!(has_ring_here(), Some(true));
                faults::set(faults);
                join_all((0..16).map(|mark| read(&file, mark))).await;
                assert!(faults::are_met());
            });
        }
    }

    /// Drops a request when the waker itself is dropped.
    struct Dropper;

    thread_local! {
        static DROPPED: RefCell<Option<Pin<Box<dyn Future<Output = ()>>>>> =
            const { RefCell::new(None) };
    }

    impl Wake for Dropper {
        fn wake(self: Arc<Self>) {}
    }

    impl Drop for Dropper {
        fn drop(&mut self) {
            drop(DROPPED.take());
        }
    }

    #[test]
    fn wakers_may_do_what_they_like_when_they_are_exchanged() {
        let (_kept, file) = blocks(32);
        ring_runtime().unwrap().block_on(async {
            read_many(&file).await;
            let own = Arc::clone(&file);
            let mut first = Box::pin(async move { read(&own, 1).await });
            assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            DROPPED.set(Some(first));
            let mut second = Box::pin(read(&file, 2));
            let waker = Waker::from(Arc::new(Dropper));
            assert!(second.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
            drop(waker);
            second.await;
            assert!(DROPPED.take().is_none());
        });
    }

    #[test]
    fn runtimes_that_take_turns_on_a_thread_do_not_wait_for_each_other() {
        let (_kept, file) = blocks(32);
        let runtimes = [ring_runtime().unwrap(), ring_runtime().unwrap()];
        for _ in 0..6 {
            for runtime in &runtimes {
                runtime.block_on(join_all((0..32).map(|mark| read(&file, mark))));
            }
        }
        let [first, second] = runtimes;
        drop(second);
        first.block_on(join_all((0..32).map(|mark| read(&file, mark))));
    }

    #[test]
    fn a_panic_in_a_runtime_ends_its_queue_and_nothing_else() {
        let (_kept, file) = blocks(32);
        let runtime = ring_runtime().unwrap();
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(async {
                read_many(&file).await;
                panic!("on purpose");
            });
        }));
        assert!(panics.is_err());
        assert_eq!(has_ring_here(), None);
        runtime.block_on(read_many(&file));
    }
}
