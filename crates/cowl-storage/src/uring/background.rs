//! Handing new bytes to the disk while the ring's thread does something else.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_lock::RwLock;

use crate::file::OpenFile;

/// The write-back of one file: one range at a time, on a worker thread of the runtime.
#[derive(Default)]
pub(super) struct Background {
    queue: Arc<Queue>,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    /// Held for reading by the worker while it uses the file.
    in_use: RwLock<()>,
}

#[derive(Default)]
struct State {
    has_worker: bool,
    /// Ranges come one behind the other, so all that wait are one.
    waiting: Option<Range<u64>>,
}

impl Background {
    /// Hands on `range`, behind those that are under way. Without a runtime nothing happens.
    #[cold]
    pub(super) fn start(&self, file: &Arc<OpenFile>, range: Range<u64>) {
        if compio::runtime::Runtime::try_with_current(|_| ()).is_err() {
            return;
        }
        let mut state = self.queue.state();
        state.waiting = match state.waiting.take() {
            Some(waiting) => Some(waiting.start.min(range.start)..waiting.end.max(range.end)),
            None => Some(range),
        };
        if std::mem::replace(&mut state.has_worker, true) {
            return;
        }
        drop(state);
        // A file that is closed before the worker comes to it is none of its business any more.
        let (file, queue) = (Arc::downgrade(file), Arc::clone(&self.queue));
        let turn = Turn(queue);
        let work = move || {
            let _until_done = turn.0.in_use.read_blocking();
            let Some(file) = file.upgrade() else { return };
            while let Some(range) = turn.0.next() {
                file.start_writeback(&range);
            }
        };
        compio::runtime::spawn_blocking(work).detach();
    }
}

/// The one worker, from when it was asked for: a runtime that ends may never run it.
struct Turn(Arc<Queue>);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state().has_worker = false;
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next range for the worker. What comes after the last one waits for the next worker.
    fn next(&self) -> Option<Range<u64>> {
        self.state().waiting.take()
    }
}

impl Drop for Background {
    /// Whoever closes a file may open it at once, and find nobody else's lock on it.
    fn drop(&mut self) {
        self.queue.state().waiting = None;
        drop(self.queue.in_use.write_blocking());
    }
}
