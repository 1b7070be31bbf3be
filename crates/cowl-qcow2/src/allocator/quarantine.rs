//! From the removal of a pointer to the reuse of its cluster.
//!
//!   live -> unlinked in memory -> the unlink is durable, and every request that may have seen the
//!   pointer is done -> host range punched, refcount lowered -> free
//!
//! A commit moves what was unlinked before it one step on; [`Layer::sweep`] does the rest, when
//! nobody waits for it. A cluster on its way may leak when the process dies, and nothing worse.

use std::collections::BTreeMap;
use std::sync::PoisonError;

use cowl_format::{ByteCount, CompressedDescriptor, Geometry, GuestOffset, HostCluster};
use cowl_storage::{Purpose, Storage};

use crate::allocator::space::Space;
use crate::cache::DecodedKey;
use crate::flush::Edge;
use crate::request::Epochs;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{AsyncMutex, Mutex, MutexGuard};
use crate::writer::Writer;
use crate::{Error, Layer};

/// What no pointer names any more. Each is one reference to each of its clusters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reference {
    /// Data or tables.
    Clusters { first: HostCluster, count: u64 },
    /// A compressed stream.
    Compressed(CompressedDescriptor),
}

impl Reference {
    /// Clusters that may become free.
    fn clusters(self) -> u64 {
        match self {
            Self::Clusters { count, .. } => count,
            // Others mostly live in the same one.
            Self::Compressed(_) => 0,
        }
    }
}

struct Item {
    what: Reference,
    epoch: u64,
}

/// What is on its way to be free.
#[derive(Default)]
pub(crate) struct Quarantine {
    /// The removal of the pointer is in memory only.
    unlinked: Mutex<Vec<Item>>,
    /// Clusters that were unlinked since the last commit began: all of them wait for the next one.
    waiting: AtomicU64,
    /// The removal is durable.
    durable: Mutex<Vec<Item>>,
    sweeping: AsyncMutex<()>,
}

/// What a commit makes durable; given back when that fails.
pub(crate) struct Unlinked<'a> {
    quarantine: &'a Quarantine,
    items: Vec<Item>,
}

impl Quarantine {
    /// A pointer was removed in memory, in an entry that is dirty by now.
    pub(crate) fn add_unlinked(&self, what: Reference, epochs: &Epochs) {
        let list = match Edge::UnlinkBeforeReuse.holds() {
            true => &self.unlinked,
            false => &self.durable,
        };
        self.waiting.fetch_add(what.clusters(), Ordering::Relaxed);
        lock(list).push(Item { what, epoch: epochs.of_unlink() });
    }

    /// Clusters that the next commit lets go. An estimate: one that failed is forgotten.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// These clusters have a reference that no pointer in the file has ever had, or has any more.
    pub(crate) fn add_unused(&self, what: Reference, epochs: &Epochs) {
        lock(&self.durable).push(Item { what, epoch: epochs.of_unlink() });
    }

    /// What was unlinked before a commit takes its copies.
    pub(crate) fn take_unlinked(&self) -> Unlinked<'_> {
        self.waiting.store(0, Ordering::Relaxed);
        Unlinked { quarantine: self, items: std::mem::take(&mut *lock(&self.unlinked)) }
    }

    /// Whether nothing is on its way.
    pub(crate) fn is_empty(&self) -> bool {
        lock(&self.unlinked).is_empty() && lock(&self.durable).is_empty()
    }

    fn take_free(&self, epochs: &Epochs) -> Vec<Item> {
        let mut durable = lock(&self.durable);
        let (free, rest) =
            std::mem::take(&mut *durable).into_iter().partition(|item| epochs.is_over(item.epoch));
        *durable = rest;
        free
    }
}

impl Unlinked<'_> {
    pub(crate) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The commit has succeeded.
    pub(crate) fn all_durable(mut self) {
        lock(&self.quarantine.durable).append(&mut self.items);
    }
}

impl Drop for Unlinked<'_> {
    fn drop(&mut self) {
        if !self.items.is_empty() {
            lock(&self.quarantine.unlinked).append(&mut self.items);
        }
    }
}

/// References to drop, by cluster. What is not done goes back to the quarantine.
struct Drops<'a> {
    quarantine: &'a Quarantine,
    clusters: BTreeMap<u64, u64>,
}

