//! What threads may see of each other's stores: small tests of the pieces without locks.
//!
//! The models in `interleavings` run in sequentially consistent orders. Under Miri a load may give
//! any value that the memory model allows, so these find the `Release` that is missing; see
//! `cargo xtask sanitize miri`. Without Miri they are what this processor makes of them, which is
//! little.
//!
//! Each test says in a comment what it is against; "catches" stands for what it was seen to find.

use core::future::poll_fn;
use core::pin::pin;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::thread;

use cowl_format::{Geometry, HostCluster, L2Entry};
use cowl_storage::IoBuffer;
use pollster::block_on;

use crate::cache::L2Slice;
use crate::flush::After;
use crate::request::Epochs;
use crate::{AsyncLruCache, AsyncLruCacheBackend, Charge, Error, RefBlock};

/// Rounds of a test: Miri runs each test with many seeds, and is slow.
const ROUNDS: usize = if cfg!(miri) { 10 } else { 300 };

fn rounds(round: impl Fn()) {
    (0..ROUNDS).for_each(|_| round());
}

fn both(value: u64) -> L2Entry {
    L2Entry { raw: value, bitmap: value }
}

// Against: the sequence lock of an extended entry without either of its fences, or with a last
// store of the version that is relaxed.
#[test]
fn an_extended_entry_is_never_torn() {
    rounds(|| {
        let slice = L2Slice::new(&[0; 32], 2, 0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1..4 {
                    slice.set(1, both(value), After::NOTHING, || true).unwrap();
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut last = 0;
                    for _ in 0..4 {
                        let entry = slice.entry(1).unwrap();
                        assert_eq!(entry.raw, entry.bitmap, "torn");
                        assert!(last <= entry.raw, "an older entry after a newer one");
                        last = entry.raw;
                    }
                });
            }
        });
        assert_eq!(slice.entry(1), Some(both(3)));
    });
}

// Against: a number of even entries that rises again. Its orders alone decide nothing, and Miri
// finds no fault with relaxed ones: it only falls, and each word has an order of its own.
#[test]
fn an_entry_never_goes_back_to_the_sum_it_was() {
    rounds(|| {
        let slice = L2Slice::new(&[0; 32], 1, 0);
        let seen = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for value in 1..3 {
                    slice.set(2, both(value), After::NOTHING, || true).unwrap();
                }
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..3 {
                        let before = seen.load(Acquire);
                        let now = slice.entry(2).unwrap().raw;
                        assert!(before <= now, "older than what somebody else has found");
                        seen.fetch_max(now, Release);
                    }
                });
            }
        });
    });
}

// Against: an entry of one word, or the version of one of two, that is stored or loaded relaxed.
#[test]
fn who_finds_an_entry_sees_what_was_done_before_it_was_set() {
    let uneven: Vec<u8> = [0, 5, 0, 0_u64].into_iter().flat_map(u64::to_be_bytes).collect();
    let zeros = vec![0; 32];
    // The number of even entries tells of a change among them, and of none behind them.
    for (entry_words, bytes, index) in [(1, &zeros, 1), (1, &uneven, 3), (2, &zeros, 1)] {
        rounds(|| {
            let slice = L2Slice::new(bytes, entry_words, 0);
            let before = AtomicU64::new(0);
            thread::scope(|scope| {
                scope.spawn(|| {
                    before.store(1, Relaxed);
                    slice.set(index, both(1), After::NOTHING, || true).unwrap();
                });
                scope.spawn(|| {
                    for _ in 0..3 {
                        if slice.entry(index).unwrap().raw == 1 {
                            assert_eq!(before.load(Relaxed), 1);
                        }
                    }
                });
            });
        });
    }
}

// Against: `made_durable` or `is_durable` with a relaxed order.
#[test]
fn who_finds_a_change_durable_sees_what_made_it_so() {
    let geometry = Geometry::new(9, 4, false).unwrap();
    let charges = Cache::new(Loader::default(), 1 << 20);
    rounds(|| {
        let bytes = IoBuffer::zeroed(geometry.cluster_len());
        let block = RefBlock::new(HostCluster::new(2), bytes, geometry, charges.charge());
        let barriers = [AtomicU64::new(0), AtomicU64::new(0)];
        thread::scope(|scope| {
            scope.spawn(|| {
                barriers[0].store(1, Relaxed);
                block.made_durable(1);
            });
            // The next commit, made by whoever finds the first one done.
            scope.spawn(|| {
                if (0..3).any(|_| block.is_durable(1)) {
                    barriers[1].store(1, Relaxed);
                    block.made_durable(2);
                }
            });
            scope.spawn(|| {
                for _ in 0..3 {
                    for (change, upto) in [(2, 2), (1, 1)] {
                        if block.is_durable(change) {
                            let seen = barriers[..upto].iter().all(|at| at.load(Relaxed) == 1);
                            assert!(seen, "change {change} counts as durable");
                        }
                    }
                }
            });
        });
    });
}

