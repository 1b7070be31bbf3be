//! Time limits of connections.
//!
//! A connection notes what it waits for and since when; once in a while the worker looks at all of
//! its connections and cuts those that wait too long. The notes are two stores to a cell, so the
//! way of a request pays nothing for its limits.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::socket::Socket;

/// Time as workers count it: looks since the thread began. Notes are off by one look at most.
#[derive(Default)]
pub(crate) struct Clock {
    now: Cell<u32>,
}

impl Clock {
    pub(crate) fn advance(&self) {
        self.now.set(self.now.get().wrapping_add(1));
    }
}

/// How often to look, and how many looks make a timeout.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) interval: Duration,
    handshake: u32,
    stall: u32,
}

/// Looks within the shorter timeout: a tenth of it is precise enough.
const LOOKS_PER_TIMEOUT: u32 = 10;

impl Pace {
    pub(crate) fn new(handshake: Duration, stall: Duration) -> Self {
        let shorter = handshake.min(stall);
        let interval = (shorter / LOOKS_PER_TIMEOUT).max(Duration::from_millis(1));
        let looks = |timeout: Duration| {
            let looks = timeout.as_nanos().div_ceil(interval.as_nanos());
            // Long before the count of looks comes round.
            u32::try_from(looks).unwrap_or(u32::MAX).min(u32::MAX / 2)
        };
        Self { interval, handshake: looks(handshake), stall: looks(stall) }
    }

    /// Whether so many looks are longer than anybody may take.
    pub(crate) fn is_too_long(&self, looks: u32) -> bool {
        self.stall < looks
    }
}

/// Bytes that go one way as a whole: the payload of a request, or replies sent together.
#[derive(Default)]
struct Transfer {
    began: Cell<Option<u32>>,
    /// When bytes went last.
    went_on: Cell<Option<u32>>,
}

impl Transfer {
    fn goes_on(&self, now: u32) {
        if self.began.get().is_none() {
            self.began.set(Some(now));
        }
        self.went_on.set(Some(now));
    }

    fn end(&self) {
        self.began.set(None);
        self.went_on.set(None);
    }
}

/// What is known about the waiting of one connection.
pub(crate) struct Watch {
    pub(crate) socket: Socket,
    clock: Rc<Clock>,
    shaking_hands_since: Cell<Option<u32>>,
    receiving: Transfer,
    sending: Transfer,
    revoked: OnceCell<Arc<AtomicBool>>,
}

impl Watch {
    /// Of a new connection, whose handshake begins.
    pub(crate) fn new(socket: Socket, clock: &Rc<Clock>) -> Rc<Self> {
        Rc::new(Self {
            socket,
            clock: Rc::clone(clock),
            shaking_hands_since: Cell::new(Some(clock.now.get())),
            receiving: Transfer::default(),
            sending: Transfer::default(),
            revoked: OnceCell::new(),
        })
    }

    /// The client has an export, for as long as that is not revoked.
    pub(crate) fn handshake_is_done(&self, revoked: Arc<AtomicBool>) {
        self.shaking_hands_since.set(None);
        let _there_is_one_handshake = self.revoked.set(revoked);
    }

    /// The rest of a request is awaited, from now on.
    pub(crate) fn receiving(&self) {
        self.receiving.goes_on(self.clock.now.get());
    }

    /// Nothing is awaited but the next request, for which a client may take its time.
    pub(crate) fn idle(&self) {
        self.receiving.end();
    }

    /// The client has to take bytes, from now on.
    pub(crate) fn sending(&self) {
        self.sending.goes_on(self.clock.now.get());
    }

    pub(crate) fn sent(&self) {
        self.sending.end();
    }

    /// Whether the client's export was taken away from it.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.get().is_some_and(|revoked| revoked.load(Ordering::Relaxed))
    }

    /// Whether the client has taken too long. While others wait for memory, a little progress now
    /// and then is not enough: what a client began has to end.
    pub(crate) fn is_overdue(&self, pace: Pace, memory_is_short: bool) -> bool {
        let waited = |since: &Cell<Option<u32>>, max: u32| {
            since.get().is_some_and(|since| max < self.clock.now.get().wrapping_sub(since))
        };
        let stalled = |transfer: &Transfer| {
            let since = if memory_is_short { &transfer.began } else { &transfer.went_on };
            waited(since, pace.stall)
        };
        waited(&self.shaking_hands_since, pace.handshake)
            || stalled(&self.receiving)
            || stalled(&self.sending)
    }
}
