//! Which requests are in flight, by epoch.
//!
//! A request that looks at a mapping and then reads or writes the host cluster found there pins the
//! current epoch. A cluster that was unlinked in epoch e may be reused once every request of epoch
//! e and before is done: nobody can still be on its way to it. No lock and no list: a request adds
//! one to a counter of its thread's own line, and takes it away again.
//!
//! Two counters a shard are enough. The epoch advances from e to e + 1 only when no request of
//! epoch e - 1 is left, whose counter epoch e + 1 takes over.
//!
//! A request that is dropped while the host may still be working for it keeps its pin, as an
//! *abandoned* one, until the storage has settled.

use std::sync::PoisonError;

use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Event, Mutex, thread_number};

/// More than cores that hand requests to one image; as many as matter where a scheduler runs them.
const SHARDS: usize = if cfg!(all(test, feature = "interleavings")) { 2 } else { 16 };

/// A cache line of its own, and the neighbour that is fetched with it.
#[repr(align(128))]
struct Padded<T>(T);

/// The epochs of one image.
pub(crate) struct Epochs {
    current: Padded<AtomicU64>,
    shards: Box<[Padded<[AtomicUsize; 2]>]>,
    abandoned: Mutex<Vec<(usize, usize)>>,
    has_abandoned: AtomicBool,
    /// How many wait for requests to leave.
    drains: AtomicUsize,
    left: Event,
}

/// A request in flight.
pub(crate) struct Pin<'a> {
    epochs: &'a Epochs,
    shard: usize,
    parity: usize,
    /// Changes of host files that are under way for the request.
    changes: AtomicUsize,
}

/// Pins whose requests were dropped; given back if the wait for the storage is dropped too.
pub(crate) struct Abandoned<'a> {
    epochs: &'a Epochs,
    pins: Vec<(usize, usize)>,
}

impl Epochs {
    pub(crate) fn new() -> Self {
        Self {
            current: Padded(AtomicU64::new(2)),
            shards: (0..SHARDS).map(|_| Padded(Default::default())).collect(),
            abandoned: Mutex::default(),
            has_abandoned: AtomicBool::new(false),
            drains: AtomicUsize::new(0),
            left: Event::new(),
        }
    }

    /// Starts a request.
    pub(crate) fn enter(&self) -> Pin<'_> {
        let shard = thread_number() % SHARDS;
        loop {
            let epoch = self.now();
            let parity = parity_of(epoch);
            self.shards[shard].0[parity].fetch_add(1, Ordering::SeqCst);
            // Only a request that is counted before the epoch goes on belongs to it.
            if self.now() == epoch {
                return Pin { epochs: self, shard, parity, changes: AtomicUsize::new(0) };
            }
            self.leave(shard, parity);
        }
    }

    /// The epoch of an unlink that the caller has just made in memory: out of reach for requests of
    /// later ones.
    pub(crate) fn of_unlink(&self) -> u64 {
        // A change that changes nothing: whoever ends this epoch reads it, so that requests of the
        // next one see the unlink. After a mere load, such a request could still find the pointer,
        // and be no reason to keep the cluster.
        self.current.0.fetch_add(0, Ordering::SeqCst)
    }

    /// The current epoch.
    pub(crate) fn now(&self) -> u64 {
        self.current.0.load(Ordering::SeqCst)
    }

    /// Whether every request that may have seen something unlinked in `epoch` is done.
    pub(crate) fn is_over(&self, epoch: u64) -> bool {
        epoch + 2 <= self.now()
    }

    /// Goes on as far as requests in flight allow, at most to the end of the current epoch.
    pub(crate) fn advance(&self) {
        for _ in 0..2 {
            let epoch = self.now();
            let before = parity_of(epoch + 1);
            let is_empty =
                self.shards.iter().all(|shard| shard.0[before].load(Ordering::SeqCst) == 0);
            if !is_empty {
                return;
            }
            let current = &self.current.0;
            current.compare_exchange(epoch, epoch + 1, Ordering::SeqCst, Ordering::SeqCst).ok();
        }
    }

    /// Returns true when every request that was in flight in `epoch` is done, and false when one
    /// was dropped: it is done once the storage has settled.
    pub(crate) async fn drain(&self, epoch: u64) -> bool {
        let _drain = Drain::new(&self.drains);
        loop {
            let left = self.left.listen();
            self.advance();
            if self.is_over(epoch) {
                return true;
            }
            if self.has_abandoned() {
                return false;
            }
            left.await;
        }
    }

    /// Whether a request was dropped while the host was working for it.
    pub(crate) fn has_abandoned(&self) -> bool {
        self.has_abandoned.load(Ordering::SeqCst)
    }

    /// Takes the pins of dropped requests, to be released once the storage has settled.
    pub(crate) fn take_abandoned(&self) -> Abandoned<'_> {
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        Abandoned { epochs: self, pins: std::mem::take(&mut *abandoned) }
    }

    fn abandon(&self, pins: impl IntoIterator<Item = (usize, usize)>) {
        let mut abandoned = self.abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        abandoned.extend(pins);
        self.has_abandoned.store(!abandoned.is_empty(), Ordering::SeqCst);
        if 0 < self.drains.load(Ordering::SeqCst) {
            self.left.notify(usize::MAX);
        }
    }

    fn leave(&self, shard: usize, parity: usize) {
        self.shards[shard].0[parity].fetch_sub(1, Ordering::SeqCst);
        if 0 < self.drains.load(Ordering::SeqCst) {
            self.left.notify(usize::MAX);
        }
    }
}

/// Somebody waits for requests to leave.
struct Drain<'a>(&'a AtomicUsize);

impl<'a> Drain<'a> {
    fn new(drains: &'a AtomicUsize) -> Self {
        drains.fetch_add(1, Ordering::SeqCst);
        Self(drains)
    }
}

impl Drop for Drain<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Pin<'_> {
    /// Runs an I/O that changes a host file. If the request is dropped meanwhile, the pin stays.
    pub(crate) async fn while_changing<T>(&self, io: impl Future<Output = T>) -> T {
        self.changes.fetch_add(1, Ordering::Relaxed);
        let result = io.await;
        self.changes.fetch_sub(1, Ordering::Relaxed);
        result
    }
}

impl Drop for Pin<'_> {
    fn drop(&mut self) {
        if 0 < self.changes.load(Ordering::Relaxed) {
            self.epochs.abandon([(self.shard, self.parity)]);
        } else {
            self.epochs.leave(self.shard, self.parity);
        }
    }
}

impl Abandoned<'_> {
    /// The storage has settled.
    pub(crate) fn release(mut self) {
        for (shard, parity) in std::mem::take(&mut self.pins) {
            self.epochs.leave(shard, parity);
        }
    }
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        self.epochs.abandon(std::mem::take(&mut self.pins));
    }
}

const fn parity_of(epoch: u64) -> usize {
    if epoch.is_multiple_of(2) { 0 } else { 1 }
}
