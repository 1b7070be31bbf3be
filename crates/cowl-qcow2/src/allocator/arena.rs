//! Arenas: host clusters whose refcounts were raised before anybody needs them.
//!
//! A request takes its clusters from the arena of its thread, without I/O and without another lock.
//! The refcounts of an arena become durable with whatever commit comes next; from then on an
//! allocation needs no refcount write at all. What is left is given back when the image is closed,
//! and leaks, bounded by [`Arenas::clusters_max`], when the process dies.
//!
//! Tables come from an arena of their own, so that the data of a sequential writer stays in one
//! piece.

use std::collections::VecDeque;
use std::sync::PoisonError;

use cowl_format::{Geometry, HostCluster};
use cowl_storage::Storage;

use crate::allocator::Reference;
use crate::allocator::space::Grant;
use crate::flush::{After, Edge};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, MutexGuard, thread_number};
use crate::{Error, Layer};

/// Arenas for data: as many as threads that write at once, as a rule.
const DATA_ARENAS: usize = 4;

/// The arena for tables comes behind them.
const TABLES: usize = DATA_ARENAS;

/// Bytes of address space of the first reservation of an arena, and the most of any: each is twice
/// the one before.
const FIRST_BYTES: u64 = 1 << 20;
const BYTES_MAX: u64 = 16 << 20;

/// Clusters of one reservation for tables.
const TABLE_CLUSTERS: u64 = 16;

/// The arenas of one image.
pub(crate) struct Arenas {
    arenas: [Mutex<Arena>; DATA_ARENAS + 1],
    /// Reservations made so far.
    reservations: AtomicU64,
}

#[derive(Default)]
struct Arena {
    grants: VecDeque<Grant>,
    /// Clusters of the last reservation that was asked for.
    last_want: u64,
}

/// Host clusters taken, side by side.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostRun {
    pub(crate) first: HostCluster,
    pub(crate) count: u64,
    /// They read as zeros, durably so after this; `None` when they may hold anything.
    pub(crate) zeroed: Option<After>,
    /// What a pointer to them waits for.
    pub(crate) after: After,
}

/// What clusters are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClusterUse {
    Data,
    Table,
}

/// Clusters taken and not linked yet: given back when dropped.
pub(crate) struct Granted<'a, S: Storage> {
    layer: &'a Layer<S>,
    run: HostRun,
}

impl<'a, S: Storage> Granted<'a, S> {
    /// Clusters that were counted and that nothing points to.
    pub(super) fn new(layer: &'a Layer<S>, first: HostCluster, count: u64) -> Self {
        let (zeroed, after) = (None, After::THIS_COMMIT);
        Self { layer, run: HostRun { first, count, zeroed, after } }
    }

    /// Something points to all of them now.
    pub(crate) fn keep_all(mut self) {
        self.run.count = 0;
    }

    pub(crate) fn run(&self) -> HostRun {
        self.run
    }

    /// Something points to the first of them now.
    pub(crate) fn keep_first(&mut self) {
        self.run.first = HostCluster::new(self.run.first.get() + 1);
        self.run.count -= 1;
    }
}

impl<S: Storage> Drop for Granted<'_, S> {
    fn drop(&mut self) {
        if 0 < self.run.count
            && let Ok(writer) = self.layer.writer()
        {
            let unused = Reference::Clusters { first: self.run.first, count: self.run.count };
            writer.quarantine.add_unused(unused, &writer.epochs);
        }
    }
}

impl Arenas {
    pub(crate) fn new() -> Self {
        Self { arenas: Default::default(), reservations: AtomicU64::new(0) }
    }

    /// Clusters that may be reserved and unused at once.
    pub(crate) fn clusters_max(geometry: Geometry) -> u64 {
        let most = 2 * (BYTES_MAX / geometry.cluster_size()).clamp(1, MOST_CLUSTERS);
        DATA_ARENAS as u64 * most + 2 * TABLE_CLUSTERS
    }

    /// How many reservations were made.
    pub(crate) fn reservations(&self) -> u64 {
        self.reservations.load(Ordering::Relaxed)
    }

