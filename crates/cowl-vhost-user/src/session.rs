//! What a front-end has set up so far, and the queues that follow from it.
//!
//! A queue runs when everything it needs is there: memory, addresses, a kick, and where the
//! protocol features are in use, permission. Whatever changes about it while it runs brings it to
//! rest first (all that was taken is answered), then it goes on with the new facts.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};

use cowl_block::BlockDevice;
use futures_channel::oneshot;
use vhost::vhost_user::{Error, Result};

use crate::config;
use crate::export::Served;
use crate::inflight::{Inflight, Track};
use crate::memory::{Memory, Region};
use crate::notifier::Notifier;
use crate::queue::{Assignment, ContextParts};
use crate::ring::{Layout, Ring};
use crate::server::Shared;

/// One front-end.
pub(crate) struct Session<E> {
    shared: Arc<Shared<E>>,
    pub(crate) served: Arc<Served<E>>,
    pub(crate) features: u64,
    memory: Option<Arc<Memory>>,
    queues: Vec<Queue>,
    inflight: Option<Arc<Inflight>>,
    /// What the guest chose; it counts only where the guest knows how to flush.
    pub(crate) writeback_chosen: bool,
    writeback: Arc<AtomicBool>,
}

/// The rings of a queue as the front-end names them: by its own addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Addresses {
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// How a queue learns that something is available.
pub(crate) enum Kick {
    /// Not said yet: the queue is not started.
    Unknown,
    /// Not at all.
    Never,
    Counter(File),
}

/// What is known about a queue.
pub(crate) struct Queue {
    pub(crate) size: u16,
    pub(crate) addresses: Option<Addresses>,
    pub(crate) base: u16,
    pub(crate) kick: Kick,
    pub(crate) call: Arc<Notifier>,
    pub(crate) error: Arc<Notifier>,
    pub(crate) enabled: bool,
    running: Option<Running>,
}

/// A queue that a worker has.
struct Running {
    /// Dropped: take nothing more.
    stop: Option<oneshot::Sender<()>>,
    /// Where the queue stood in the end.
    ended: mpsc::Receiver<u16>,
}

