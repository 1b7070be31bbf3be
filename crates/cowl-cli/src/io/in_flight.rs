//! Requests that run while the next commands are read.
//!
//! Each runs on a thread of its own as long as there are few; with more, they wait in a queue.
//! What they have to say is printed between commands by the thread that reads those, in the order
//! in which they end.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// More requests than this are not carried out at once: a thread costs memory.
const THREADS_MAX: usize = 64;

type Job = Box<dyn FnOnce() -> String + Send>;

/// All requests that were started and not yet told of.
pub(super) struct InFlight {
    queue: Sender<Job>,
    waiting: Arc<Mutex<Receiver<Job>>>,
    answer: Sender<String>,
    answers: Receiver<String>,
    pending: usize,
    threads: usize,
}

impl InFlight {
    pub(super) fn new() -> Self {
        let (queue, waiting) = channel();
        let (answer, answers) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        Self { queue, waiting, answer, answers, pending: 0, threads: 0 }
    }

    /// Starts a request; what it returns is what it has to say.
    pub(super) fn start(&mut self, job: impl FnOnce() -> String + Send + 'static) {
        self.pending += 1;
        if self.threads < self.pending.min(THREADS_MAX) && self.add_thread() {
            self.threads += 1;
        }
        if self.threads == 0 {
            // The host has no thread to give: better late than never.
            self.answer.send(job()).expect("the receiver is ours");
        } else {
            self.queue.send(Box::new(job)).expect("the receiver is ours");
        }
    }

    /// Takes what the requests that have ended so far have to say.
    pub(super) fn take_finished(&mut self) -> String {
        let finished: Vec<String> = self.answers.try_iter().collect();
        self.pending -= finished.len();
        finished.concat()
    }

    /// Waits for all requests.
    pub(super) fn take_all(&mut self) -> String {
        let mut text = String::new();
        while 0 < self.pending {
            text.push_str(&self.answers.recv().expect("a sender is ours"));
            self.pending -= 1;
        }
        text
    }

    fn add_thread(&self) -> bool {
        let (waiting, answer) = (Arc::clone(&self.waiting), self.answer.clone());
        let serve = move || {
            loop {
                let job = waiting.lock().unwrap_or_else(PoisonError::into_inner).recv();
                let Ok(job) = job else { break };
                // Answers even when the request panics: somebody waits for it.
                let mut last = Answer { to: &answer, text: String::new() };
                last.text = job();
            }
        };
        std::thread::Builder::new().name("cowl-io".to_owned()).spawn(serve).is_ok()
    }
}

/// Sends its text when it goes.
struct Answer<'a> {
    to: &'a Sender<String>,
    text: String,
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        // Nobody listens any more when the program ends.
        self.to.send(std::mem::take(&mut self.text)).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::InFlight;
    use std::sync::{Arc, Barrier};

    #[test]
    fn requests_run_at_the_same_time() {
        let mut in_flight = InFlight::new();
        let barrier = Arc::new(Barrier::new(8));
        for _ in 0..8 {
            let barrier = Arc::clone(&barrier);
            in_flight.start(move || {
                // Returns only when all eight are here.
                barrier.wait();
                "x".into()
            });
        }
        assert_eq!(in_flight.take_all(), "xxxxxxxx");
        assert_eq!(in_flight.take_all(), "");
    }

    #[test]
    fn more_requests_than_threads_wait_their_turn() {
        let mut in_flight = InFlight::new();
        for _ in 0..300 {
            in_flight.start(|| "x".into());
        }
        let early = in_flight.take_finished();
        assert_eq!(early.len() + in_flight.take_all().len(), 300);
    }
}