    fn lock(&self, index: usize) -> MutexGuard<'_, Arena> {
        self.arenas[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most clusters of one reservation.
const MOST_CLUSTERS: u64 = 1024;

impl Arena {
    /// Takes up to `want` clusters, side by side.
    fn take(&mut self, want: u64, is_lazy: bool) -> Option<HostRun> {
        let grant = self.grants.front_mut()?;
        let count = want.min(grant.count);
        let durable = is_lazy || grant.block.is_durable(grant.change);
        let after = if durable { After::NOTHING } else { After::THIS_COMMIT };
        let run = HostRun {
            first: HostCluster::new(grant.first),
            count,
            zeroed: grant.zeroed,
            after: Edge::RefcountBeforePointer.after(after),
        };
        grant.first += count;
        grant.count -= count;
        if grant.count == 0 {
            self.grants.pop_front();
        }
        Some(run)
    }

    fn clusters(&self) -> u64 {
        self.grants.iter().map(|grant| grant.count).sum()
    }

    /// How much the next reservation asks for.
    fn next_want(&self, index: usize, geometry: Geometry) -> u64 {
        if index == TABLES {
            return TABLE_CLUSTERS;
        }
        let clusters = |bytes: u64| (bytes / geometry.cluster_size()).clamp(1, MOST_CLUSTERS);
        (self.last_want * 2).clamp(clusters(FIRST_BYTES), clusters(BYTES_MAX))
    }
}

impl<S: Storage> Layer<S> {
    /// Takes up to `want` host clusters, side by side.
    pub(crate) async fn allocate(
        &self,
        want: u64,
        what: ClusterUse,
    ) -> Result<Granted<'_, S>, Error> {
        let writer = self.writer()?;
        self.metadata().l2_depends_on_rb().await?;
        let index = match what {
            ClusterUse::Data => thread_number() % DATA_ARENAS,
            ClusterUse::Table => TABLES,
        };
        loop {
            let run = writer.arenas.lock(index).take(want, writer.is_lazy());
            if let Some(run) = run {
                return Ok(Granted { layer: self, run });
            }
            self.refill(index, 1).await?;
        }
    }

    /// Reserves clusters ahead for arenas that run low, so that the commit under way makes them
    /// durable before anybody needs them.
    pub(crate) async fn reserve_ahead(&self) -> Result<(), Error> {
        let writer = self.writer()?;
        for index in 0..=TABLES {
            let (left, last_want) = {
                let arena = writer.arenas.lock(index);
                (arena.clusters(), arena.last_want)
            };
            if 0 < last_want && left <= last_want / 2 {
                self.refill(index, last_want / 2 + 1).await?;
            }
        }
        Ok(())
    }

    /// Makes sure that an arena has at least `least` clusters.
    async fn refill(&self, index: usize, least: u64) -> Result<(), Error> {
        let writer = self.writer()?;
        let mut space = self.lock_space(writer).await;
        let want = {
            let arena = writer.arenas.lock(index);
            // Somebody else was here while we waited.
            if least <= arena.clusters() {
                return Ok(());
            }
            arena.next_want(index, self.geometry())
        };
        let grant = self.reserve(&mut space, want).await?;
        writer.arenas.reservations.fetch_add(1, Ordering::Relaxed);
        let mut arena = writer.arenas.lock(index);
        arena.last_want = want;
        arena.grants.push_back(grant);
        Ok(())
    }

    /// Gives back everything that is reserved and unused.
    pub(crate) async fn return_reserved(&self) -> Result<(), Error> {
        let writer = self.writer()?;
        let mut space = self.lock_space(writer).await;
        let size = self.geometry().cluster_size();
        // A cluster meant for streams that has none.
        if let Some(at) = space.packed.take().filter(|at| at.is_multiple_of(size)) {
            self.set_refcount(&space, at / size, 0).await?;
        }
        for index in 0..=TABLES {
            loop {
                let grant = writer.arenas.lock(index).grants.pop_front();
                let Some(grant) = grant else { break };
                for cluster in grant.first..grant.first + grant.count {
                    self.set_refcount(&space, cluster, 0).await?;
                }
                space.add_free(grant.first, grant.count, grant.zeroed);
            }
        }
        Ok(())
    }
}
