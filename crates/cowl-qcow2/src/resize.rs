//! Changing the size of an open disk, while requests go on.
//!
//! Growing: the L1 table first, then whatever would show in the new range (a longer backing file,
//! the rest of the last cluster) is zeroed, space is preallocated, all of it is committed, and the
//! header's size is last. Shrinking: requests past the new end fail at once and those under way are
//! waited for; the range is zeroed and committed, then the header's size, and the range is unlinked
//! at last. So neither stale content nor a layer below shows, whenever the power is cut.

use cowl_block::ZeroRequest;
use cowl_format::{
    ByteCount, GuestCluster, GuestOffset, HeaderField, HostCluster, L1Entry, L1Index, L2Entry,
    L2Index, Version,
};
use cowl_storage::{Allocation, IoBuffer, Purpose, Storage, ZeroMode};

use crate::allocator::{ClusterUse, Reference};
use crate::flush::Edge;
use crate::mapping::Change;
use crate::request::{Claims, Clear};
use crate::{Error, Image, Layer, Preallocation};

impl<S: Storage> Image<S> {
    /// Makes the disk `size` bytes large, durably: a multiple of 512.
    ///
    /// New bytes read as zeros, also over a longer backing file. A smaller size loses what lies
    /// behind it, and takes no preallocation. After an error, and when the future is dropped, the
    /// disk has the old size, as [`Self::size`] tells, unless the new one was durable already; of a
    /// failed shrink the range may read as zeros.
    pub async fn resize(&self, size: ByteCount, preallocation: Preallocation) -> Result<(), Error> {
        let top = self.top();
        let writer = top.before_change().await?;
        let _one_at_a_time = top.lock_settled(&writer.resizing).await;
        self.check_new_size(size, preallocation)?;
        let old = self.size();
        if size < old {
            self.shrink(old, size).await
        } else if old < size {
            self.grow(old, size, preallocation).await
        } else {
            Ok(())
        }
    }

    fn check_new_size(&self, size: ByteCount, preallocation: Preallocation) -> Result<(), Error> {
        let refuse = |what| Err(Error::InvalidRequest { what });
        let header = self.top().header();
        if !size.get().is_multiple_of(512) {
            return refuse("The new size must be a multiple of 512");
        }
        if header.geometry.size_max() < size.get() {
            return refuse("The new size is too large for the image's cluster size");
        }
        if 0 < header.snapshot_count && header.version == Version::V2 {
            return refuse("Can't resize a version 2 image which has snapshots");
        }
        if matches!(&header.bitmaps, Some(Ok(bitmaps)) if 0 < bitmaps.count) {
            return refuse("Can't resize an image which has bitmaps");
        }
        if size < self.size() && preallocation != Preallocation::Off {
            return refuse("Preallocation can't be used for shrinking an image");
        }
        Ok(())
    }

    async fn grow(
        &self,
        old: ByteCount,
        size: ByteCount,
        preallocation: Preallocation,
    ) -> Result<(), Error> {
        let top = self.top();
        let geometry = top.geometry();
        top.grow_l1(geometry.l1_entries_for(size.get())).await?;
        top.set_mapped_size(size);
        let undone = OldSize { layer: top, old };
        self.fill_grown(old, size, preallocation).await?;
        top.update_header(HeaderField::Size, |header| header.size = size).await?;
        core::mem::forget(undone);
        top.set_size(size);
        Ok(())
    }

    async fn fill_grown(
        &self,
        old: ByteCount,
        size: ByteCount,
        preallocation: Preallocation,
    ) -> Result<(), Error> {
        let top = self.top();
        let geometry = top.geometry();
        let mut preallocation = preallocation;
        if top.header().has_raw_data_file() {
            let file = top.data_file();
            top.writer()?.change(file.set_len(size, Purpose::FileLength)).await?;
            // Every cluster of such an image has its entry from the start.
            if preallocation == Preallocation::Off {
                preallocation = Preallocation::Metadata;
            }
        }
        // Of a cluster that was cut by the old end, of a longer layer below, and of a shrink that a
        // power cut interrupted, nothing may show.
        let (start, end) = (GuestOffset::new(old.get()), GuestOffset::new(size.get()));
        self.zero_unchecked(start, end, ZeroRequest::MayUnmap).await?;
        if preallocation != Preallocation::Off {
            let first = geometry.clusters_for(old.get());
            let end = geometry.clusters_for(size.get());
            self.preallocate(first, end, preallocation).await?;
        }
        top.commit().await
    }

