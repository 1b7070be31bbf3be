//! The group commit: from dirty tables in memory to a durable image, with as few barriers as can
//! be.
//!
//!   stage A   refcount blocks, and new tables that nothing names yet      barrier
//!   stage B   slices of L2 tables, sectors of the L1 table                barrier
//!
//! Copies of everything are taken first, in the opposite order: what points, then what is pointed
//! to. Requests go on meanwhile; what they change belongs to the next commit. When nothing in
//! stage B waits for stage A (clusters came from a durable reservation and were known to be zero),
//! both are written together and one barrier is enough.
//!
//! Concurrent flushes join: whoever finds that a commit has started and succeeded since it asked is
//! done.

use cowl_format::{ByteCount, HostOffset};
use cowl_storage::{Purpose, Storage};

use crate::cache::{Batch, Taken, batch_slices, batch_tables};
use crate::flush::{After, Edge};
use crate::mapping::{L1Sector, L1Table};
use crate::sync::AsyncMutexGuard;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::writer::Writer;
use crate::{Error, Layer};

/// The commits of one image.
#[derive(Default)]
pub(crate) struct Commits {
    started: AtomicU64,
    succeeded: AtomicU64,
}

/// Sectors of the L1 table on their way to the file; dirty again when that fails.
struct TakenSectors<'a> {
    table: &'a L1Table,
    sectors: Vec<L1Sector>,
}

impl Drop for TakenSectors<'_> {
    fn drop(&mut self) {
        self.table.put_back(self.sectors.iter().map(|sector| sector.number));
    }
}

impl<S: Storage> Layer<S> {
    /// Returns when every change acknowledged before the call is durable.
    pub(crate) async fn commit(&self) -> Result<(), Error> {
        let writer = self.writer()?;
        let commits = &writer.commits;
        let wanted = commits.started.load(Ordering::SeqCst) + 1;
        let lock = self.metadata().write_back_lock().lock().await;
        if wanted <= commits.succeeded.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.recover().await?;
        self.metadata().latch().check()?;
        if !self.metadata().dirty().is_empty() || self.l1().is_dirty() {
            // Not enough space for the next requests is their trouble, not this one's.
            self.reserve_ahead().await.ok();
        }
        let number = commits.started.fetch_add(1, Ordering::SeqCst) + 1;
        self.commit_now(writer, &lock, !writer.is_lazy()).await?;
        commits.succeeded.store(number, Ordering::SeqCst);
        drop(lock);
        // What became free is nobody's business who waits for durability.
        self.sweep().await.ok();
        Ok(())
    }

    /// Writes refcounts too where they are delayed.
    pub(crate) async fn commit_refcounts(&self) -> Result<(), Error> {
        let writer = self.writer()?;
        let lock = self.metadata().write_back_lock().lock().await;
        self.recover().await?;
        writer.commits.started.fetch_add(1, Ordering::SeqCst);
        self.commit_now(writer, &lock, true).await
    }

    async fn commit_now(
        &self,
        writer: &Writer<S>,
        lock: &AsyncMutexGuard<'_, ()>,
        with_blocks: bool,
    ) -> Result<(), Error> {
        self.metadata().latch().check()?;
        let barriers = self.metadata().barriers();
        // In this order: see the file head.
        let unlinked = writer.quarantine.take_unlinked();
        let sectors = TakenSectors { table: self.l1(), sectors: self.l1().take_dirty() };
        let mut taken = self.metadata().take_dirty(lock, with_blocks);
        if taken.is_empty() && sectors.sectors.is_empty() {
            if barriers.is_touched() || !unlinked.is_empty() {
                self.barrier().await?;
            }
            unlinked.all_durable();
            return Ok(());
        }
        writer.counters.commits.fetch_add(1, Ordering::Relaxed);
        let mut batch = Batch::default();
        batch_tables(&taken, &mut batch);
        if !barriers.has_returned(what_is_waited_for(&taken, &sectors)) {
            self.write_batch(writer, batch).await?;
            self.barrier().await?;
            taken.stage_a_durable();
            batch = Batch::default();
        }
        batch_slices(&taken, &mut batch);
        let l1_offset = writer.header().l1_offset;
        for sector in &sectors.sectors {
            batch.add(place_of(sector, l1_offset), Purpose::L1Table, sector.bytes.clone());
        }
        self.write_batch(writer, batch).await?;
        self.barrier().await?;
        taken.all_durable();
        core::mem::take(&mut { sectors }.sectors);
        unlinked.all_durable();
        Ok(())
    }

    async fn write_batch(&self, writer: &Writer<S>, batch: Batch) -> Result<(), Error> {
        let (writes, bytes) = writer.change(batch.write(self.file().as_ref())).await?;
        writer.counters.add_metadata(writes, bytes);
        self.metadata().barriers().touch();
        Ok(())
    }
}

/// The barrier that has to have returned before stage B.
fn what_is_waited_for(taken: &Taken<'_>, sectors: &TakenSectors<'_>) -> After {
    let tables = match sectors.sectors.is_empty() {
        true => After::NOTHING,
        // They name new tables, which stage A writes.
        false => Edge::TableBeforeEntry.after(After::THIS_COMMIT),
    };
    tables.max(taken.after())
}

fn place_of(sector: &L1Sector, l1_offset: HostOffset) -> HostOffset {
    l1_offset + ByteCount::from_usize(sector.number * sector.bytes.len())
}