impl Queue {
    fn new() -> Self {
        Self {
            size: 0,
            addresses: None,
            base: 0,
            kick: Kick::Unknown,
            call: Arc::default(),
            error: Arc::default(),
            enabled: false,
            running: None,
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Takes nothing more.
    fn begin_rest(&mut self) {
        if let Some(running) = &mut self.running {
            running.stop = None;
        }
    }

    /// Takes nothing more and waits until all that was taken is answered.
    fn rest(&mut self) -> Result<()> {
        self.begin_rest();
        let Some(running) = self.running.take() else { return Ok(()) };
        // A worker that went away took what was in flight with it: nobody knows where it stood.
        self.base = running.ended.recv().map_err(|_| Error::BackendInternalError)?;
        Ok(())
    }
}

impl<E: BlockDevice + 'static> Session<E> {
    pub(crate) fn new(shared: Arc<Shared<E>>, served: Arc<Served<E>>) -> Self {
        let count = served.export.queues_max;
        Self {
            shared,
            served,
            features: 0,
            memory: None,
            queues: (0..count).map(|_| Queue::new()).collect(),
            inflight: None,
            writeback_chosen: true,
            writeback: Arc::new(AtomicBool::new(true)),
        }
    }

    /// Something about a queue: it rests, is changed, and goes on if it can.
    pub(crate) fn change_queue(
        &mut self,
        index: usize,
        change: impl FnOnce(&mut Queue) -> Result<()>,
    ) -> Result<()> {
        let queue = self.queues.get_mut(index).ok_or(Error::InvalidParam)?;
        queue.rest()?;
        change(queue)?;
        self.start_if_ready(index)
    }

    /// Something about a queue that takes effect while it runs.
    pub(crate) fn queue(&self, index: usize) -> Result<&Queue> {
        self.queues.get(index).ok_or(Error::InvalidParam)
    }

    /// Something that concerns all queues.
    pub(crate) fn change_all(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<()>,
    ) -> Result<()> {
        self.rest_all()?;
        change(self)?;
        self.apply_writeback();
        (0..self.queues.len()).try_for_each(|index| self.start_if_ready(index))
    }

    fn rest_all(&mut self) -> Result<()> {
        // All are told before the first is waited for: they come to rest at the same time.
        self.queues.iter_mut().for_each(Queue::begin_rest);
        let rested: Vec<_> = self.queues.iter_mut().map(Queue::rest).collect();
        rested.into_iter().collect()
    }

    pub(crate) fn regions(&self) -> Vec<Arc<Region>> {
        self.memory.as_ref().map_or_else(Vec::new, |memory| memory.regions().to_vec())
    }

    pub(crate) fn set_memory(&mut self, regions: Vec<Arc<Region>>) -> Result<()> {
        let memory = Memory::new(regions)?;
        self.change_all(|session| {
            session.memory = Some(memory);
            Ok(())
        })
    }

    /// Takes what the guest chose about the write cache, here and for the next back-end.
    pub(crate) fn choose_writeback(&mut self, writeback: bool) {
        self.writeback_chosen = writeback;
        if let Some(inflight) = &self.inflight {
            inflight.set_writeback(writeback);
        }
        self.apply_writeback();
    }

    pub(crate) fn set_inflight(&mut self, inflight: Arc<Inflight>) -> Result<()> {
        self.change_all(|session| {
            let chosen = inflight.writeback().unwrap_or(session.writeback_chosen);
            session.inflight = Some(inflight);
            session.choose_writeback(chosen);
            Ok(())
        })
    }

    /// Whether a write may stay in a cache until the guest flushes. A guest that cannot flush never
    /// could say when it matters.
    fn apply_writeback(&self) {
        let can_flush = self.features & config::FLUSH != 0;
        self.writeback.store(self.writeback_chosen && can_flush, Ordering::Relaxed);
    }

    fn start_if_ready(&mut self, index: usize) -> Result<()> {
        let needs_permission = self.features & config::PROTOCOL_FEATURES != 0;
        let queue = &mut self.queues[index];
        let Some(memory) = &self.memory else { return Ok(()) };
        let Some(addresses) = queue.addresses else { return Ok(()) };
        if queue.running.is_some() || (needs_permission && !queue.enabled) {
            return Ok(());
        }
        let kick = match &queue.kick {
            Kick::Unknown => return Ok(()),
            Kick::Never => None,
            Kick::Counter(file) => Some(file.try_clone().map_err(Error::ReqHandlerError)?),
        };
        let place = |user| memory.find_user(user).ok_or(Error::InvalidParam);
        let layout = Layout {
            size: queue.size,
            descriptors: place(addresses.descriptors)?,
            available: place(addresses.available)?,
            used: place(addresses.used)?,
            base: queue.base,
            event_index: self.features & config::EVENT_INDEX != 0,
        };
        let number = u16::try_from(index).map_err(|_| Error::InvalidParam)?;
        let track = match &self.inflight {
            Some(inflight) => {
                Some(Track::new(inflight, number, queue.size).ok_or(Error::InvalidParam)?)
            }
            None => None,
        };
        let ring = Ring::new(Arc::clone(memory), layout, track, Arc::clone(&queue.call));
        let ring = ring.ok_or(Error::InvalidParam)?;
        let (stop, stopped) = oneshot::channel();
        let (ending, ended) = mpsc::channel();
        self.shared.assign(|worker| Assignment {
            ring,
            context: ContextParts {
                served: Arc::clone(&self.served),
                writeback: Arc::clone(&self.writeback),
            },
            kick,
            error: Arc::clone(&queue.error),
            stop: stopped,
            ended: ending,
            counts: Arc::clone(worker.counts()),
        });
        queue.running = Some(Running { stop: Some(stop), ended });
        Ok(())
    }

    /// Ends a queue; returns where it stood. It starts again with the next kick that is set.
    pub(crate) fn end_queue(&mut self, index: usize) -> Result<u16> {
        let queue = self.queues.get_mut(index).ok_or(Error::InvalidParam)?;
        queue.rest()?;
        queue.kick = Kick::Unknown;
        Ok(queue.base)
    }

    /// Ends all queues, and asks for each to be permitted anew.
    pub(crate) fn end_all(&mut self) -> Result<()> {
        self.rest_all()?;
        for queue in &mut self.queues {
            queue.kick = Kick::Unknown;
            queue.enabled = false;
        }
        Ok(())
    }
}

impl<E> Drop for Session<E> {
    fn drop(&mut self) {
        self.queues.iter_mut().for_each(Queue::begin_rest);
        for queue in &mut self.queues {
            // Its worker is gone too.
            let _unknown = queue.rest();
        }
    }
}