    async fn preallocate(&self, first: u64, end: u64, how: Preallocation) -> Result<(), Error> {
        let top = self.top();
        let mut next = first;
        while next < end {
            let count = (end - next).min(Claims::AT_ONCE_MAX);
            let claims = &top.writer()?.claims;
            let _claim = claims.claim(GuestCluster::new(next), count).await;
            next += top.preallocate_run(next, count, how).await?;
            top.make_room().await?;
        }
        Ok(())
    }

    async fn shrink(&self, old: ByteCount, size: ByteCount) -> Result<(), Error> {
        let top = self.top();
        top.set_size(size);
        let undone = OldSize { layer: top, old };
        top.drain().await?;
        self.blank(old, size).await?;
        top.update_header(HeaderField::Size, |header| header.size = size).await?;
        core::mem::forget(undone);
        self.forget(old, size).await?;
        top.set_mapped_size(size);
        if top.header().has_raw_data_file() {
            let file = top.data_file();
            top.writer()?.change(file.set_len(size, Purpose::FileLength)).await?;
        }
        Ok(())
    }

    /// Makes everything from `size` on read as zeros, durably: what is cut off must not show again
    /// when the disk grows, and what lies below must not show before the size is changed.
    async fn blank(&self, old: ByteCount, size: ByteCount) -> Result<(), Error> {
        let top = self.top();
        let (start, end) = (GuestOffset::new(size.get()), GuestOffset::new(old.get()));
        if top.header().version == Version::V2 && self.has_below() {
            // Only what is left of the last cluster: the rest goes once the size is durable.
            let cluster = top.geometry().cluster_size();
            let shown = GuestOffset::new(size.get().next_multiple_of(cluster).min(old.get()));
            self.zero_unchecked(start, shown, ZeroRequest::MayUnmap).await?;
        } else {
            self.zero_unchecked(start, end, ZeroRequest::MayUnmap).await?;
        }
        top.commit().await
    }

    /// Unlinks everything from `size` on.
    async fn forget(&self, old: ByteCount, size: ByteCount) -> Result<(), Error> {
        let top = self.top();
        let geometry = top.geometry();
        let cluster_end = size.get().next_multiple_of(geometry.cluster_size());
        let tables_end = size.get().next_multiple_of(geometry.l2_coverage());
        let end = old.get().next_multiple_of(geometry.cluster_size());
        let at = GuestOffset::new;
        if cluster_end < end.min(tables_end) {
            self.clear(at(cluster_end), at(end.min(tables_end)), Clear::Forget).await?;
        }
        let first = geometry.l1_entries_for(size.get());
        for index in first..geometry.l1_entries_for(old.get()) {
            top.drop_table(u32::try_from(index).expect("an L1 table is short")).await?;
            top.make_room().await?;
        }
        top.commit().await
    }
}

/// Gives a disk its old size back, unless it is forgotten: the header has that one still, or gets
/// it back before the next change.
struct OldSize<'a, S: Storage> {
    layer: &'a Layer<S>,
    old: ByteCount,
}

impl<S: Storage> Drop for OldSize<'_, S> {
    fn drop(&mut self) {
        self.layer.set_mapped_size(self.old);
        self.layer.set_size(self.old);
    }
}

impl<S: Storage> Layer<S> {
    /// Returns when every request in flight is done, also of those that are dropped meanwhile.
    async fn drain(&self) -> Result<(), Error> {
        let epochs = &self.writer()?.epochs;
        let epoch = epochs.now();
        while !epochs.drain(epoch).await {
            self.settle().await;
        }
        Ok(())
    }

