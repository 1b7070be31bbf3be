//! The cache itself: loads, waiters, eviction.

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};

use shuttle::future::{block_on, yield_now};
use shuttle::sync::atomic::{AtomicBool, AtomicUsize};

use crate::interleavings::{drop_after, explore, threads};
use crate::sync::Event;
use crate::{AsyncLruCache, AsyncLruCacheBackend, Charge, Error};

/// A value that may change, as a table may.
struct Value {
    key: u64,
    life: shuttle::sync::Mutex<Life>,
    charge: Charge,
}

#[derive(Default)]
struct Life {
    changes: u64,
    has_left: bool,
}

impl Value {
    /// Changes it, unless it has left the cache.
    fn change(&self) -> bool {
        let mut life = self.life.lock().unwrap();
        if !life.has_left {
            life.changes += 1;
        }
        !life.has_left
    }
}

#[derive(Default)]
struct Loader {
    loads: AtomicUsize,
    /// Loads that fail, the first ones.
    failures: usize,
    /// The load of this key ends when it is told to.
    gated: Option<u64>,
    is_open: AtomicBool,
    gate: Event,
}

impl AsyncLruCacheBackend for Loader {
    type Key = u64;
    type Value = Value;

    async fn load(&self, key: u64, charge: Charge) -> Result<Value, Error> {
        let load = self.loads.fetch_add(1, SeqCst);
        yield_now().await;
        while self.gated == Some(key) && !self.is_open.load(SeqCst) {
            let opened = self.gate.listen();
            if !self.is_open.load(SeqCst) {
                opened.await;
            }
        }
        if load < self.failures {
            return Err(Error::OffloadGone);
        }
        charge.add(10);
        Ok(Value { key, life: shuttle::sync::Mutex::default(), charge })
    }

    fn charge(value: &Value) -> &Charge {
        &value.charge
    }

    fn retire(value: &Value) -> bool {
        let mut life = value.life.lock().unwrap();
        life.has_left |= life.changes == 0;
        life.has_left
    }
}

type Cache = AsyncLruCache<u64, Value, Loader>;

fn get(cache: &Cache, key: u64) -> Result<Arc<Value>, Error> {
    block_on(cache.get_or_insert(key))
}

// Catches: an entry that is put into the map without a look at what is there.
#[test]
fn everybody_who_asks_shares_one_load() {
    explore(300, || {
        let cache = Cache::new(Loader::default(), 1000);
        let values = Mutex::new(Vec::new());
        threads(3, |_| {
            let value = get(&cache, 4).unwrap();
            values.lock().unwrap().push(value);
        });
        let values = values.into_inner().unwrap();
        assert!(values.iter().all(|value| Arc::ptr_eq(value, &values[0])));
        assert_eq!(cache.backend().loads.load(SeqCst), 1);
    });
}

// A hit that waited for the load would be a deadlock here.
#[test]
fn hits_go_on_while_another_key_is_loaded() {
    explore(200, || {
        let cache = Cache::new(Loader { gated: Some(1), ..Loader::default() }, 1000);
        get(&cache, 0).unwrap();
        threads(2, |thread| {
            if thread == 0 {
                assert_eq!(get(&cache, 1).unwrap().key, 1);
                return;
            }
            assert_eq!(cache.peek(0, |value| value.key), Some(0));
            assert_eq!(get(&cache, 0).unwrap().key, 0);
            // Only now may the load end: had the hits waited for it, nobody would go on.
            cache.backend().is_open.store(true, SeqCst);
            cache.backend().gate.notify(usize::MAX);
        });
    });
}

// Catches: a loader that fails and takes the entry out although a waiter has loaded it meanwhile,
// and a waiter that gives out a value from an entry that is gone (two values for a key).
#[test]
fn a_load_that_failed_or_was_dropped_is_tried_again_and_there_is_one_value() {
    explore(600, || {
        let cache = Cache::new(Loader { failures: 1, ..Loader::default() }, 1000);
        let values = Mutex::new(Vec::new());
        let failures = AtomicUsize::new(0);
        threads(4, |thread| {
            if thread == 0 {
                drop_after(1, cache.get_or_insert(4));
                return;
            }
            match get(&cache, 4) {
                Ok(value) => values.lock().unwrap().push(value),
                Err(_) => {
                    failures.fetch_add(1, SeqCst);
                }
            }
        });
        assert!(failures.load(SeqCst) <= 1, "a failed load is its loader's trouble");
        let values = values.into_inner().unwrap();
        let current = get(&cache, 4).unwrap();
        assert!(values.iter().all(|value| Arc::ptr_eq(value, &current)), "two values for a key");
    });
}

// Catches: a failed load that leaves its entry behind.
#[test]
fn a_load_that_nobody_finishes_leaves_nothing_behind() {
    explore(200, || {
        let cache = Cache::new(Loader { failures: 1, ..Loader::default() }, 1000);
        threads(3, |thread| {
            if thread == 0 {
                get(&cache, 4).ok();
            } else {
                drop_after(1, cache.get_or_insert(4));
            }
        });
        let has_value = cache.peek(4, |_| ()).is_some();
        assert!(has_value || cache.is_empty(), "an entry without a value");
    });
}

// Catches: an eviction that does not ask `retire`, and one that takes out whatever is there by
// then.
#[test]
fn changes_are_never_evicted_and_what_was_evicted_takes_none() {
    explore(600, || {
        // Room for one value: everything else presses it out.
        let cache = Cache::new(Loader::default(), 10);
        threads(3, |thread| {
            for step in 0..2 {
                if thread == 2 {
                    get(&cache, 10 + step).unwrap();
                    continue;
                }
                loop {
                    let value = get(&cache, 0).unwrap();
                    if value.change() {
                        break;
                    }
                    // It has just left: the next one is another.
                    cache.remove_retired(0, &value);
                }
            }
        });
        let changes = get(&cache, 0).unwrap().life.lock().unwrap().changes;
        assert_eq!(changes, 4, "a change went with a value that left");
    });
}

// Catches: `evict` that does not look again after it has let the lock go.
#[test]
fn the_limit_holds_whoever_evicts() {
    explore(300, || {
        let cache = Cache::new(Loader::default(), 30);
        threads(3, |thread| {
            for key in 0..3 {
                assert_eq!(get(&cache, 10 * thread + key).unwrap().key, 10 * thread + key);
            }
        });
        assert!(cache.weight() <= 30, "{}", cache.weight());
    });
}
