//! A cache whose misses are loaded by one task while others wait, and whose hits cost next to
//! nothing.
//!
//! Promises:
//!   - A hit takes no lock, allocates nothing, and writes no memory that other cores read, except
//!     the entry's time stamp, once after each miss somewhere in the cache.
//!   - A miss loads outside every lock of the map: one loader for each key, any number of waiters.
//!     Hits go on meanwhile.
//!   - A failed or dropped load leaves no entry behind. When the loader is dropped, a waiter takes
//!     over.
//!   - The limit is in bytes. When it is passed, the entries longest unused go, an eighth of the
//!     limit at a time, so that the search for them is paid once for many misses. A value still in
//!     use elsewhere lives until its last user is done.
//!   - A value with changes that are not written yet is never evicted:
//!     [`AsyncLruCacheBackend::retire`] has the last word. When nothing can go the cache holds more
//!     than its limit; whoever makes changes waits for a write-back, and never fails for lack of
//!     room.
//!
//! Values may grow after they were loaded (an L2 table loads its slices one by one); they report it
//! through their [`Charge`], which takes everything back when the value is dropped.
//!
//! Not here: what a value is and how it is loaded; see [`AsyncLruCacheBackend`].

use core::hash::Hash;
use std::sync::Arc;

use crate::Error;
use crate::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Map, MapGuard, OnceCell, OnceLock, TryMutex, new_map};

/// Loads what a cache keeps.
pub trait AsyncLruCacheBackend: Send + Sync {
    /// What a value is found by.
    type Key: Copy + Eq + Hash + Send + Sync;
    /// What is kept.
    type Value: Send + Sync;

    /// Loads the value for `key`. The value keeps `charge` and adds what it takes to it, now and
    /// whenever it grows.
    fn load(
        &self,
        key: Self::Key,
        charge: Charge,
    ) -> impl Future<Output = Result<Self::Value, Error>>;

    /// The charge that `value` keeps.
    fn charge(value: &Self::Value) -> &Charge;

    /// Whether `value` may leave the cache. A backend whose values change says no to one with
    /// changes that are not written, and refuses changes to one that it let go.
    fn retire(value: &Self::Value) -> bool {
        let _ = value;
        true
    }
}

/// What one value adds to the bytes held by its cache.
#[derive(Debug)]
pub struct Charge {
    total: Arc<AtomicUsize>,
    bytes: AtomicUsize,
}

impl Charge {
    fn new(total: &Arc<AtomicUsize>) -> Self {
        Self { total: Arc::clone(total), bytes: AtomicUsize::new(0) }
    }

    /// Adds `bytes` for as long as the value lives.
    pub fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes(), Ordering::Relaxed);
    }
}

struct Entry<V> {
    value: OnceCell<Arc<V>>,
    last_used: AtomicU64,
    fate: AtomicU8,
}

/// What becomes of an entry without a value is decided once: either one of its loads comes to a
/// good end, or one that did not takes it out of the map. Otherwise a waiter could give out a value
/// from an entry that is on its way out, and the next one to ask would load another.
mod fate {
    pub(super) const OPEN: u8 = 0;
    pub(super) const LOADED: u8 = 1;
    pub(super) const GONE: u8 = 2;
}

impl<V> Entry<V> {
    fn new(value: OnceCell<Arc<V>>, now: u64) -> Self {
        Self { value, last_used: AtomicU64::new(now), fate: AtomicU8::new(fate::OPEN) }
    }

    /// Decides it, if nobody has. Returns whether it is decided so.
    fn decide(&self, fate: u8) -> bool {
        let (order, found) = (Ordering::AcqRel, Ordering::Acquire);
        let decided = self.fate.compare_exchange(fate::OPEN, fate, order, found);
        decided.is_ok() || decided == Err(fate)
    }

    fn holds(&self, value: &Arc<V>) -> bool {
        self.value.get().is_some_and(|own| Arc::ptr_eq(own, value))
    }

    fn is_gone(&self) -> bool {
        self.fate.load(Ordering::Acquire) == fate::GONE
    }
}

/// Why a load has no value.
enum NoValue {
    Failed(Error),
    /// The entry went before the load was done.
    Gone,
}

/// Values that may wait to be freed while an eviction is under way; it frees them all in the end.
const EVICTED_MAX: usize = 1024;

/// The cache; see the file head for what it promises.
pub struct AsyncLruCache<K, V, B> {
    /// Made by the first load: a map takes 16 KiB, and most images of a chain are never asked for a
    /// decoded cluster or a refcount.
    map: OnceLock<Map<K, Arc<Entry<V>>>>,
    backend: B,
    weight: Arc<AtomicUsize>,
    weight_max: usize,
    // Advances with each miss. Hits only read it, so that its line stays shared between cores.
    clock: AtomicU64,
    misses: AtomicU64,
    // One eviction at a time; others go on without waiting.
    eviction: TryMutex<()>,
    /// How often an eviction was asked for.
    evict_calls: AtomicU64,
}

