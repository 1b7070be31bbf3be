//! The names of `sync.rs` for threads that a scheduler interleaves.
//!
//! Atomics and `Mutex` are shuttle's. Crates that shuttle cannot see into (`futures-util`,
//! `event-listener`, `async-lock`) do their real work, as one step each: a [`point`] before it lets
//! the others go first. The map is a plain one behind a lock, because papaya keeps state for each
//! thread of the host and all threads of a model run on one. What `remove_if` and `retain` promise,
//! and what they do not, is kept: the condition runs while others go on, and what it was asked
//! about is removed only if it is still there.

use core::hash::Hash;
use core::ops::{Deref, DerefMut};
use std::cell;
use std::collections::HashMap;
use std::sync::PoisonError;

use rustc_hash::FxBuildHasher;

pub(crate) use event_listener::EventListener;
pub(crate) use shuttle::hint::spin_loop;
pub(crate) use shuttle::sync::atomic;
pub(crate) use shuttle::sync::{Mutex, MutexGuard};

/// Another thread may go on here.
pub(crate) fn point() {
    if !std::thread::panicking() {
        // Any access of an atomic is a point.
        atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
    }
}

/// The number of the calling thread in the model.
pub(crate) fn thread_number() -> usize {
    shuttle::current::me().into()
}

/// The lock of futures.
#[derive(Default)]
pub(crate) struct AsyncMutex<T>(futures_util::lock::Mutex<T>);

pub(crate) type TryMutex<T> = AsyncMutex<T>;

pub(crate) struct AsyncMutexGuard<'a, T>(futures_util::lock::MutexGuard<'a, T>);

impl<T> AsyncMutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(futures_util::lock::Mutex::new(value))
    }

    pub(crate) async fn lock(&self) -> AsyncMutexGuard<'_, T> {
        point();
        AsyncMutexGuard(self.0.lock().await)
    }

    pub(crate) fn try_lock(&self) -> Option<AsyncMutexGuard<'_, T>> {
        point();
        self.0.try_lock().map(AsyncMutexGuard)
    }
}

impl<T> Deref for AsyncMutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for AsyncMutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

impl<T> Drop for AsyncMutexGuard<'_, T> {
    fn drop(&mut self) {
        point();
    }
}

/// Tells those who wait.
#[derive(Default)]
pub(crate) struct Event(event_listener::Event);

impl Event {
    pub(crate) const fn new() -> Self {
        Self(event_listener::Event::new())
    }

    pub(crate) fn listen(&self) -> EventListener {
        point();
        self.0.listen()
    }

    pub(crate) fn notify(&self, count: usize) {
        point();
        self.0.notify(count);
    }
}

/// A value that one future makes while others wait.
pub(crate) struct OnceCell<T>(async_lock::OnceCell<T>);

impl<T> OnceCell<T> {
    pub(crate) const fn new() -> Self {
        Self(async_lock::OnceCell::new())
    }

    pub(crate) fn get(&self) -> Option<&T> {
        point();
        self.0.get()
    }

    pub(crate) fn is_initialized(&self) -> bool {
        point();
        self.0.is_initialized()
    }

    pub(crate) fn take(&mut self) -> Option<T> {
        self.0.take()
    }

    pub(crate) fn set_blocking(&self, value: T) -> Result<&T, T> {
        self.0.set_blocking(value)
    }

    pub(crate) async fn get_or_try_init<E, F: Future<Output = Result<T, E>>>(
        &self,
        make: impl FnOnce() -> F,
    ) -> Result<&T, E> {
        point();
        let value = self.0.get_or_try_init(make).await;
        point();
        value
    }
}

impl<T> From<T> for OnceCell<T> {
    fn from(value: T) -> Self {
        Self(value.into())
    }
}

/// A value that is set once.
#[derive(Default)]
pub(crate) struct OnceLock<T>(std::sync::OnceLock<T>);

impl<T> OnceLock<T> {
    pub(crate) const fn new() -> Self {
        Self(std::sync::OnceLock::new())
    }

    pub(crate) fn get(&self) -> Option<&T> {
        point();
        self.0.get()
    }

    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        point();
        self.0.get_or_init(make)
    }
}

/// A map without a lock, as far as its users can tell.
pub(crate) struct Map<K, V> {
    content: std::sync::Mutex<Content<K, V>>,
}

struct Content<K, V> {
    /// Each value with the number of its insertion: an equal value put there anew is another one.
    entries: HashMap<K, (u64, V), FxBuildHasher>,
    insertions: u64,
}

pub(crate) fn new_map<K: Copy + Eq + Hash, V: Clone>(_batch: usize) -> Map<K, V> {
    let content = Content { entries: HashMap::default(), insertions: 0 };
    Map { content: std::sync::Mutex::new(content) }
}

