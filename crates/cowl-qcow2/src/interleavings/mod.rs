//! Models of what threads may do to each other in the engine, run by `cargo xtask interleavings`.
//!
//! A model is a few threads on the real code. A scheduler decides at each atomic, lock and wait who
//! goes on: half of the rounds by chance, half with few changes of priority (PCT), which finds what
//! needs few but far-fetched switches. The same seed gives the same rounds. A wakeup that gets lost
//! is a deadlock, which the scheduler reports.
//!
//! Each model says in a comment which mutation of the engine it was seen to catch. What is not
//! modelled: docs/internals/interleavings.md.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test fails by panic, and says why")]

mod cache;
mod claims;
mod commit;
mod disk;
mod epochs;
mod image;
mod reuse;
mod slices;
mod stage;
mod tables;

use core::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

/// Rounds of a model by one scheduler, unless the environment says otherwise.
const ROUNDS: usize = 300;

/// Changes of priority in one round: few find what is far-fetched, more what takes many steps.
const PCT_DEPTHS: [usize; 2] = [3, 6];

/// Runs a model in many orders. `scale` is how much of the rounds it gets, in percent: a whole
/// image takes longer than a lock.
pub(crate) fn explore(scale: usize, model: impl Fn() + Send + Sync + 'static) {
    let model = Arc::new(model);
    let number = |name| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let rounds: usize = number("COWL_INTERLEAVINGS").map_or(ROUNDS, |rounds: u64| rounds as usize);
    let seed = number("COWL_INTERLEAVINGS_SEED").unwrap_or(1);
    let rounds = (rounds * scale / 100).max(1);
    let _replay = Replay { seed };
    run(RandomScheduler::new_from_seed(seed, rounds), &model);
    for depth in PCT_DEPTHS {
        run(PctScheduler::new_from_seed(seed, depth, rounds.div_ceil(2)), &model);
    }
}

/// Runs something once, in one order, to make what models start with.
pub(crate) fn once(make: impl Fn() + Send + Sync + 'static) {
    run(RandomScheduler::new_from_seed(1, 1), &Arc::new(make));
}

fn run<F: Fn() + Send + Sync + 'static>(scheduler: impl Scheduler + 'static, model: &Arc<F>) {
    let model = Arc::clone(model);
    let mut config = Config::new();
    config.stack_size = 1 << 20;
    config.silence_warnings = true;
    config.failure_persistence = shuttle::FailurePersistence::None;
    config.ungraceful_shutdown_config.immediately_return_on_panic = true;
    Runner::new(scheduler, config).run(move || model());
}

/// Says how to see a failure again.
struct Replay {
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay: COWL_INTERLEAVINGS_SEED={} with as many rounds", self.seed);
        }
    }
}

/// Runs one function on several threads of the model, each with its number, and waits for all.
pub(crate) fn threads(count: u64, run: impl Fn(u64) + Send + Sync) {
    shuttle::thread::scope(|scope| {
        for thread in 0..count {
            let run = &run;
            scope.spawn(move || run(thread));
        }
    });
}

/// Polls a future so many times at most, and drops it. Whether it was done.
pub(crate) fn drop_after(polls: usize, future: impl Future) -> bool {
    let mut future = pin!(future);
    let mut context = Context::from_waker(Waker::noop());
    (0..polls).any(|_| {
        let is_done = matches!(future.as_mut().poll(&mut context), Poll::Ready(_));
        shuttle::thread::yield_now();
        is_done
    })
}
