//! L2 tables in memory, loaded slice by slice.
//!
//! A table fills a cluster: 64 KiB as a rule, up to 2 MiB. Reading all of it to learn one entry
//! would be waste, so a table is a row of slices, one block of the host file each, and a slice is
//! read when first needed: one loader, any number of waiters.
//!
//! A table with a slice that differs from the file stays in the cache; one that has left the cache
//! takes no changes any more, and whoever wants to make one gets the table anew.

use std::sync::{Arc, PoisonError};

use cowl_format::{
    ByteCount, Corruption, Geometry, Header, HostCluster, HostOffset, L1Entry, L2Entry, L2Index,
};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::cache::async_lru::{AsyncLruCacheBackend, Charge};
use crate::cache::l2_slice::{Became, L2Slice};
use crate::flush::After;
use crate::sync::{Mutex, MutexGuard, OnceCell};
use crate::{Error, host};

/// One L2 table.
pub struct L2Table {
    host: HostOffset,
    /// A slice has two to this power entries.
    slice_bits: u32,
    slices: Box<[OnceCell<L2Slice>]>,
    life: Mutex<Life>,
    charge: Charge,
}

#[derive(Default)]
struct Life {
    /// Slices that differ from the file, or are being written; one more for a table that is new.
    unclean: usize,
    has_left: bool,
}

/// A table that has left the cache takes no changes.
#[derive(Debug)]
pub(crate) struct HasLeft;

impl L2Table {
    fn empty(host: HostOffset, geometry: Geometry, slice_bytes: usize, charge: Charge) -> Self {
        let count = geometry.cluster_len() / slice_bytes;
        let entries = slice_bytes / geometry.l2_entry_len();
        assert!(entries.is_power_of_two(), "clusters and blocks are powers of two");
        // The empty table has a cost too: an image of many sparse tables must not escape the limit.
        charge.add(size_of::<Self>() + count * size_of::<OnceCell<L2Slice>>());
        Self {
            host,
            slice_bits: entries.ilog2(),
            slices: (0..count).map(|_| OnceCell::new()).collect(),
            life: Mutex::default(),
            charge,
        }
    }

    /// Where the table starts.
    #[must_use]
    pub fn host(&self) -> HostOffset {
        self.host
    }

    /// The slice that holds `index`, if it was loaded.
    pub(crate) fn slice(&self, index: L2Index) -> Option<&L2Slice> {
        self.slices[self.slice_number(index)].get()
    }

    /// Which slice holds `index`.
    pub(crate) fn slice_number(&self, index: L2Index) -> usize {
        (index.get() >> self.slice_bits) as usize
    }

    /// Slice number `number`, which was loaded.
    pub(crate) fn loaded_slice(&self, number: usize) -> &L2Slice {
        self.slices[number].get().expect("only a loaded slice is ever dirty")
    }

    /// How many slices there are.
    pub(crate) fn slice_count(&self) -> usize {
        self.slices.len()
    }

    /// The number of the first entry of a slice.
    pub(crate) fn first_of(&self, number: usize) -> L2Index {
        L2Index::new(u32::try_from(number).expect("few slices") << self.slice_bits)
    }

    /// Sets an entry of a table that nobody else has yet.
    pub(crate) fn fill(&self, index: L2Index, entry: L2Entry) {
        self.loaded_slice(self.slice_number(index)).fill(index.get(), entry);
    }

    /// Replaces an entry of a loaded slice. Tells what that did to the slice.
    pub(crate) fn set(
        &self,
        index: L2Index,
        entry: L2Entry,
        after: After,
    ) -> Result<Became, HasLeft> {
        let slice = self.loaded_slice(self.slice_number(index));
        slice.set(index.get(), entry, after, || self.add_unclean()).ok_or(HasLeft)
    }

    /// One more reason to stay in the cache. Fails for a table that has left it.
    pub(crate) fn add_unclean(&self) -> bool {
        let mut life = self.life();
        if life.has_left {
            return false;
        }
        life.unclean += 1;
        true
    }

