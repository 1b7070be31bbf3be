//! The free space of the image file, as far as it is known.
//!
//! Free is what has refcount 0. Nobody looks at all refcounts to find it: clusters freed in this
//! session are remembered, blocks are searched a few at a time behind a cursor, and else the file
//! grows. So the first allocation of a huge full image costs no scan, and free space from earlier
//! sessions is found step by step.

use std::sync::Arc;

use cowl_format::{ByteCount, HostCluster, HostOffset, RefcountTableEntry};
use cowl_storage::{Purpose, Storage};

use crate::allocator::Granted;
use crate::cache::RefBlock;
use crate::flush::After;
use crate::{Error, Layer};

/// Runs remembered; of more, the cursor finds them again.
const FREED_MAX: usize = 1024;

/// Refcount blocks searched for one reservation.
const BLOCKS_SEARCHED_MAX: usize = 4;

/// What is known of the free space. Whoever holds it may change refcounts.
pub(crate) struct Space {
    /// The refcount table.
    pub(super) table: Vec<RefcountTableEntry>,
    pub(super) table_at: HostOffset,
    /// Below this cluster the search is done.
    cursor: u64,
    /// From this cluster on the file has never had anything: it reads as zeros.
    pub(super) end: u64,
    end_at_open: u64,
    freed: Vec<FreeRun>,
    /// Clusters that an entry in the file may name although nobody knows: never to be used.
    pub(super) burnt: Vec<u64>,
    /// Where the next compressed stream goes.
    pub(crate) packed: Option<u64>,
}

/// Clusters freed in this session.
struct FreeRun {
    first: u64,
    count: u64,
    zeroed: Option<After>,
}

/// Clusters with a refcount of one, for whoever took them.
pub(crate) struct Grant {
    pub(super) first: u64,
    pub(super) count: u64,
    /// The clusters read as zeros, durably so after this; `None` when they may hold anything.
    pub(super) zeroed: Option<After>,
    pub(super) block: Arc<RefBlock>,
    /// The change of the block that has to be durable before a pointer to the clusters.
    pub(super) change: u64,
}

impl Space {
    pub(crate) fn new(table: Vec<RefcountTableEntry>, table_at: HostOffset, end: u64) -> Self {
        Self {
            table,
            table_at,
            cursor: 1,
            end,
            end_at_open: end,
            freed: Vec::new(),
            burnt: Vec::new(),
            packed: None,
        }
    }

    /// Clusters whose refcount has become zero.
    pub(super) fn add_free(&mut self, first: u64, count: u64, zeroed: Option<After>) {
        self.cursor = self.cursor.min(first);
        if let Some(last) = self.freed.last_mut()
            && last.first + last.count == first
            && last.zeroed.is_some() == zeroed.is_some()
        {
            last.count += count;
            last.zeroed = last.zeroed.max(zeroed);
        } else if self.freed.len() < FREED_MAX {
            self.freed.push(FreeRun { first, count, zeroed });
        }
    }

    /// The next run to try, of those that were freed.
    fn pop_freed(&mut self) -> Option<FreeRun> {
        self.freed.pop()
    }
}

impl<S: Storage> Layer<S> {
    /// Takes up to `want` clusters, side by side as far as possible, all counted by one block.
    pub(super) async fn reserve(&self, space: &mut Space, want: u64) -> Result<Grant, Error> {
        while let Some(mut run) = space.pop_freed() {
            let want = want.min(run.count);
            let grant = self.take_free(space, run.first, want, run.zeroed).await?;
            let Some(grant) = grant else { continue };
            let taken = grant.first + grant.count - run.first;
            if taken < run.count {
                run.first += taken;
                run.count -= taken;
                space.freed.push(run);
            }
            return Ok(grant);
        }
        for _ in 0..BLOCKS_SEARCHED_MAX {
            if space.end <= space.cursor {
                break;
            }
            if let Some(first) = self.search_block(space).await? {
                let want = want.min(space.end - first);
                if let Some(grant) = self.take_free(space, first, want, None).await? {
                    space.cursor = grant.first + grant.count;
                    return Ok(grant);
                }
            }
        }
        loop {
            let first = space.end;
            // Beyond the end of the file, but somebody may have counted clusters there all the
            // same.
            match self.take_free(space, first, want, Some(After::NOTHING)).await? {
                Some(mut grant) => {
                    space.end = space.end.max(grant.first + grant.count);
                    // Given back if the request is dropped meanwhile.
                    let first = HostCluster::new(grant.first);
                    let granted = Granted::new(self, first, grant.count);
                    grant.zeroed = self.extend_file(space.end).await;
                    granted.keep_all();
                    return Ok(grant);
                }
                None => space.end = space.end.max(first + 1),
            }
        }
    }

