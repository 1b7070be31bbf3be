//! Changing mappings: the L2 entries of guest clusters that the caller has claimed.
//!
//! An entry changes in memory at once and in the file with a later commit, which waits for what the
//! caller says. Whatever an old entry pointed to goes into quarantine, and so stays what it is
//! until nothing in the file and no request in flight points to it.

use std::sync::Arc;

use cowl_format::{GuestCluster, GuestOffset, HostCluster, HostOffset, L1Entry, L2Entry, L2Index};
use cowl_storage::Storage;

use crate::allocator::{ClusterUse, Reference};
use crate::cache::L2Table;
use crate::flush::After;
use crate::{Error, Layer};

/// An entry before and after a change.
pub(crate) struct Change {
    pub(crate) entry: L2Entry,
    pub(crate) after: After,
}

impl<S: Storage> Layer<S> {
    /// Replaces the entry of a cluster. `change` sees the old entry and says what comes in its
    /// place; `None` leaves it. It may be called again.
    ///
    /// Nothing is awaited once the entry has changed: what the caller does right behind the call
    /// happens whenever the change did.
    pub(crate) async fn relink(
        &self,
        cluster: GuestCluster,
        mut change: impl FnMut(L2Entry) -> Option<Change>,
    ) -> Result<(), Error> {
        let geometry = self.geometry();
        let guest = geometry.guest_cluster_start(cluster);
        let index = geometry.l2_index(guest);
        loop {
            let table = self.writable_table(guest).await?;
            let slice = table.slice(index).expect("just loaded, and tables lose no slice");
            let old = slice.entry(index.get()).expect("the slice holds the entry");
            let Some(Change { entry, after }) = change(old) else { return Ok(()) };
            let freed = self.no_longer_named(guest, old, entry)?;
            // A table that has just left the cache is got anew.
            if self.metadata().set_entry(&table, index, entry, after).is_ok() {
                if let Some(what) = freed {
                    let writer = self.writer()?;
                    writer.quarantine.add_unlinked(what, &writer.epochs);
                }
                return Ok(());
            }
        }
    }

    /// The entry of a cluster as it is now.
    pub(crate) async fn entry_of(&self, cluster: GuestCluster) -> Result<L2Entry, Error> {
        let geometry = self.geometry();
        let guest = geometry.guest_cluster_start(cluster);
        let l1_index = geometry.l1_index(guest).expect("guest lies within the disk").get() as usize;
        let host = self.l1().get(l1_index).table(geometry).map_err(|fault| self.corrupt(fault))?;
        let Some(host) = host else { return Ok(L2Entry::default()) };
        self.entry_in(geometry.host_cluster(host), geometry.l2_index(guest)).await
    }

    /// An entry of the L2 table in `table`.
    pub(crate) async fn entry_in(
        &self,
        table: HostCluster,
        index: L2Index,
    ) -> Result<L2Entry, Error> {
        let table = self.metadata().l2_load(table, index).await?;
        let slice = table.slice(index).expect("just loaded, and tables lose no slice");
        Ok(slice.entry(index.get()).expect("the slice holds the entry"))
    }

    /// What `old` points to and `new` does not.
    fn no_longer_named(
        &self,
        guest: GuestOffset,
        old: L2Entry,
        new: L2Entry,
    ) -> Result<Option<Reference>, Error> {
        let what = self.reference_of(guest, old)?;
        Ok(if what == self.reference_of(guest, new)? { None } else { what })
    }

    /// What an entry holds a reference to.
    pub(crate) fn reference_of(
        &self,
        guest: GuestOffset,
        entry: L2Entry,
    ) -> Result<Option<Reference>, Error> {
        use cowl_format::ClusterMapping as Mapping;
        let header = self.header();
        if header.has_data_file() {
            return Ok(None);
        }
        let mapping = entry
            .decode(guest, header.geometry, header.version, false)
            .map_err(|fault| self.corrupt(fault))?;
        let cluster = |host: HostOffset| Reference::Clusters {
            first: header.geometry.host_cluster(host),
            count: 1,
        };
        Ok(match mapping {
            Mapping::Unallocated => None,
            Mapping::Zero { host } | Mapping::Subclusters { host, .. } => host.map(cluster),
            Mapping::Data { host } => Some(cluster(host)),
            Mapping::Compressed(descriptor) => Some(Reference::Compressed(descriptor)),
        })
    }

    /// The L2 table that describes `guest`, with that slice loaded, and the image's own: made if
    /// there is none, copied if a snapshot shares it.
    pub(crate) async fn writable_table(&self, guest: GuestOffset) -> Result<Arc<L2Table>, Error> {
        let geometry = self.geometry();
        let l1_index = geometry.l1_index(guest).expect("guest lies within the disk").get() as usize;
        let index = geometry.l2_index(guest);
        if let Some(cluster) = self.own_table(l1_index)? {
            return self.metadata().l2_load(cluster, index).await;
        }
        let writer = self.writer()?;
        let _one_at_a_time = writer.table_lock(l1_index).lock().await;
        if let Some(cluster) = self.own_table(l1_index)? {
            return self.metadata().l2_load(cluster, index).await;
        }
        let old = self.l1().get(l1_index);
        let old = old.table(geometry).map_err(|fault| self.corrupt(fault))?;
        let mut granted = self.allocate(1, ClusterUse::Table).await?;
        let cluster = granted.run().first;
        let table = match old {
            None => self.metadata().new_table(cluster),
            Some(old) => self.copy_table(geometry.host_cluster(old), cluster).await?,
        };
        writer.roles.add(cluster, 1);
        self.metadata().l2_insert(cluster, Arc::clone(&table)).await?;
        let host = geometry.host_cluster_start(cluster);
        self.l1().set(l1_index, L1Entry::new(host, true, geometry));
        granted.keep_first();
        if let Some(old) = old {
            let first = geometry.host_cluster(old);
            let what = Reference::Clusters { first, count: 1 };
            writer.quarantine.add_unlinked(what, &writer.epochs);
        }
        Ok(table)
    }

    /// The L2 table at this index, if there is one that nobody shares.
    fn own_table(&self, l1_index: usize) -> Result<Option<HostCluster>, Error> {
        let geometry = self.geometry();
        let entry = self.l1().get(l1_index);
        if !entry.is_copied() {
            return Ok(None);
        }
        let host = entry.table(geometry).map_err(|fault| self.corrupt(fault))?;
        Ok(host.map(|host| geometry.host_cluster(host)))
    }

    /// A copy of the table in `old`, for `new`.
    async fn copy_table(&self, old: HostCluster, new: HostCluster) -> Result<Arc<L2Table>, Error> {
        let copy = self.metadata().new_table(new);
        for index in 0..self.geometry().l2_entries() {
            let index = L2Index::new(index);
            let entry = self.entry_in(old, index).await?;
            // What the table points to is shared as the table is.
            copy.fill(index, entry.without_copied());
        }
        Ok(copy)
    }
}