impl<K, V, B> AsyncLruCache<K, V, B>
where
    K: Copy + Eq + Hash + Send + Sync,
    V: Send + Sync,
    B: AsyncLruCacheBackend<Key = K, Value = V>,
{
    /// An empty cache of at most `weight_max` bytes.
    pub fn new(backend: B, weight_max: usize) -> Self {
        Self {
            map: OnceLock::new(),
            backend,
            weight: Arc::new(AtomicUsize::new(0)),
            weight_max,
            clock: AtomicU64::new(1),
            misses: AtomicU64::new(0),
            eviction: TryMutex::new(()),
            evict_calls: AtomicU64::new(0),
        }
    }

    /// What loads the values.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Bytes held now.
    pub fn weight(&self) -> usize {
        self.weight.load(Ordering::Relaxed)
    }

    /// Loads so far.
    pub fn misses(&self) -> u64 {
        self.misses.load(Ordering::Relaxed)
    }

    /// Looks at the value for `key` if it is here, without waiting and without taking a reference.
    pub fn peek<R>(&self, key: K, look: impl FnOnce(&V) -> R) -> Option<R> {
        let map = self.map.get()?.pin();
        let entry = map.get(&key)?;
        let value = entry.value.get()?;
        self.touch(entry);
        Some(look(value))
    }

    /// The value for `key`, loaded if it is not here.
    pub async fn get_or_insert(&self, key: K) -> Result<Arc<V>, Error> {
        loop {
            let entry = self.entry(key);
            if let Some(value) = entry.value.get() {
                self.touch(&entry);
                return Ok(Arc::clone(value));
            }
            let guard = LoadGuard { map: self.map(), key, entry: &entry };
            let load = entry.value.get_or_try_init(|| self.load(key, &entry));
            let value = load.await.map(Arc::clone);
            drop(guard);
            match value {
                Ok(value) => {
                    self.touch(&entry);
                    self.evict();
                    return Ok(value);
                }
                Err(NoValue::Failed(error)) => return Err(error),
                // Somebody else's load of the entry failed or was dropped.
                Err(NoValue::Gone) => {}
            }
        }
    }

    /// A charge for a value that is about to be inserted.
    pub fn charge(&self) -> Charge {
        Charge::new(&self.weight)
    }

    /// Puts a value under `key`, in the place of what was there. Its charge is one of this cache's.
    ///
    /// What was there lives on for those who hold it; no load for `key` may be under way.
    pub fn insert(&self, key: K, value: Arc<V>) {
        let entry = Entry::new(OnceCell::from(value), self.now());
        self.map().pin().insert(key, Arc::new(entry));
        self.grown();
    }

    /// Takes the value for `key` out of the cache, whatever it is.
    pub fn remove(&self, key: K) {
        if let Some(map) = self.map.get() {
            map.pin().remove(&key);
        }
    }

    /// Takes `value` out if it is there although it was let go: whoever let it go is about to, and
    /// nobody has to wait for that.
    pub(crate) fn remove_retired(&self, key: K, value: &Arc<V>) {
        if let Some(map) = self.map.get() {
            map.pin().remove_if(&key, |_, entry: &Arc<Entry<V>>| entry.holds(value)).ok();
        }
    }

    /// Takes out all values that may go.
    pub fn clear(&self) {
        let Some(map) = self.map.get() else { return };
        let guard = map.guard();
        map.retain(|_, entry| entry.value.get().is_none_or(|value| !B::retire(value)), &guard);
        guard.flush();
    }

    /// Called after a value grew: keeps the limit.
    pub fn grown(&self) {
        self.tick();
        self.evict();
    }

    /// Whether there is no entry, loaded or not.
    #[cfg(all(test, feature = "interleavings"))]
    pub(crate) fn is_empty(&self) -> bool {
        self.map.get().is_none_or(|map| map.pin().len() == 0)
    }

    fn map(&self) -> &Map<K, Arc<Entry<V>>> {
        self.map.get_or_init(|| new_map(EVICTED_MAX))
    }

    fn entry(&self, key: K) -> Arc<Entry<V>> {
        let map = self.map().pin();
        let new = || Arc::new(Entry::new(OnceCell::new(), self.now()));
        Arc::clone(map.get_or_insert_with(key, new))
    }

    async fn load(&self, key: K, entry: &Entry<V>) -> Result<Arc<V>, NoValue> {
        if entry.is_gone() {
            return Err(NoValue::Gone);
        }
        self.tick();
        let value = self.backend.load(key, Charge::new(&self.weight)).await;
        let value = Arc::new(value.map_err(NoValue::Failed)?);
        if entry.decide(fate::LOADED) { Ok(value) } else { Err(NoValue::Gone) }
    }

    fn now(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }

    fn tick(&self) {
        self.misses.fetch_add(1, Ordering::Relaxed);
        self.clock.fetch_add(1, Ordering::Relaxed);
    }

    fn touch(&self, entry: &Entry<V>) {
        let now = self.now();
        if entry.last_used.load(Ordering::Relaxed) != now {
            entry.last_used.store(now, Ordering::Relaxed);
        }
    }

    /// Brings the weight below the limit. Whoever finds an eviction under way leaves the work to
    /// it; it looks again after it has let go, so nobody's load is forgotten.
    fn evict(&self) {
        if self.weight() <= self.weight_max {
            return;
        }
        self.evict_calls.fetch_add(1, Ordering::SeqCst);
        while self.weight_max < self.weight() {
            let calls = self.evict_calls.load(Ordering::SeqCst);
            let Some(one_at_a_time) = self.eviction.try_lock() else { return };
            let evicted = self.evict_oldest();
            drop(one_at_a_time);
            // What is still over the limit then is in use elsewhere, and goes with its last user;
            // unless somebody came meanwhile, and was turned away. Read by a change, so that
            // whoever is not seen here comes to an open lock.
            if evicted == 0 && self.evict_calls.fetch_add(0, Ordering::SeqCst) == calls {
                return;
            }
        }
    }

    /// Evicts down to seven eighths of the limit; returns how many went.
    fn evict_oldest(&self) -> usize {
        let map = self.map();
        let guard = map.guard();
        let mut entries: Vec<(u64, K)> = map
            .iter(&guard)
            .filter(|(_, entry)| entry.value.is_initialized())
            .map(|(key, entry)| (entry.last_used.load(Ordering::Relaxed), *key))
            .collect();
        entries.sort_unstable_by_key(|(last_used, _)| *last_used);
        // The newest stays: whoever loaded it is about to use it.
        entries.pop();
        let target = self.weight_max - self.weight_max / 8;
        // Counted here: a value still in use elsewhere is freed later.
        let mut weight = self.weight();
        let mut evicted = 0;
        for (_, key) in entries {
            if weight <= target {
                break;
            }
            let Some(value) = map.get(&key, &guard).and_then(|entry| entry.value.get()) else {
                continue;
            };
            if !B::retire(value) {
                continue;
            }
            weight = weight.saturating_sub(B::charge(value).bytes());
            let is_it = |_: &K, entry: &Arc<Entry<V>>| entry.holds(value);
            // Somebody else may have put another value there: that one stays.
            map.remove_if(&key, is_it, &guard).ok();
            evicted += 1;
        }
        // Freed now and together: evicted values are what the limit is about, and each step of the
        // reclamation interrupts every core.
        guard.flush();
        evicted
    }
}

