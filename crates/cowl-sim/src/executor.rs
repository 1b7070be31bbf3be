//! Runs tasks on one thread, in an order that a seed decides.
//!
//! A step polls one task that was woken, or lets the simulated host end one I/O or one offloaded
//! job. There is no time: when nothing can go on and a task is not done, it is stuck for ever.

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use crate::{Random, SimWorld};

/// A task: it leaves its results with whoever made it.
pub type Task = Pin<Box<dyn Future<Output = ()>>>;

/// What a step of [`Executor::step`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A task was polled.
    Polled,
    /// The host ended an I/O, or part of one.
    Host,
    /// Every task is done; I/O of dropped requests may still be under way.
    Done,
    /// Tasks are left and nothing will ever wake them.
    Stuck,
}

/// Tasks and who of them was woken.
pub struct Executor {
    tasks: Vec<Option<Slot>>,
    woken: Arc<Woken>,
    random: Random,
    /// How often the host is preferred to a task, in percent.
    host_percent: u64,
}

struct Slot {
    task: Task,
    waker: Waker,
    /// Polls left before the task is dropped.
    polls_left: Option<u32>,
}

#[derive(Default)]
struct Woken {
    tasks: Mutex<BTreeSet<usize>>,
}

impl Woken {
    fn with<T>(&self, run: impl FnOnce(&mut BTreeSet<usize>) -> T) -> T {
        run(&mut self.tasks.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

struct TaskWaker {
    woken: Arc<Woken>,
    task: usize,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.with(|tasks| tasks.insert(self.task));
    }
}

impl Executor {
    /// No tasks yet. A high `host_percent` keeps few I/Os in flight, a low one many.
    #[must_use]
    pub fn new(random: Random, host_percent: u64) -> Self {
        Self { tasks: Vec::new(), woken: Arc::default(), random, host_percent }
    }

    /// Adds a task.
    pub fn spawn(&mut self, task: Task) {
        self.add(task, None);
    }

    /// Adds a task that is dropped instead of being polled once more, after `polls` polls.
    pub fn spawn_dropping(&mut self, task: Task, polls: u32) {
        self.add(task, Some(polls));
    }

    fn add(&mut self, task: Task, polls_left: Option<u32>) {
        let number = self.tasks.len();
        let waker = Waker::from(Arc::new(TaskWaker { woken: self.woken.clone(), task: number }));
        self.tasks.push(Some(Slot { task, waker, polls_left }));
        self.woken.with(|tasks| tasks.insert(number));
    }

    /// Does one thing of those that can be done.
    pub fn step(&mut self, world: &SimWorld) -> Step {
        let ready: Vec<usize> = self.woken.with(|tasks| tasks.iter().copied().collect());
        let host_can = world.can_step();
        if self.tasks.iter().all(Option::is_none) {
            return Step::Done;
        }
        if host_can && (ready.is_empty() || self.random.chance(self.host_percent)) {
            world.step();
            return Step::Host;
        }
        if ready.is_empty() {
            return Step::Stuck;
        }
        let number = self.random.pick(&ready);
        self.woken.with(|tasks| tasks.remove(&number));
        self.poll(number);
        Step::Polled
    }

    fn poll(&mut self, number: usize) {
        let Some(slot) = &mut self.tasks[number] else { return };
        if slot.polls_left == Some(0) {
            self.tasks[number] = None;
            return;
        }
        slot.polls_left = slot.polls_left.map(|left| left - 1);
        let done = slot.task.as_mut().poll(&mut Context::from_waker(&slot.waker));
        if done.is_ready() {
            self.tasks[number] = None;
        }
    }

    /// Steps until every task is done; whether they all were.
    pub fn run(&mut self, world: &SimWorld) -> bool {
        loop {
            match self.step(world) {
                Step::Polled | Step::Host => {}
                Step::Done => return true,
                Step::Stuck => return false,
            }
        }
    }
}

/// Runs one future to its end on storage that answers at once; `None` when it is stuck.
pub fn run_calm<T>(future: impl Future<Output = T>) -> Option<T> {
    /// Polls after which a future that wakes only itself counts as stuck.
    const POLLS_MAX: u32 = 10_000_000;
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::new(TaskWaker { woken: woken.clone(), task: 0 }));
    let mut future = std::pin::pin!(future);
    for _ in 0..POLLS_MAX {
        if let Poll::Ready(value) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(value);
        }
        if !woken.with(|tasks| tasks.remove(&0)) {
            return None;
        }
    }
    None
}

/// A request that is dropped instead of being polled once more, after a number of polls.
pub struct DropAfter<F> {
    request: Option<Pin<Box<F>>>,
    polls_left: u32,
    turns_left: u32,
}

impl<F: Future> DropAfter<F> {
    /// `request`, to be polled at most `polls` times.
    pub fn new(request: F, polls: u32) -> Self {
        Self { request: Some(Box::pin(request)), polls_left: polls, turns_left: 0 }
    }

    /// The same, but dropped only when its task had so many more turns: what others do meanwhile
    /// finds the request waiting.
    #[must_use]
    pub fn late(self, turns: u32) -> Self {
        Self { turns_left: turns, ..self }
    }
}

impl<F> DropAfter<F> {
    fn drop_now_or_later<T>(&mut self, context: &Context<'_>) -> Poll<Option<T>> {
        if self.turns_left == 0 {
            self.request = None;
            return Poll::Ready(None);
        }
        self.turns_left -= 1;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<F: Future> Future for DropAfter<F> {
    /// `None`: it was dropped.
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls_left == 0 {
            return self.drop_now_or_later(context);
        }
        self.polls_left -= 1;
        let request = self.request.as_mut().expect("polled after it was done");
        match request.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            // Nobody may ever wake it again; it is dropped here, at this await point.
            Poll::Pending if self.polls_left == 0 => self.drop_now_or_later(context),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Lets other tasks run once.
#[derive(Debug, Default)]
pub struct Yield {
    done: bool,
}

impl Future for Yield {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.done {
            return Poll::Ready(());
        }
        self.done = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}