/// A loader whose first loads fail.
#[derive(Default)]
struct Loader {
    loads: AtomicU64,
    failures: u64,
}

/// What it loads: not atomic, so that a value that is seen too early is a data race.
struct Value {
    words: [u64; 4],
    charge: Charge,
}

impl AsyncLruCacheBackend for Loader {
    type Key = u64;
    type Value = Value;

    async fn load(&self, key: u64, charge: Charge) -> Result<Value, Error> {
        let load = self.loads.fetch_add(1, Relaxed);
        yield_once().await;
        if load < self.failures {
            return Err(Error::OffloadGone);
        }
        charge.add(10);
        Ok(Value { words: [key; 4], charge })
    }

    fn charge(value: &Value) -> &Charge {
        &value.charge
    }
}

type Cache = AsyncLruCache<u64, Value, Loader>;

async fn yield_once() {
    let mut is_first = true;
    let once = poll_fn(|context| {
        context.waker().wake_by_ref();
        if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }
    });
    once.await;
}

fn poll_and_drop(future: impl Future) {
    let mut context = Context::from_waker(Waker::noop());
    let _is_ready = pin!(future).poll(&mut context).is_ready();
}

// Against: a fate that is decided in two steps, a load and a store.
#[test]
fn an_entry_whose_loads_fail_or_are_dropped_has_one_fate() {
    rounds(|| {
        let cache = Cache::new(Loader { failures: 1, ..Loader::default() }, 1000);
        let values = Mutex::new(Vec::new());
        thread::scope(|scope| {
            scope.spawn(|| poll_and_drop(cache.get_or_insert(4)));
            for _ in 0..3 {
                scope.spawn(|| {
                    if let Ok(value) = block_on(cache.get_or_insert(4)) {
                        assert_eq!(value.words, [4; 4]);
                        values.lock().unwrap().push(value);
                    }
                });
            }
        });
        let current = block_on(cache.get_or_insert(4)).unwrap();
        let values = values.into_inner().unwrap();
        assert!(values.iter().all(|value| Arc::ptr_eq(value, &current)), "two values for a key");
    });
}

// Against nothing of ours: this is where the map frees what others may still look at.
#[test]
fn an_evicted_value_lives_until_nobody_looks_at_it() {
    rounds(|| {
        let cache = Cache::new(Loader::default(), 10);
        thread::scope(|scope| {
            for thread in 0..3 {
                let cache = &cache;
                scope.spawn(move || {
                    for key in [thread, 3, thread + 1] {
                        let value = block_on(cache.get_or_insert(key)).unwrap();
                        assert_eq!(value.words, [key; 4]);
                        cache.peek(3, |value| assert_eq!(value.words, [3; 4]));
                    }
                });
            }
        });
    });
}

// Catches: an epoch of an unlink that is only loaded. The load may come before the store of the
// entry is seen by a request of the next epoch, which then does not keep its cluster from reuse.
#[test]
fn no_cluster_is_reused_while_a_request_that_found_it_is_in_flight() {
    rounds(|| {
        let epochs = Epochs::new();
        // The cluster that the mapping names, and what is in clusters 0 and 1.
        let (mapping, content) = (AtomicU64::new(0), [AtomicU64::new(0), AtomicU64::new(1)]);
        // It keeps the sweeps of the others from going on too far.
        let earlier = Mutex::new(Some(epochs.enter()));
        let (found, is_done) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                mapping.store(1, Release);
                let unlinked = epochs.of_unlink();
                while found.load(Relaxed) < 2 {
                    thread::yield_now();
                }
                drop(earlier.lock().unwrap().take());
                epochs.advance();
                if epochs.is_over(unlinked) {
                    content[0].store(77, Relaxed);
                }
                is_done.store(true, Relaxed);
            });
            for _ in 0..2 {
                scope.spawn(|| {
                    epochs.advance();
                    let _pin = epochs.enter();
                    let cluster = mapping.load(Acquire);
                    found.fetch_add(1, Relaxed);
                    while !is_done.load(Relaxed) {
                        thread::yield_now();
                    }
                    let index = usize::try_from(cluster).unwrap();
                    assert_eq!(content[index].load(Relaxed), cluster, "reused");
                });
            }
        });
    });
}

// Against: a drain that does not see what the requests it waited for have done.
#[test]
fn who_drained_sees_what_requests_did() {
    rounds(|| {
        let epochs = Epochs::new();
        let done = AtomicU64::new(0);
        let pins = Mutex::new(vec![epochs.enter(), epochs.enter()]);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let pin = pins.lock().unwrap().pop();
                    done.fetch_add(1, Relaxed);
                    drop(pin);
                });
            }
            scope.spawn(|| {
                assert!(block_on(epochs.drain(epochs.now())));
                assert_eq!(done.load(Relaxed), 2);
            });
        });
    });
}