    /// Makes the file long enough for `end` clusters: a power cut must not leave an entry that
    /// points past its end. Returns what has to be durable before an entry; `None` where the file
    /// cannot be made longer in advance, so that the data itself has to be.
    async fn extend_file(&self, end: u64) -> Option<After> {
        let writer = self.writer().ok()?;
        let file = self.file();
        let length = ByteCount::new(end * self.geometry().cluster_size());
        if file.len().await.ok()? < length {
            writer.change(file.set_len(length, Purpose::FileLength)).await.ok()?;
            self.metadata().barriers().touch();
        }
        Some(self.metadata().barriers().next())
    }

    /// Cuts off what was reserved at the end of the file and never used.
    pub(crate) async fn cut_file(&self) -> Result<(), Error> {
        let writer = self.writer()?;
        let mut space = self.lock_space(writer).await;
        let mut end = space.end;
        // What an entry in the file may name stays.
        let least = space.burnt.iter().map(|cluster| cluster + 1).max();
        let least = space.end_at_open.max(least.unwrap_or(0));
        while least < end && self.refcount_in(&space, end - 1).await? == 0 {
            end -= 1;
        }
        let file = self.file();
        let length = ByteCount::new(end * self.geometry().cluster_size());
        if end < space.end && length < file.len().await? {
            space.end = end;
            writer.change(file.set_len(length, Purpose::FileLength)).await?;
            self.metadata().barriers().touch();
        }
        Ok(())
    }

    /// The first free cluster from the cursor on in the cursor's block, below the end. Moves the
    /// cursor there, or behind the block.
    async fn search_block(&self, space: &mut Space) -> Result<Option<u64>, Error> {
        let entries = self.geometry().refcount_block_entries();
        let block_start = space.cursor / entries * entries;
        let block = self.refcount_block(space, space.cursor).await?;
        let found = match block {
            // Nothing is counted there at all.
            None => Some(space.cursor),
            Some(block) => block.next_zero(space.cursor - block_start).map(|at| block_start + at),
        };
        space.cursor = found.unwrap_or(block_start + entries);
        let found = found.filter(|found| *found < space.end && !space.burnt.contains(found));
        if found.is_none() && space.cursor < block_start + entries {
            space.cursor += 1;
        }
        Ok(found)
    }

    /// Takes the free clusters from `first` on, up to the first used one and the end of the block;
    /// `None` when there is none. A block that is missing is made, and lies in the first cluster.
    pub(super) async fn take_free(
        &self,
        space: &mut Space,
        first: u64,
        want: u64,
        zeroed: Option<After>,
    ) -> Result<Option<Grant>, Error> {
        let mut first = first;
        let geometry = self.geometry();
        let entries = geometry.refcount_block_entries();
        if space.burnt.contains(&first) {
            return Ok(None);
        }
        loop {
            let block = match self.refcount_block(space, first).await? {
                Some(block) => block,
                None => {
                    let grown = self.make_block(space, first).await?;
                    first = grown;
                    continue;
                }
            };
            let index = first % entries;
            let mut count = block.zero_run(index, want);
            let burnt = space.burnt.iter().filter(|burnt| first <= **burnt).min();
            count = count.min(burnt.map_or(u64::MAX, |burnt| burnt - first));
            if count == 0 {
                return Ok(None);
            }
            let change = self.metadata().set_refcounts(&block, index, count, 1);
            // The block has just left the cache: get it anew.
            let Some(change) = change else { continue };
            return Ok(Some(Grant { first, count, zeroed, block, change }));
        }
    }
}
