//! A ring that serves transfers and nothing else.
//!
//! ```text
//!   queue -> waiting -> submit -> with the kernel -> finished -> done -> take
//! ```
//!
//! What makes it sound: from `queue` on the transfer, and with it the buffer and the open file,
//! belongs to its slot, whose future may be dropped at any time; the slot gives it away when the
//! kernel has said that it is done. A ring that is dropped waits for all of them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::task::{Poll, Waker};

use io_uring::IoUring;

use super::transfer::Transfer;

/// Entries that are handed over in one call at most.
const ENTRIES: u32 = 64;

/// Transfers that may be under way: there is room for the answer to each.
pub(crate) const TRANSFERS_MAX: u32 = 512;

/// A ring of the thread that made it.
pub(crate) struct TransferRing<F: AsFd> {
    state: RefCell<State<F>>,
    fd: RawFd,
}

struct State<F> {
    ring: IoUring,
    slots: Vec<Slot<F>>,
    free: Vec<u32>,
    /// Slots whose entries the kernel has not seen.
    waiting: VecDeque<u32>,
    /// Transfers that are waiting or with the kernel.
    under_way: u32,
}

struct Slot<F> {
    /// `None` in a free one.
    transfer: Option<Transfer<F>>,
    progress: Progress,
    /// Of whoever waits.
    waker: Option<Waker>,
}

#[derive(Clone, Copy)]
enum Progress {
    UnderWay,
    /// As before, but nobody waits for it any more.
    Abandoned,
    Done(i32),
}

/// What the end of a transfer leaves to be done, by whoever does not hold the ring: both may run
/// code of others.
struct Finished<F> {
    waker: Option<Waker>,
    /// What nobody waits for.
    abandoned: Option<Box<Transfer<F>>>,
}

impl<F> Finished<F> {
    #[inline]
    fn tell(self) {
        if let Some(waker) = self.waker {
            waker.wake();
        }
        drop(self.abandoned);
    }
}

impl<F: AsFd> TransferRing<F> {
    pub(crate) fn new() -> io::Result<Self> {
        let ring = IoUring::builder().setup_cqsize(TRANSFERS_MAX).build(ENTRIES)?;
        let fd = ring.as_raw_fd();
        let state = State {
            ring,
            slots: Vec::new(),
            free: Vec::new(),
            waiting: VecDeque::new(),
            under_way: 0,
        };
        Ok(Self { state: RefCell::new(state), fd })
    }

    /// How many transfers are waiting or with the kernel.
    #[inline]
    pub(crate) fn under_way(&self) -> u32 {
        self.state.borrow().under_way
    }

    /// Whether there is something to [`submit`](Self::submit).
    pub(crate) fn has_waiting(&self) -> bool {
        self.state.borrow_mut().has_waiting()
    }

    /// Takes `transfer` into a slot, whose number is returned, and how many wait for
    /// [`submit`](Self::submit) now.
    #[inline]
    pub(crate) fn queue(&self, transfer: Transfer<F>) -> (u32, usize) {
        let state = &mut *self.state.borrow_mut();
        let number = state.free.pop().unwrap_or_else(|| state.add_slot());
        let slot = &mut state.slots[number as usize];
        slot.transfer = Some(transfer);
        slot.progress = Progress::UnderWay;
        state.waiting.push_back(number);
        state.under_way += 1;
        (number, state.waiting.len())
    }

    /// Hands over all that waits. After an error some of it waits still, and may be tried again.
    pub(crate) fn submit(&self) -> io::Result<()> {
        let state = &mut *self.state.borrow_mut();
        while state.has_waiting() {
            state.fill();
            // The kernel may take fewer than there are.
            if hand_over(&mut state.ring)? == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
        }
        Ok(())
    }

    /// Tells those who wait for what the kernel has done since.
    pub(crate) fn take_answers(&self) {
        while let Some(finished) = self.finish_one() {
            finished.tell();
        }
    }

    #[inline]
    fn finish_one(&self) -> Option<Finished<F>> {
        self.state.borrow_mut().finish_one()
    }

    /// Gives back the transfer of a slot, and the kernel's answer to it; `waker` is told when that
    /// is there. `make` takes both, so that they need not be moved more often; it may drop them.
    #[inline(always)]
    pub(crate) fn take<R>(
        &self,
        number: u32,
        waker: &Waker,
        make: impl FnOnce(i32, Transfer<F>) -> R,
    ) -> Poll<R> {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[number as usize];
        if let Progress::Done(answer) = slot.progress
            && let Some(transfer) = slot.transfer.take()
        {
            state.free.push(number);
            // Not while the ring is borrowed: what is dropped may run code of others.
            drop(state);
            return Poll::Ready(make(answer, transfer));
        }
        let is_known = slot.waker.as_ref().is_some_and(|known| known.will_wake(waker));
        drop(state);
        if !is_known {
            self.exchange_waker(number, waker.clone());
        }
        Poll::Pending
    }

    #[inline]
    fn exchange_waker(&self, number: u32, waker: Waker) {
        let mut state = self.state.borrow_mut();
        let slot = &mut state.slots[number as usize];
        let is_late = matches!(slot.progress, Progress::Done(_));
        let other = match is_late {
            true => Some(waker),
            false => slot.waker.replace(waker),
        };
        // Not while the ring is borrowed: wakers run code of others, also when they are made.
        drop(state);
        if let Some(other) = other
            && is_late
        {
            other.wake();
        }
    }

