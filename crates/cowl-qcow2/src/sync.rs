//! What threads of the engine meet at: atomics, locks, cells, events and the map.
//!
//! Re-exports and nothing else. Only when the crate's own tests are built with the feature
//! `interleavings` do the same names stand for types at which a scheduler may go on with another
//! thread; see `stepped.rs` and docs/internals/interleavings.md.
//!
//! Not here: what is never shared while it changes, and what threads share without meeting at it
//! (compressors, roles of clusters, the words of the L1 table).

#[cfg(all(test, feature = "interleavings"))]
mod stepped;

#[cfg(all(test, feature = "interleavings"))]
pub(crate) use stepped::{
    AsyncMutex, AsyncMutexGuard, Event, EventListener, Map, MapGuard, Mutex, MutexGuard, OnceCell,
    OnceLock, TryMutex, atomic, new_map, spin_loop, thread_number,
};

#[cfg(not(all(test, feature = "interleavings")))]
mod plain {
    use core::hash::Hash;

    use rustc_hash::FxBuildHasher;

    pub(crate) use async_lock::{Mutex as TryMutex, OnceCell};
    pub(crate) use core::hint::spin_loop;
    pub(crate) use event_listener::{Event, EventListener};
    pub(crate) use futures_util::lock::{Mutex as AsyncMutex, MutexGuard as AsyncMutexGuard};
    pub(crate) use seize::Guard as MapGuard;
    pub(crate) use std::sync::atomic;
    pub(crate) use std::sync::{Mutex, MutexGuard, OnceLock};

    pub(crate) type Map<K, V> = papaya::HashMap<K, V, FxBuildHasher>;

    /// An empty map that frees removed values in batches of this size, or when told to.
    ///
    /// It grows at once. Bit by bit, it would only come to an end with insertions of another kind,
    /// and until then every lookup searches all the sizes that it had.
    pub(crate) fn new_map<K: Eq + Hash, V>(batch: usize) -> Map<K, V> {
        papaya::HashMap::builder()
            .hasher(FxBuildHasher)
            .resize_mode(papaya::ResizeMode::Blocking)
            .collector(seize::Collector::new().batch_size(batch))
            .build()
    }

    /// A small number for the calling thread, the same at each call. It only spreads load.
    pub(crate) fn thread_number() -> usize {
        static NEXT: atomic::AtomicUsize = atomic::AtomicUsize::new(0);
        thread_local! {
            static NUMBER: usize = NEXT.fetch_add(1, atomic::Ordering::Relaxed);
        }
        NUMBER.with(|number| *number)
    }
}

#[cfg(not(all(test, feature = "interleavings")))]
pub(crate) use plain::{
    AsyncMutex, AsyncMutexGuard, Event, EventListener, Map, MapGuard, Mutex, MutexGuard, OnceCell,
    OnceLock, TryMutex, atomic, new_map, spin_loop, thread_number,
};