impl Drops<'_> {
    fn add(&mut self, first: HostCluster, count: u64) {
        for cluster in first.get()..first.get() + count {
            *self.clusters.entry(cluster).or_default() += 1;
        }
    }
}

impl Drop for Drops<'_> {
    fn drop(&mut self) {
        let mut durable = lock(&self.quarantine.durable);
        for (cluster, references) in std::mem::take(&mut self.clusters) {
            let what = Reference::Clusters { first: HostCluster::new(cluster), count: 1 };
            durable.extend((0..references).map(|_| Item { what, epoch: 0 }));
        }
    }
}

impl<S: Storage> Layer<S> {
    /// Frees what is ready to be freed. What cannot be freed now stays for the next time.
    pub(crate) async fn sweep(&self) -> Result<(), Error> {
        let writer = self.writer()?;
        let Some(_one_at_a_time) = writer.quarantine.sweeping.try_lock() else { return Ok(()) };
        // A punch that was dropped on its way must not land on a cluster's next owner.
        self.recover().await?;
        self.metadata().latch().check()?;
        writer.epochs.advance();
        let items = writer.quarantine.take_free(&writer.epochs);
        if items.is_empty() {
            return Ok(());
        }
        let mut drops = Drops { quarantine: &writer.quarantine, clusters: BTreeMap::new() };
        for item in items {
            match item.what {
                Reference::Clusters { first, count } => drops.add(first, count),
                Reference::Compressed(descriptor) => {
                    // The bytes there will be somebody else's.
                    let (guest, reach) = (GuestOffset::ZERO, 0);
                    self.decoded().remove(DecodedKey { descriptor, guest, reach });
                    let (first, last) = descriptor.host_clusters(self.geometry());
                    drops.add(first, last.get() - first.get() + 1);
                }
            }
        }
        self.lower_shared(writer, &mut drops).await?;
        self.free(writer, &mut drops).await
    }

    /// Drops references of clusters that have more of them; leaves those that become free.
    async fn lower_shared(&self, writer: &Writer<S>, drops: &mut Drops<'_>) -> Result<(), Error> {
        let mut space = self.lock_space(writer).await;
        let clusters: Vec<u64> = drops.clusters.keys().copied().collect();
        for cluster in clusters {
            let dropped = drops.clusters[&cluster];
            let refcount = self.refcount_in(&space, cluster).await?;
            if refcount < dropped {
                // The image counts fewer references than it has: nothing there is safe to free.
                drops.clusters.remove(&cluster);
            } else if dropped < refcount {
                self.set_refcount(&space, cluster, refcount - dropped).await?;
                drops.clusters.remove(&cluster);
            } else {
                space.close_packed(cluster, self.geometry());
            }
        }
        Ok(())
    }

    /// Punches clusters that nobody refers to any more, and makes them free.
    async fn free(&self, writer: &Writer<S>, drops: &mut Drops<'_>) -> Result<(), Error> {
        let geometry = self.geometry();
        while let Some((&first, _)) = drops.clusters.first_key_value() {
            let run = drops.clusters.keys().zip(first..);
            let count = run.take_while(|(cluster, expected)| **cluster == *expected).count() as u64;
            let at = geometry.host_cluster_start(HostCluster::new(first));
            let length = ByteCount::new(count * geometry.cluster_size());
            let punched = if self.file().capabilities().can_discard {
                writer.change(self.file().discard(at, length, Purpose::GuestData)).await.is_ok()
            } else {
                false
            };
            let zeroed = punched.then(|| self.metadata().barriers().next());
            self.metadata().barriers().touch();
            let mut space = self.lock_space(writer).await;
            for cluster in first..first + count {
                self.set_refcount(&space, cluster, 0).await?;
                drops.clusters.remove(&cluster);
            }
            writer.roles.remove(HostCluster::new(first), count);
            space.add_free(first, count, zeroed);
        }
        Ok(())
    }
}

impl Space {
    /// No compressed stream is added to `cluster` any more.
    fn close_packed(&mut self, cluster: u64, geometry: Geometry) {
        if self.packed.is_some_and(|at| at / geometry.cluster_size() == cluster) {
            self.packed = None;
        }
    }
}

fn lock<T>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