    /// One reason less.
    pub(crate) fn remove_unclean(&self) {
        let mut life = self.life();
        assert!(0 < life.unclean);
        life.unclean -= 1;
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Loads L2 tables of one image.
pub struct L2CacheBackend<S> {
    file: Arc<S>,
    header: Arc<Header>,
    slice_bytes: usize,
    /// Where no L2 table can be: start and length of the header, the L1 and the refcount table.
    areas: Mutex<[(u64, u64); 3]>,
}

impl<S: Storage> L2CacheBackend<S> {
    pub(crate) fn new(file: &Arc<S>, header: &Arc<Header>) -> Self {
        let block = file.capabilities().block_size as usize;
        let slice_bytes = block.next_power_of_two().clamp(512, header.geometry.cluster_len());
        let areas = Mutex::new(areas_of(header));
        Self { file: Arc::clone(file), header: Arc::clone(header), slice_bytes, areas }
    }

    /// The L1 or the refcount table has moved.
    pub(crate) fn header_changed(&self, header: &Header) {
        *self.areas.lock().unwrap_or_else(PoisonError::into_inner) = areas_of(header);
    }

    /// What a table is found by.
    pub(crate) fn key_of(&self, table: &L2Table) -> HostCluster {
        self.header.geometry.host_cluster(table.host)
    }

    /// A table without any mapping, which is not in the file yet.
    pub(crate) fn new_table(&self, cluster: HostCluster, charge: Charge) -> L2Table {
        let geometry = self.header.geometry;
        let host = geometry.host_cluster_start(cluster);
        let table = L2Table::empty(host, geometry, self.slice_bytes, charge);
        let zeros = vec![0; self.slice_bytes];
        for number in 0..table.slice_count() {
            table.slices[number].set_blocking(self.slice(&table, number, &zeros)).ok();
        }
        table.charge.add(geometry.cluster_len());
        table
    }

    /// Reads the slice of `table` that holds `index`. Returns whether this call read it.
    pub(crate) async fn load_slice(&self, table: &L2Table, index: L2Index) -> Result<bool, Error> {
        let number = table.slice_number(index);
        let mut loaded = false;
        let load = async || {
            let slice = self.read_slice(table, number).await?;
            loaded = true;
            Ok::<_, Error>(slice)
        };
        table.slices[number].get_or_try_init(load).await?;
        if loaded {
            table.charge.add(self.slice_bytes + size_of::<L2Slice>());
        }
        Ok(loaded)
    }

    async fn read_slice(&self, table: &L2Table, number: usize) -> Result<L2Slice, Error> {
        let at = table.host + ByteCount::from_usize(number * self.slice_bytes);
        let buffer = IoBuffer::zeroed(self.slice_bytes);
        let (result, buffer) = host::read(self.file.as_ref(), at, buffer, Purpose::L2Table).await;
        result?;
        Ok(self.slice(table, number, &buffer))
    }

    fn slice(&self, table: &L2Table, number: usize, bytes: &[u8]) -> L2Slice {
        let entry_words = self.header.geometry.l2_entry_len() / 8;
        L2Slice::new(bytes, entry_words, table.first_of(number).get())
    }
}

impl<S: Storage> AsyncLruCacheBackend for L2CacheBackend<S> {
    type Key = HostCluster;
    type Value = L2Table;

    async fn load(&self, key: HostCluster, charge: Charge) -> Result<L2Table, Error> {
        let geometry = self.header.geometry;
        let host = geometry.host_cluster_start(key);
        let end = host.get() + geometry.cluster_size();
        let areas = *self.areas.lock().unwrap_or_else(PoisonError::into_inner);
        // An L2 table inside one of them is an image made to confuse.
        if areas.iter().any(|&(start, length)| start < end && host.get() < start + length) {
            let corruption = Corruption::PointsIntoMetadata { what: "L2 table", at: host };
            return Err(Error::Corrupt { path: self.file.name().to_owned(), corruption });
        }
        Ok(L2Table::empty(host, geometry, self.slice_bytes, charge))
    }

    fn charge(table: &L2Table) -> &Charge {
        &table.charge
    }

    fn retire(table: &L2Table) -> bool {
        let mut life = table.life();
        if life.unclean == 0 {
            life.has_left = true;
        }
        life.has_left
    }
}

fn areas_of(header: &Header) -> [(u64, u64); 3] {
    let l1_bytes = u64::from(header.l1_entries) * size_of::<L1Entry>() as u64;
    [
        (0, header.geometry.cluster_size()),
        (header.l1_offset.get(), l1_bytes),
        (header.refcount_table_offset.get(), header.refcount_table_bytes().get()),
    ]
}