/// Takes an entry without a value out of the map when its load fails or is dropped.
struct LoadGuard<'a, K: Copy + Eq + Hash, V> {
    map: &'a Map<K, Arc<Entry<V>>>,
    key: K,
    entry: &'a Arc<Entry<V>>,
}

impl<K: Copy + Eq + Hash, V> Drop for LoadGuard<'_, K, V> {
    fn drop(&mut self) {
        if self.entry.value.is_initialized() {
            return;
        }
        if !self.entry.decide(fate::GONE) {
            return;
        }
        let is_ours = |_: &K, entry: &Arc<Entry<V>>| Arc::ptr_eq(entry, self.entry);
        // Gone already, or somebody else's by now: both are fine.
        self.map.pin().remove_if(&self.key, is_ours).ok();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{AsyncLruCache, AsyncLruCacheBackend, Charge};
    use crate::Error;

    struct Doubler {
        loads: AtomicUsize,
        fail_first: usize,
        gate: async_lock::Semaphore,
    }

    impl Doubler {
        fn new(fail_first: usize, permits: usize) -> Self {
            let gate = async_lock::Semaphore::new(permits);
            Self { loads: AtomicUsize::new(0), fail_first, gate }
        }
    }

    impl AsyncLruCacheBackend for Doubler {
        type Key = u64;
        type Value = (u64, Charge);

        async fn load(&self, key: u64, charge: Charge) -> Result<(u64, Charge), Error> {
            let load = self.loads.fetch_add(1, Ordering::SeqCst);
            let _permit = self.gate.acquire().await;
            if load < self.fail_first {
                return Err(Error::OffloadGone);
            }
            charge.add(10);
            Ok((key * 2, charge))
        }

        fn charge(value: &(u64, Charge)) -> &Charge {
            &value.1
        }
    }

    type Cache = AsyncLruCache<u64, (u64, Charge), Doubler>;

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        pollster::block_on(future)
    }

    #[test]
    fn a_hit_loads_nothing() {
        let cache = Cache::new(Doubler::new(0, 1), 1000);
        assert_eq!(cache.peek(4, |value| value.0), None);
        assert_eq!(block_on(cache.get_or_insert(4)).unwrap().0, 8);
        assert_eq!(block_on(cache.get_or_insert(4)).unwrap().0, 8);
        assert_eq!(cache.peek(4, |value| value.0), Some(8));
        assert_eq!(cache.backend.loads.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn a_failed_load_leaves_no_entry_and_the_next_try_loads_again() {
        let cache = Cache::new(Doubler::new(1, 1), 1000);
        assert!(block_on(cache.get_or_insert(4)).is_err());
        assert_eq!(cache.map().pin().len(), 0);
        assert_eq!(block_on(cache.get_or_insert(4)).unwrap().0, 8);
    }

    #[test]
    fn a_dropped_load_leaves_no_entry() {
        let cache = Cache::new(Doubler::new(0, 0), 1000);
        {
            let mut load = Box::pin(cache.get_or_insert(4));
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(load.as_mut().poll(&mut context).is_pending());
            assert_eq!(cache.map().pin().len(), 1);
        }
        assert_eq!(cache.map().pin().len(), 0);
    }

    #[test]
    fn many_waiters_share_one_load() {
        let cache = Arc::new(Cache::new(Doubler::new(0, 0), 1000));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| assert_eq!(block_on(cache.get_or_insert(4)).unwrap().0, 8));
            }
            while cache.backend.loads.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            cache.backend.gate.add_permits(1);
        });
        assert_eq!(cache.backend.loads.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn the_longest_unused_go_first_and_the_limit_holds() {
        let cache = Cache::new(Doubler::new(0, 1), 80);
        for key in 0..8 {
            block_on(cache.get_or_insert(key)).unwrap();
        }
        assert_eq!(cache.peek(0, |value| value.0), Some(0));
        block_on(cache.get_or_insert(8)).unwrap();
        assert!(cache.weight() <= 80);
        assert_eq!(cache.peek(0, |value| value.0), Some(0));
        assert_eq!(cache.peek(1, |value| value.0), None);
    }

    #[test]
    fn a_cache_smaller_than_one_value_still_works() {
        let cache = Cache::new(Doubler::new(0, 1), 0);
        for key in 0..100 {
            assert_eq!(block_on(cache.get_or_insert(key)).unwrap().0, key * 2);
        }
        assert!(cache.weight() <= 10);
    }

    /// A value that does something when it is asked to go, and stays that once.
    struct Busy {
        charge: Charge,
        when_asked: std::sync::Mutex<Option<Box<dyn FnOnce() + Send>>>,
    }

    struct BusyBackend;

    impl AsyncLruCacheBackend for BusyBackend {
        type Key = u64;
        type Value = Busy;

        async fn load(&self, _: u64, _: Charge) -> Result<Busy, Error> {
            Err(Error::OffloadGone)
        }

        fn charge(value: &Busy) -> &Charge {
            &value.charge
        }

        fn retire(value: &Busy) -> bool {
            let when_asked = value.when_asked.lock().unwrap().take();
            when_asked.map(|run| run()).is_none()
        }
    }

    type BusyCache = AsyncLruCache<u64, Busy, BusyBackend>;

    fn insert_busy(cache: &BusyCache, key: u64, run: Option<Box<dyn FnOnce() + Send>>) {
        let charge = cache.charge();
        charge.add(10);
        cache.insert(key, Arc::new(Busy { charge, when_asked: std::sync::Mutex::new(run) }));
    }

    #[test]
    fn whoever_evicts_looks_again_for_those_it_turned_away() {
        let cache = Arc::new(BusyCache::new(BusyBackend, 10));
        let other = Arc::clone(&cache);
        // Comes while the eviction for 2 is under way, which then finds nothing to evict.
        insert_busy(&cache, 1, Some(Box::new(move || insert_busy(&other, 3, None))));
        insert_busy(&cache, 2, None);
        assert!(cache.weight() <= 10, "{}", cache.weight());
    }

    #[test]
    fn threads_that_load_and_evict_at_once_see_right_values() {
        let cache = Cache::new(Doubler::new(0, 4), 200);
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let cache = &cache;
                scope.spawn(move || {
                    for step in 0..2000_u64 {
                        let key = (step * 7 + thread * 13) % 64;
                        assert_eq!(block_on(cache.get_or_insert(key)).unwrap().0, key * 2);
                    }
                });
            }
        });
        let held: usize = cache.map().pin().iter().count() * 10;
        assert!(held <= 200 && cache.weight() <= 220, "{held} {}", cache.weight());
    }
}