/// Keeps values alive that were looked at.
pub(crate) struct Kept<K, V> {
    next: cell::OnceCell<Box<Link<K, V>>>,
}

struct Link<K, V> {
    pair: (K, V),
    rest: Kept<K, V>,
}

impl<K, V> Kept<K, V> {
    fn keep(&self, key: K, value: V) -> (&K, &V) {
        let mut last = self;
        while let Some(link) = last.next.get() {
            last = &link.rest;
        }
        let rest = Self { next: cell::OnceCell::new() };
        let link = last.next.get_or_init(|| Box::new(Link { pair: (key, value), rest }));
        (&link.pair.0, &link.pair.1)
    }
}

pub(crate) trait MapGuard {
    fn flush(&self);
}

impl<K, V> MapGuard for Kept<K, V> {
    /// What is removed is freed with the last guard that has looked at it.
    fn flush(&self) {
        point();
    }
}

/// A map with a guard.
pub(crate) struct Pinned<'a, K, V> {
    map: &'a Map<K, V>,
    guard: Kept<K, V>,
}

impl<K: Copy + Eq + Hash, V: Clone> Map<K, V> {
    pub(crate) fn guard(&self) -> Kept<K, V> {
        Kept { next: cell::OnceCell::new() }
    }

    pub(crate) fn pin(&self) -> Pinned<'_, K, V> {
        Pinned { map: self, guard: self.guard() }
    }

    pub(crate) fn get<'g>(&self, key: &K, guard: &'g Kept<K, V>) -> Option<&'g V> {
        self.look(key).map(|(_, value)| guard.keep(*key, value).1)
    }

    pub(crate) fn iter<'g>(
        &'g self,
        guard: &'g Kept<K, V>,
    ) -> impl Iterator<Item = (&'g K, &'g V)> {
        // A weak snapshot: what is gone when its turn comes is left out.
        let keys = self.keys();
        let found = |key: K| self.look(&key).map(|(_, value)| guard.keep(key, value));
        keys.into_iter().filter_map(found)
    }

    /// Removes what `is_it` was true of, if it is still there by then.
    pub(crate) fn remove_if(
        &self,
        key: &K,
        mut is_it: impl FnMut(&K, &V) -> bool,
        _guard: &Kept<K, V>,
    ) -> Result<(), ()> {
        while let Some((insertion, value)) = self.look(key) {
            if !is_it(key, &value) {
                return Err(());
            }
            point();
            let removed = self.edit(|content| {
                let is_same = content.entries.get(key).is_some_and(|(same, _)| *same == insertion);
                is_same.then(|| content.entries.remove(key))
            });
            if removed.is_some() {
                break;
            }
        }
        Ok(())
    }

    pub(crate) fn retain(&self, mut stays: impl FnMut(&K, &V) -> bool, guard: &Kept<K, V>) {
        for key in self.keys() {
            self.remove_if(&key, |key, value| !stays(key, value), guard).ok();
        }
    }

    fn look(&self, key: &K) -> Option<(u64, V)> {
        point();
        self.edit(|content| content.entries.get(key).cloned())
    }

    fn keys(&self) -> Vec<K> {
        point();
        self.edit(|content| content.entries.keys().copied().collect())
    }

    /// One step. What it returns is dropped outside: a value that goes may have points of its own.
    fn edit<R>(&self, edit: impl FnOnce(&mut Content<K, V>) -> R) -> R {
        edit(&mut self.content.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<K: Copy + Eq + Hash, V: Clone> Pinned<'_, K, V> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.map.get(key, &self.guard)
    }

    pub(crate) fn get_or_insert_with(&self, key: K, make: impl FnOnce() -> V) -> &V {
        if let Some(value) = self.map.get(&key, &self.guard) {
            return value;
        }
        let made = make();
        point();
        let value = self.map.edit(|content| {
            content.insertions += 1;
            let new = (content.insertions, made.clone());
            content.entries.entry(key).or_insert(new).1.clone()
        });
        self.guard.keep(key, value).1
    }

    pub(crate) fn insert(&self, key: K, value: V) {
        point();
        let old = self.map.edit(|content| {
            content.insertions += 1;
            content.entries.insert(key, (content.insertions, value))
        });
        drop(old);
    }

    pub(crate) fn remove(&self, key: &K) {
        point();
        let old = self.map.edit(|content| content.entries.remove(key));
        drop(old);
    }

    pub(crate) fn remove_if(&self, key: &K, is_it: impl FnMut(&K, &V) -> bool) -> Result<(), ()> {
        self.map.remove_if(key, is_it, &self.guard)
    }

    pub(crate) fn len(&self) -> usize {
        self.map.keys().len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.map.iter(&self.guard)
    }
}
