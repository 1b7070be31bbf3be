//! Takes the clusters of a new image from any number of threads and writes its tables at the end.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use cowl_format::{
    ByteCount, CompressedDescriptor, Geometry, GuestOffset, Header, HostCluster, HostOffset,
    L1Entry, L2Entry, SubclusterBitmap, Version,
};
use cowl_storage::{IoBuffer, Purpose, Storage, ZeroMode};

use crate::create::header::header;
use crate::create::host_space::HostSpace;
use crate::create::options::{CreateError, CreateOptions};
use crate::create::{Preallocation, preallocate, refcounts};

/// The files of a new image, both empty.
pub struct BuilderFiles<S> {
    /// The image file.
    pub image: Arc<S>,
    /// The external data file, for an image that has one.
    pub data: Option<Arc<S>>,
}

/// A cluster to store compressed.
#[derive(Clone, Copy, Debug)]
pub struct CompressedCluster<'a> {
    /// Its first guest byte.
    pub guest: GuestOffset,
    /// Its stream, shorter than a cluster.
    pub stream: &'a [u8],
}

/// The cluster for a refcount table of one cluster.
const SPARE: HostCluster = HostCluster::new(1);

/// The cluster of refcount block 0; the L1 table follows.
const FIRST_BLOCK: HostCluster = HostCluster::new(2);

/// An L2 table under construction, in host byte order.
type Table = Box<[AtomicU64]>;

/// Tables side by side in the L1 table. Most of a huge disk has none, and costs no memory for them.
type TableGroup = Box<[OnceLock<Table>]>;

const TABLES_PER_GROUP: usize = 512;

/// A new image under construction.
///
/// Dropping it leaves a file without a header, which nothing takes for an image.
pub struct Builder<S> {
    files: BuilderFiles<S>,
    header: Header,
    space: Mutex<HostSpace>,
    tables: Box<[OnceLock<TableGroup>]>,
    /// Where guest byte 0 lies, once all space is reserved in advance.
    reserved: OnceLock<HostOffset>,
}

impl<S: Storage> Builder<S> {
    /// Starts an image.
    pub fn new(files: BuilderFiles<S>, options: &CreateOptions) -> Result<Self, CreateError> {
        let geometry = options.check()?;
        assert_eq!(files.data.is_some(), options.data_file.is_some());
        let mut header = header(options, geometry);
        header.refcount_table_offset = geometry.host_cluster_start(SPARE);
        header.refcount_table_clusters = 1;
        let l1_first = HostCluster::new(FIRST_BLOCK.get() + 1);
        // An empty disk has no L1 table, and QEMU says so by naming none.
        if 0 < header.l1_entries {
            header.l1_offset = geometry.host_cluster_start(l1_first);
        }
        // The header has to fit now, not after gigabytes were written.
        header.encode().ok_or(CreateError::HeaderTooLarge)?;
        let l1_clusters = geometry.clusters_for(u64::from(header.l1_entries) * 8);
        let first_free = HostCluster::new(l1_first.get() + l1_clusters);
        Ok(Self {
            tables: unset((header.l1_entries as usize).div_ceil(TABLES_PER_GROUP)),
            files,
            header,
            space: Mutex::new(HostSpace::new(geometry, first_free)),
            reserved: OnceLock::new(),
        })
    }

