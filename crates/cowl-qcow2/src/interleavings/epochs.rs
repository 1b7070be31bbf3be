//! Epochs of requests: what was unlinked stays what it was until nobody is on the way to it.

use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;

use shuttle::future::{block_on, yield_now};
use shuttle::sync::atomic::{AtomicBool, AtomicUsize};

use crate::interleavings::{drop_after, explore, threads};
use crate::request::Epochs;

// Catches: `advance` that does not look at the counters of the epoch before, `is_over` one epoch
// early.
#[test]
fn nothing_is_over_while_a_request_that_may_have_seen_it_is_in_flight() {
    explore(600, || {
        let epochs = Epochs::new();
        // The cluster that the mapping names, and those that were given to somebody else.
        let (mapping, reused) = (AtomicUsize::new(0), Mutex::new([false; 8]));
        threads(4, |thread| match thread {
            0 => {
                for cluster in 0..2 {
                    mapping.store(cluster + 1, SeqCst);
                    let unlinked = epochs.of_unlink();
                    for _ in 0..3 {
                        epochs.advance();
                        if epochs.is_over(unlinked) {
                            reused.lock().unwrap()[cluster] = true;
                        }
                    }
                }
            }
            // Somebody else's sweep.
            1 => (0..3).for_each(|_| epochs.advance()),
            _ => {
                for _ in 0..2 {
                    let pin = epochs.enter();
                    let cluster = mapping.load(SeqCst);
                    (0..3).for_each(|_| shuttle::thread::yield_now());
                    assert!(!reused.lock().unwrap()[cluster], "in use and reused");
                    drop(pin);
                }
            }
        });
        // Once nobody is left, everything is over.
        let last = epochs.of_unlink();
        epochs.advance();
        assert!(epochs.is_over(last));
    });
}

// Catches: `drain` that listens only after it has looked, `leave` that reads `is_awaited` before it
// takes its count away, a drain that is done and says for all of them that nobody waits (all
// deadlock).
#[test]
fn a_drain_ends_when_the_requests_before_it_are_done() {
    explore(400, || {
        let epochs = Epochs::new();
        threads(4, |thread| {
            if thread < 2 {
                let pin = epochs.enter();
                shuttle::thread::yield_now();
                drop(pin);
            } else {
                assert!(block_on(epochs.drain(epochs.now())));
            }
        });
    });
    explore(600, || {
        let epochs = Epochs::new();
        let pin = Mutex::new(Some(epochs.enter()));
        threads(2, |thread| match thread {
            0 => drop(pin.lock().unwrap().take()),
            _ => assert!(block_on(epochs.drain(epochs.now()))),
        });
    });
}

// Catches: `drain` that returns with the first request that leaves.
#[test]
fn a_drain_waits_for_every_request_before_it() {
    explore(300, || {
        let epochs = Epochs::new();
        let left = AtomicUsize::new(0);
        let (first, second) = (epochs.enter(), epochs.enter());
        let (pins, drains) = (Mutex::new(vec![first, second]), AtomicBool::new(false));
        threads(3, |thread| {
            if thread == 2 {
                assert!(block_on(epochs.drain(epochs.now())));
                drains.store(true, SeqCst);
                assert_eq!(left.load(SeqCst), 2, "a request was still in flight");
                return;
            }
            let pin = pins.lock().unwrap().pop();
            shuttle::thread::yield_now();
            left.fetch_add(1, SeqCst);
            drop(pin);
        });
        assert!(drains.load(SeqCst));
    });
}

// Catches: `Pin::drop` that leaves although a change is under way; `take_abandoned` whose result,
// dropped, releases the pins.
#[test]
fn a_dropped_request_counts_until_the_storage_has_settled() {
    explore(300, || {
        let epochs = Epochs::new();
        let has_settled = AtomicBool::new(false);
        // The host is still at work when the request is dropped.
        let request = async {
            let pin = epochs.enter();
            pin.while_changing(core::future::pending::<()>()).await;
        };
        assert!(!drop_after(1, request));
        let dropped_in = epochs.of_unlink();
        threads(3, |thread| match thread {
            0 => {
                // A settle that is dropped itself gives the pins back to the next.
                let dropped = async {
                    let _abandoned = epochs.take_abandoned();
                    yield_now().await;
                };
                drop_after(1, dropped);
                while epochs.has_abandoned() {
                    let abandoned = epochs.take_abandoned();
                    has_settled.store(true, SeqCst);
                    abandoned.release();
                    // What nobody abandoned any more is not asked for again.
                    if !epochs.has_abandoned() {
                        break;
                    }
                }
            }
            1 => {
                let request = async {
                    let pin = epochs.enter();
                    pin.while_changing(yield_now()).await;
                };
                block_on(request);
            }
            _ => {
                epochs.advance();
                let is_over = epochs.is_over(dropped_in);
                assert!(!is_over || has_settled.load(SeqCst), "reused below the host's feet");
            }
        });
    });
}
