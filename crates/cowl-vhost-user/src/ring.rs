//! A queue of the guest: what is available, what is used, and who is told.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::chain::{self, Chain, ChainFault};
use crate::execute::Done;
use crate::inflight::Track;
use crate::memory::Memory;
use crate::notifier::Notifier;

/// Where the parts of a queue lie, and where it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) size: u16,
    pub(crate) descriptors: GuestAddress,
    pub(crate) available: GuestAddress,
    pub(crate) used: GuestAddress,
    /// The first entry of the available ring that was not taken.
    pub(crate) base: u16,
    pub(crate) event_index: bool,
}

/// Why a queue is not served any further. Only its driver can have done this.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RingFault {
    /// The available index is further ahead than the ring is long.
    IndexJumped,
    /// A request is available a second time before it was answered.
    TakenTwice,
    /// A request has a number that the queue does not have.
    HeadTooLarge,
    /// A chain that cannot be followed.
    Chain(ChainFault),
    /// The ring is not in the guest's memory any more.
    Outside,
}

/// A request taken from the ring.
pub(crate) struct Taken {
    pub(crate) head: u16,
    pub(crate) chain: Chain,
}

/// A queue that is being served.
pub(crate) struct Ring {
    queue: Queue,
    pub(crate) memory: Arc<Memory>,
    track: Option<Track>,
    /// Taken by an earlier back-end and not answered.
    left: VecDeque<u16>,
    /// Which requests are in flight, by their head.
    busy: Vec<bool>,
    call: Arc<Notifier>,
    /// Whether something was used since the guest was last told.
    untold: bool,
}

impl Ring {
    /// `None` where the parts do not lie in the guest's memory as they should.
    pub(crate) fn new(
        memory: Arc<Memory>,
        layout: Layout,
        track: Option<Track>,
        call: Arc<Notifier>,
    ) -> Option<Self> {
        let mut queue = Queue::new(layout.size).ok()?;
        queue.try_set_size(layout.size).ok()?;
        queue.try_set_desc_table_address(layout.descriptors).ok()?;
        queue.try_set_avail_ring_address(layout.available).ok()?;
        queue.try_set_used_ring_address(layout.used).ok()?;
        queue.set_event_idx(layout.event_index);
        queue.set_ready(true);
        if !queue.is_valid(&memory.guest) {
            return None;
        }
        let used = queue.used_idx(&memory.guest, Ordering::Acquire).ok()?.0;
        queue.set_next_used(used);
        queue.set_next_avail(layout.base);
        let busy = vec![false; usize::from(layout.size)];
        let left = VecDeque::new();
        let mut ring = Self { queue, memory, track, left, busy, call, untold: false };
        ring.recover(used);
        // Whoever served the ring before may have died between an answer and its call. With event
        // index the guest is not called for later answers either: it asked to be called for that
        // one. A call too many costs a look at the ring.
        ring.call.notify();
        Some(ring)
    }

    /// Takes up what an earlier back-end left. What it took and did not answer lies between the
    /// used index and where it stood, so that is where to go on; the front-end cannot know.
    fn recover(&mut self, used: u16) {
        let Some(track) = &mut self.track else { return };
        self.left = track.recover(used).into();
        let left = u16::try_from(self.left.len()).expect("no more than the queue has");
        self.queue.set_next_avail(used.wrapping_add(left));
    }

    /// The next request, if there is one.
    pub(crate) fn take(&mut self) -> Result<Option<Taken>, RingFault> {
        let (head, is_left) = match self.left.pop_front() {
            Some(head) => (head, true),
            None => match self.next_available()? {
                Some(head) => (head, false),
                None => return Ok(None),
            },
        };
        let busy = self.busy.get_mut(usize::from(head)).ok_or(RingFault::HeadTooLarge)?;
        if std::mem::replace(busy, true) {
            return Err(RingFault::TakenTwice);
        }
        // One that was left keeps its place in the order, should this process die, too.
        if let Some(track) = &mut self.track
            && !is_left
        {
            track.begin(head);
        }
        let size = self.queue.size();
        let chain = chain::walk(&self.memory, self.queue.desc_table(), size, head);
        Ok(Some(Taken { head, chain: chain.map_err(RingFault::Chain)? }))
    }

    fn next_available(&mut self) -> Result<Option<u16>, RingFault> {
        // The ring lies in memory since `new`, so what can fail is the index.
        let mut available =
            self.queue.iter(&self.memory.guest).map_err(|_| RingFault::IndexJumped)?;
        Ok(available.next().map(|chain| chain.head_index()))
    }

    /// Asks for kicks, and says whether something came meanwhile.
    pub(crate) fn listen(&mut self) -> Result<bool, RingFault> {
        let more = self.queue.enable_notification(&self.memory.guest);
        more.map_err(|_| RingFault::Outside)
    }

    /// Asks for no kicks while the ring is looked at anyway.
    pub(crate) fn hush(&mut self) {
        // It is a hint, and a ring that is gone shows when it is read.
        let _hint = self.queue.disable_notification(&self.memory.guest);
    }

    /// Answers a request.
    pub(crate) fn finish(&mut self, done: Done) {
        self.busy[usize::from(done.head)] = false;
        if let Some(track) = &self.track {
            track.announce(done.head);
        }
        let used = self.queue.add_used(&self.memory.guest, done.head, done.written);
        debug_assert!(used.is_ok(), "the ring was checked when it was set up");
        if let Some(track) = &self.track {
            track.end(done.head, self.queue.next_used());
        }
        self.untold = true;
    }

    /// Tells the guest what was used since the last time, where it wants to know.
    pub(crate) fn tell(&mut self) {
        if std::mem::take(&mut self.untold) && self.wants_call() {
            self.call.notify();
        }
    }

    fn wants_call(&mut self) -> bool {
        let wants = self.queue.needs_notification(&self.memory.guest).unwrap_or(true);
        if self.queue.event_idx_enabled() {
            return wants;
        }
        let flags = GuestAddress(self.queue.avail_ring());
        let flags = self.memory.guest.load::<u16>(flags, Ordering::Relaxed).map(u16::from_le);
        flags.is_ok_and(|flags| u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// The first entry of the available ring that was not taken.
    pub(crate) fn base(&self) -> u16 {
        self.queue.next_avail()
    }
}