    /// Moves the L1 table to a place where it has at least `needed` entries.
    async fn grow_l1(&self, needed: u64) -> Result<(), Error> {
        let writer = self.writer()?;
        let geometry = self.geometry();
        let entries = u32::try_from(needed).expect("the size was checked");
        if entries <= writer.header().l1_entries {
            return Ok(());
        }
        // Nobody makes a table meanwhile, so that a commit leaves the L1 table as the file has it.
        let _no_new_tables = writer.lock_all_tables().await;
        self.commit().await?;
        let count = geometry.clusters_for(needed * 8);
        let area = self.reserve_area(&mut *self.lock_space(writer).await, count).await?;
        let first = area.run().first;
        let at = geometry.host_cluster_start(first);
        let length = ByteCount::new(count * geometry.cluster_size()).as_usize();
        let mut bytes = IoBuffer::zeroed(length);
        for (word, entry) in bytes.chunks_exact_mut(8).zip(self.l1().entries(entries as usize)) {
            word.copy_from_slice(&entry.raw().to_be_bytes());
        }
        writer.change(self.file().write(at, bytes, Purpose::L1Table)).await.0?;
        self.metadata().barriers().touch();
        // The table and its refcounts, before the header names it.
        self.commit_refcounts().await?;
        let mut old = (HostCluster::ZERO, 0);
        self.update_header(HeaderField::L1Table, |header| {
            let clusters = geometry.clusters_for(u64::from(header.l1_entries) * 8);
            old = (geometry.host_cluster(header.l1_offset), clusters);
            (header.l1_offset, header.l1_entries) = (at, entries);
        })
        .await?;
        area.keep_all();
        writer.roles.add(first, count);
        if 0 < old.1 && HostCluster::ZERO < old.0 {
            let what = Reference::Clusters { first: old.0, count: old.1 };
            writer.quarantine.add_unused(what, &writer.epochs);
        }
        Ok(())
    }

    /// Gives host clusters to guest clusters from `first` on; returns to how many.
    async fn preallocate_run(
        &self,
        first: u64,
        count: u64,
        how: Preallocation,
    ) -> Result<u64, Error> {
        let geometry = self.geometry();
        let writer = self.writer()?;
        let guest = geometry.guest_cluster_start(GuestCluster::new(first));
        let mut granted = None;
        let (host, count, after) = if self.header().has_data_file() {
            let host = cowl_format::HostOffset::new(guest.get());
            (host, count, crate::flush::After::NOTHING)
        } else {
            let new = granted.insert(self.allocate(count, ClusterUse::Data).await?).run();
            (geometry.host_cluster_start(new.first), new.count, new.after)
        };
        let length = ByteCount::new(count * geometry.cluster_size());
        let file = self.data_file();
        let is_zeroed = granted.as_ref().is_some_and(|granted| granted.run().zeroed.is_some());
        if !is_zeroed {
            let zero = file.zero(host, length, ZeroMode::MayUnmap, Purpose::Preallocation);
            writer.change(zero).await?;
        }
        match how {
            Preallocation::Off | Preallocation::Metadata => {
                let end = ByteCount::new(host.get()) + length;
                if file.len().await? < end {
                    writer.change(file.set_len(end, Purpose::FileLength)).await?;
                }
            }
            Preallocation::Falloc | Preallocation::Full => {
                let how = match how {
                    Preallocation::Full => Allocation::WriteZeros,
                    _ => Allocation::Reserve,
                };
                let allocate = file.allocate(host, length, how, Purpose::Preallocation);
                writer.change(allocate).await?;
            }
        }
        let barriers = self.metadata().barriers();
        barriers.touch();
        let after = after.max(Edge::DataBeforeEntry.after(barriers.next()));
        for index in 0..count {
            let host = host + ByteCount::new(index * geometry.cluster_size());
            let entry = L2Entry::data(host, true, geometry);
            let change = |_| Some(Change { entry, after });
            self.relink(GuestCluster::new(first + index), change).await?;
            if let Some(granted) = &mut granted {
                granted.keep_first();
            }
        }
        Ok(count)
    }

    /// Unlinks an L2 table and all it points to.
    async fn drop_table(&self, index: u32) -> Result<(), Error> {
        let geometry = self.geometry();
        let writer = self.writer()?;
        let entry = self.l1().get(index as usize);
        let Some(host) = entry.table(geometry).map_err(|fault| self.corrupt(fault))? else {
            return Ok(());
        };
        let cluster = geometry.host_cluster(host);
        let mut freed = vec![Reference::Clusters { first: cluster, count: 1 }];
        for l2_index in (0..geometry.l2_entries()).map(L2Index::new) {
            let entry = self.entry_in(cluster, l2_index).await?;
            let guest = geometry.guest_offset(L1Index::new(index), l2_index);
            freed.extend(self.reference_of(guest, entry)?);
        }
        self.l1().set(index as usize, L1Entry::UNALLOCATED);
        for what in freed {
            writer.quarantine.add_unlinked(what, &writer.epochs);
        }
        Ok(())
    }
}