    /// Nobody waits for this one any more.
    pub(crate) fn abandon(&self, number: u32) {
        let gone = {
            let state = &mut *self.state.borrow_mut();
            let slot = &mut state.slots[number as usize];
            let transfer = match slot.progress {
                Progress::Done(_) => {
                    let transfer = slot.transfer.take();
                    if transfer.is_some() {
                        state.free.push(number);
                    }
                    transfer
                }
                Progress::UnderWay | Progress::Abandoned => {
                    slot.progress = Progress::Abandoned;
                    None
                }
            };
            (transfer, slot.waker.take())
        };
        // Not while the ring is borrowed: either may run code of others.
        drop(gone);
    }

    /// Hands over all that waits, and returns when the kernel has done everything.
    pub(crate) fn finish_all(&self) -> io::Result<()> {
        loop {
            self.take_answers();
            let state = &mut *self.state.borrow_mut();
            if state.under_way == 0 {
                return Ok(());
            }
            state.fill();
            match state.ring.submit_and_wait(1) {
                Err(error) if !is_passing(&error) => return Err(error),
                _ => {}
            }
        }
    }
}

/// Whether the same call may go well later.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

/// Lets the kernel take entries. Returns how many it has taken.
fn hand_over(ring: &mut IoUring) -> io::Result<usize> {
    #[cfg(test)]
    if let Some(outcome) = faults::meet(ring) {
        return outcome;
    }
    ring.submit()
}

impl<F: AsFd> State<F> {
    /// Whether the kernel has not seen all that was queued: what it did not take stays in the ring.
    fn has_waiting(&mut self) -> bool {
        !self.waiting.is_empty() || !self.ring.submission().is_empty()
    }

    /// Writes entries for what waits, as far as there is room.
    fn fill(&mut self) {
        let mut entries = self.ring.submission();
        while !entries.is_full()
            && let Some(number) = self.waiting.pop_front()
        {
            let transfer = &mut self.slots[number as usize].transfer;
            let transfer = transfer.as_mut().expect("what waits is under way");
            let entry = transfer.entry().user_data(u64::from(number));
            // SAFETY: the bytes at the entry's address and the open file are the slot's until the
            // kernel has answered: `finish_one` and nothing else takes them out of it, and moving
            // a slot does not move the bytes. There is room, so the entry is taken.
            unsafe { entries.push(&entry) }.expect("the ring has room");
        }
    }

    #[inline]
    fn finish_one(&mut self) -> Option<Finished<F>> {
        let answer = self.ring.completion().next()?;
        let number = u32::try_from(answer.user_data()).expect("the number of a slot");
        self.under_way -= 1;
        let slot = &mut self.slots[number as usize];
        let is_abandoned = matches!(slot.progress, Progress::Abandoned);
        let abandoned = match is_abandoned {
            true => {
                self.free.push(number);
                slot.transfer.take().map(Box::new)
            }
            false => None,
        };
        slot.progress = Progress::Done(answer.result());
        Some(Finished { waker: slot.waker.take(), abandoned })
    }

    #[cold]
    fn add_slot(&mut self) -> u32 {
        self.slots.push(Slot { transfer: None, progress: Progress::UnderWay, waker: None });
        u32::try_from(self.slots.len() - 1).expect("there are few slots")
    }
}

impl<F: AsFd> AsFd for TransferRing<F> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring is closed with this value, not before.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

impl<F: AsFd> Drop for TransferRing<F> {
    fn drop(&mut self) {
        // What could not be done is seen to below.
        self.finish_all().ok();
    }
}

impl<F> Drop for State<F> {
    fn drop(&mut self) {
        if 0 < self.under_way {
            // The kernel may still use the memory.
            std::mem::forget(std::mem::take(&mut self.slots));
        }
    }
}

/// What the kernel does seldom, for tests.
#[cfg(test)]
pub(crate) mod faults {
    use std::cell::RefCell;
    use std::io;

    use io_uring::IoUring;

    pub(crate) enum Fault {
        /// It has no room for more answers.
        Busy,
        /// It is short of memory after one entry.
        One,
    }

    thread_local! {
        static NEXT: RefCell<Vec<Fault>> = const { RefCell::new(Vec::new()) };
    }

    /// Has the next attempts of this thread meet `faults`, the last one first.
    pub(crate) fn set(faults: Vec<Fault>) {
        NEXT.set(faults);
    }

    pub(crate) fn are_met() -> bool {
        NEXT.with_borrow(Vec::is_empty)
    }

    pub(super) fn meet(ring: &mut IoUring) -> Option<io::Result<usize>> {
        let fault = NEXT.with_borrow_mut(Vec::pop)?;
        Some(match fault {
            Fault::Busy => Err(io::Error::from_raw_os_error(libc::EBUSY)),
            Fault::One => {
                // The kernel is told of entries by this.
                ring.submission().sync();
                // SAFETY: the entries were promised to be sound when they were pushed.
                unsafe { ring.submitter().enter::<()>(1, 0, 0, None) }
            }
        })
    }
}