    /// Cluster size and entry widths.
    #[must_use]
    pub fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    /// Size of the disk.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.header.size
    }

    /// Whether clusters can say that they read as zeros: not in version 2.
    #[must_use]
    pub fn has_zero_clusters(&self) -> bool {
        self.header.version == Version::V3
    }

    /// Stores `data` from `guest` on, one run of host clusters. `guest` is cluster-aligned; `data`
    /// is whole clusters, except at the end of the disk.
    ///
    /// Each guest cluster is stored at most once.
    pub async fn write(&self, guest: GuestOffset, data: IoBuffer) -> Result<(), CreateError> {
        let geometry = self.geometry();
        let clusters = geometry.clusters_for(data.len() as u64);
        let end = guest.get() + data.len() as u64;
        assert!(guest.is_aligned_to(geometry.cluster_size()));
        assert!(end == self.size().get() || geometry.is_cluster_aligned(end));
        assert!(end <= self.size().get());
        let host = self.place(guest, clusters);
        let (result, _) = self.data_file().write(host, data, Purpose::GuestData).await;
        result?;
        self.map_run(guest, host, clusters);
        Ok(())
    }

    /// Reserves host space for the whole disk: mapped, and allocated as far as `preallocation` asks
    /// for it. Clusters written later go to their reserved place.
    ///
    /// To be called first, and once.
    pub async fn preallocate(&self, preallocation: Preallocation) -> Result<(), CreateError> {
        let size = self.size();
        if preallocation == Preallocation::Off || size.get() == 0 {
            return Ok(());
        }
        let geometry = self.geometry();
        let clusters = geometry.clusters_for(size.get());
        let host = self.place(GuestOffset::ZERO, clusters);
        assert!(self.reserved.set(host).is_ok());
        for index in 0..clusters {
            let offset = ByteCount::new(index * geometry.cluster_size());
            let entry = match geometry.has_extended_l2() {
                false => L2Entry::data(host + offset, true, geometry),
                // The space is there, but nothing in it is data yet: a backing file shows through.
                true => {
                    let bitmap = SubclusterBitmap::UNALLOCATED;
                    L2Entry::subclusters(host + offset, bitmap, geometry)
                }
            };
            self.map(GuestOffset::ZERO + offset, entry);
        }
        preallocate::allocate(self.data_file().as_ref(), host, size, preallocation).await
    }

    fn data_file(&self) -> &Arc<S> {
        self.files.data.as_ref().unwrap_or(&self.files.image)
    }

    /// Host space for a run of guest clusters.
    fn place(&self, guest: GuestOffset, clusters: u64) -> HostOffset {
        let geometry = self.geometry();
        match (&self.files.data, self.reserved.get()) {
            (Some(_), _) => HostOffset::new(guest.get()),
            (None, Some(start)) => *start + ByteCount::new(guest.get()),
            (None, None) => geometry.host_cluster_start(self.take(clusters)),
        }
    }

    /// Marks `length` bytes from `guest` on as reading zeros: whole clusters, except at the end of
    /// the disk. Needed only over a backing file; without one, what is not stored reads as zeros.
    pub fn mark_zero(&self, guest: GuestOffset, length: ByteCount) {
        assert!(self.has_zero_clusters());
        let geometry = self.geometry();
        let mut at = guest;
        for _ in 0..geometry.clusters_for(length.get()) {
            // Space that was reserved stays with its cluster.
            let host = self.reserved.get().map(|start| *start + ByteCount::new(at.get()));
            self.map(at, L2Entry::zero(host, geometry));
            at = at + ByteCount::new(geometry.cluster_size());
        }
    }

    /// Stores compressed clusters side by side, in one write.
    pub async fn write_compressed(
        &self,
        clusters: &[CompressedCluster<'_>],
    ) -> Result<(), CreateError> {
        assert!(self.files.data.is_none());
        let geometry = self.geometry();
        let lengths: Vec<usize> = clusters.iter().map(|cluster| cluster.stream.len()).collect();
        let places = self.space().streams(&lengths);
        let mut stretch: Vec<u8> = Vec::new();
        let mut start = places.first().copied().unwrap_or(HostOffset::ZERO);
        for (cluster, &at) in clusters.iter().zip(&places) {
            if start + ByteCount::from_usize(stretch.len()) != at {
                self.write_streams(start, &stretch).await?;
                stretch.clear();
                start = at;
            }
            stretch.extend(cluster.stream);
        }
        self.write_streams(start, &stretch).await?;
        for (cluster, &at) in clusters.iter().zip(&places) {
            let length = ByteCount::from_usize(cluster.stream.len());
            let descriptor = CompressedDescriptor::new(at, length, geometry)
                .ok_or(CreateError::CompressedOutOfReach { at: at.get() })?;
            self.map(cluster.guest, L2Entry::compressed(descriptor, geometry));
        }
        Ok(())
    }

    async fn write_streams(&self, at: HostOffset, bytes: &[u8]) -> Result<(), CreateError> {
        if bytes.is_empty() {
            return Ok(());
        }
        let buffer = IoBuffer::from_slice(bytes);
        let (result, _) = self.files.image.write(at, buffer, Purpose::CompressedData).await;
        Ok(result?)
    }

    /// Writes the tables, makes everything durable, then writes the header and makes that durable
    /// too.
    ///
    /// `durable` may be left out by a caller who throws the file away after a crash anyway.
    pub async fn finish(self, durable: bool) -> Result<Header, CreateError> {
        let geometry = self.geometry();
        let l1 = self.write_tables().await?;
        let file = &self.files.image;
        self.write_l1(&l1).await?;
        let mut space = self.space.into_inner().unwrap_or_else(PoisonError::into_inner);
        let table =
            refcounts::write(file.as_ref(), &mut space, SPARE, FIRST_BLOCK, geometry).await?;
        let mut header = self.header;
        header.refcount_table_offset = geometry.host_cluster_start(table.first);
        header.refcount_table_clusters = table.clusters;
        for file in [Some(file), self.files.data.as_ref()].into_iter().flatten() {
            if durable {
                file.barrier(Purpose::Barrier).await?;
            }
        }
        let bytes = header.encode().ok_or(CreateError::HeaderTooLarge)?;
        let buffer = IoBuffer::from_slice(&bytes);
        let (result, _) = file.write(HostOffset::ZERO, buffer, Purpose::Header).await;
        result?;
        if durable {
            file.barrier(Purpose::Barrier).await?;
        }
        Ok(header)
    }

    /// Writes the L1 table: the long tail of a huge disk that nothing was written to as a hole.
    async fn write_l1(&self, l1: &[(usize, L1Entry)]) -> Result<(), CreateError> {
        let file = &self.files.image;
        let all = self.header.l1_entries as usize;
        let used = l1.last().map_or(0, |(last, _)| last + 1);
        let written = match all <= L1_WHOLE_ENTRIES {
            true => all,
            false => used.max(1).next_multiple_of(L1_BLOCK_ENTRIES).min(all),
        };
        let mut bytes = IoBuffer::zeroed(written * 8);
        for (index, entry) in l1 {
            bytes[index * 8..][..8].copy_from_slice(&entry.raw().to_be_bytes());
        }
        let tail = self.header.l1_offset + ByteCount::from_usize(bytes.len());
        if !bytes.is_empty() {
            let (result, _) = file.write(self.header.l1_offset, bytes, Purpose::L1Table).await;
            result?;
        }
        if written < all {
            let length = ByteCount::from_usize((all - written) * 8);
            file.zero(tail, length, ZeroMode::MayUnmap, Purpose::L1Table).await?;
        }
        Ok(())
    }

    /// Writes all L2 tables side by side and returns the entries of the L1 table that name them,
    /// with their indices, in order.
    async fn write_tables(&self) -> Result<Vec<(usize, L1Entry)>, CreateError> {
        let geometry = self.geometry();
        let cluster_len = geometry.cluster_len();
        let tables = || {
            let groups = self.tables.iter().enumerate();
            let groups = groups.filter_map(|(index, group)| Some((index, group.get()?)));
            groups.flat_map(|(index, group)| {
                let tables = (index * TABLES_PER_GROUP..).zip(group);
                tables.filter_map(|(index, table)| Some((index, table.get()?)))
            })
        };
        let used = tables().count();
        let first = self.take(used as u64);
        let mut l1 = Vec::with_capacity(used);
        let mut batch = TableBatch::new(geometry.host_cluster_start(first));
        for (next, (index, table)) in (first.get()..).zip(tables()) {
            let host = geometry.host_cluster_start(HostCluster::new(next));
            l1.push((index, L1Entry::new(host, true, geometry)));
            let words = table.iter().map(|word| word.load(Ordering::Relaxed).to_be_bytes());
            batch.bytes.extend(words.flatten());
            if TableBatch::BYTES <= batch.bytes.len() + cluster_len {
                batch.write(self.files.image.as_ref()).await?;
            }
        }
        batch.write(self.files.image.as_ref()).await?;
        Ok(l1)
    }

    fn take(&self, clusters: u64) -> HostCluster {
        self.space().clusters(clusters)
    }

    fn space(&self) -> MutexGuard<'_, HostSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn map_run(&self, guest: GuestOffset, host: HostOffset, clusters: u64) {
        let geometry = self.geometry();
        for index in 0..clusters {
            let offset = ByteCount::new(index * geometry.cluster_size());
            self.map(guest + offset, L2Entry::data(host + offset, true, geometry));
        }
    }

    fn map(&self, guest: GuestOffset, entry: L2Entry) {
        let geometry = self.geometry();
        let l1 = geometry.l1_index(guest).expect("within the disk").get() as usize;
        let words = geometry.cluster_len() / 8;
        let group = self.tables[l1 / TABLES_PER_GROUP].get_or_init(|| unset(TABLES_PER_GROUP));
        let table = &group[l1 % TABLES_PER_GROUP];
        let table = table.get_or_init(|| bytemuck::zeroed_slice_box(words));
        let entry_words = geometry.l2_entry_len() / 8;
        let word = geometry.l2_index(guest).get() as usize * entry_words;
        table[word].store(entry.raw, Ordering::Relaxed);
        if entry_words == 2 {
            table[word + 1].store(entry.bitmap, Ordering::Relaxed);
        }
    }
}

fn unset<T>(count: usize) -> Box<[OnceLock<T>]> {
    (0..count).map(|_| OnceLock::new()).collect()
}

/// Entries of an L1 table that is written whole, 64 KiB: that costs no more than a hole in it.
const L1_WHOLE_ENTRIES: usize = 8192;

/// Entries of a longer one that are written together, 4 KiB: whoever opens it reads what was
/// written.
const L1_BLOCK_ENTRIES: usize = 512;

/// Tables gathered for one write.
struct TableBatch {
    at: HostOffset,
    bytes: Vec<u8>,
}

impl TableBatch {
    const BYTES: usize = 4 << 20;

    fn new(at: HostOffset) -> Self {
        Self { at, bytes: Vec::new() }
    }

    async fn write<S: Storage>(&mut self, file: &S) -> Result<(), CreateError> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        let buffer = IoBuffer::from_slice(&self.bytes);
        let (result, _) = file.write(self.at, buffer, Purpose::L2Table).await;
        result?;
        self.at = self.at + ByteCount::from_usize(self.bytes.len());
        self.bytes.clear();
        Ok(())
    }
}
