//! L2 tables in memory, loaded slice by slice.
//!
//! A table fills a cluster: 64 KiB as a rule, up to 2 MiB. Reading all of it to learn one entry
//! would be waste, so a table is a row of slices, one block of the host file each, and a slice is
//! read when first needed: one loader, any number of waiters.
//!
//! Invariant: entry numbers in a slice are in host byte order and never change while the image is
//! open for reading.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_lock::OnceCell;
use cowl_format::{
    ByteCount, Corruption, Header, HostCluster, HostOffset, L1Entry, L2Entry, L2Index,
};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::Error;
use crate::cache::async_lru::{AsyncLruCacheBackend, Charge};
use crate::host;

/// One L2 table.
pub struct L2Table {
    host: HostOffset,
    slice_entries: u32,
    entry_words: u32,
    slices: Box<[OnceCell<Box<[AtomicU64]>>]>,
    charge: Charge,
}

/// A loaded part of an L2 table.
#[derive(Clone, Copy)]
pub(crate) struct L2Slice<'a> {
    words: &'a [AtomicU64],
    entry_words: u32,
    first: u32,
}

impl L2Table {
    /// Where the table starts.
    #[must_use]
    pub fn host(&self) -> HostOffset {
        self.host
    }

    /// The slice that holds `index`, if it was loaded.
    pub(crate) fn slice(&self, index: L2Index) -> Option<L2Slice<'_>> {
        let slice = index.get() / self.slice_entries;
        let words = self.slices[slice as usize].get()?;
        Some(self.view(words, slice))
    }

    fn view<'a>(&self, words: &'a [AtomicU64], slice: u32) -> L2Slice<'a> {
        L2Slice { words, entry_words: self.entry_words, first: slice * self.slice_entries }
    }
}

impl L2Slice<'_> {
    /// The entry at `index` of the table; `None` past the slice.
    pub(crate) fn entry(&self, index: u32) -> Option<L2Entry> {
        let word = ((index - self.first) * self.entry_words) as usize;
        let raw = self.words.get(word)?.load(Ordering::Relaxed);
        let bitmap = match self.entry_words {
            2 => self.words[word + 1].load(Ordering::Relaxed),
            _ => 0,
        };
        Some(L2Entry { raw, bitmap })
    }
}

/// Loads L2 tables of one image.
pub struct L2CacheBackend<S> {
    file: Arc<S>,
    header: Arc<Header>,
    slice_bytes: usize,
}

impl<S: Storage> L2CacheBackend<S> {
    pub(crate) fn new(file: &Arc<S>, header: &Arc<Header>) -> Self {
        let block = file.capabilities().block_size as usize;
        let slice_bytes = block.next_power_of_two().clamp(512, header.geometry.cluster_len());
        Self { file: Arc::clone(file), header: Arc::clone(header), slice_bytes }
    }

    /// Reads the slice of `table` that holds `index`. Returns whether this call read it.
    pub(crate) async fn load_slice(&self, table: &L2Table, index: L2Index) -> Result<bool, Error> {
        let slice = (index.get() / table.slice_entries) as usize;
        let mut loaded = false;
        let load = async || {
            let words = self.read_slice(table, slice).await?;
            loaded = true;
            Ok::<_, Error>(words)
        };
        table.slices[slice].get_or_try_init(load).await?;
        if loaded {
            table.charge.add(self.slice_bytes);
        }
        Ok(loaded)
    }

    async fn read_slice(&self, table: &L2Table, slice: usize) -> Result<Box<[AtomicU64]>, Error> {
        let at = table.host + ByteCount::from_usize(slice * self.slice_bytes);
        let buffer = IoBuffer::zeroed(self.slice_bytes);
        let (result, buffer) = host::read(self.file.as_ref(), at, buffer, Purpose::L2Table).await;
        result?;
        Ok(buffer
            .chunks_exact(8)
            .map(|word| AtomicU64::new(u64::from_be_bytes(word.try_into().expect("8 bytes"))))
            .collect())
    }
}

impl<S: Storage> AsyncLruCacheBackend for L2CacheBackend<S> {
    type Key = HostCluster;
    type Value = L2Table;

    async fn load(&self, key: HostCluster, charge: Charge) -> Result<L2Table, Error> {
        let geometry = self.header.geometry;
        let host = geometry.host_cluster_start(key);
        if let Err(corruption) = refuse_metadata(&self.header, host) {
            return Err(Error::Corrupt { path: self.file.name().to_owned(), corruption });
        }
        let slice_count = geometry.cluster_len() / self.slice_bytes;
        let entries = self.slice_bytes / geometry.l2_entry_len();
        // The empty table has a cost too: an image of many sparse tables must not escape the limit.
        let empty = size_of::<L2Table>() + slice_count * size_of::<OnceCell<Box<[AtomicU64]>>>();
        charge.add(empty);
        Ok(L2Table {
            host,
            slice_entries: u32::try_from(entries).expect("a slice is at most 2 MiB"),
            entry_words: if geometry.has_extended_l2() { 2 } else { 1 },
            slices: (0..slice_count).map(|_| OnceCell::new()).collect(),
            charge,
        })
    }

    fn charge(table: &L2Table) -> &Charge {
        &table.charge
    }
}

/// An L2 table inside the header, the L1 table or the refcount table is an image made to confuse.
fn refuse_metadata(header: &Header, table: HostOffset) -> Result<(), Corruption> {
    let cluster = header.geometry.cluster_size();
    let l1_bytes = u64::from(header.l1_entries) * size_of::<L1Entry>() as u64;
    let areas = [
        (0, cluster),
        (header.l1_offset.get(), l1_bytes),
        (header.refcount_table_offset.get(), header.refcount_table_bytes().get()),
    ];
    let end = table.get() + cluster;
    match areas.iter().any(|&(start, length)| start < end && table.get() < start + length) {
        true => Err(Corruption::PointsIntoMetadata { what: "L2 table", at: table }),
        false => Ok(()),
    }
}
