//! One open qcow2 file: its header, its L1 table and its caches.
//!
//! A layer knows only itself; what it does not have, the [`Image`](crate::Image) looks for below
//! it.

use std::sync::Arc;

use cowl_format::IncompatibleFeatures;
use cowl_format::{ByteCount, Corruption, Geometry, Header, HeaderField, HostCluster};
use cowl_storage::Storage;

use crate::cache::{AsyncLruCache, DecodedBackend, DecodedCluster, DecodedKey, MetadataCaches};
use crate::mapping::L1Table;
use crate::open::{BeyondEnd, LayerFiles, LayerOptions};
use crate::request::Compressors;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::writer::Writer;
use crate::{Error, Offload};

/// Least bytes of dirty tables before requests wait, however small the caches are.
const DIRTY_LEAST: usize = 64 << 10;

/// One open qcow2 file.
pub struct Layer<S: Storage> {
    files: LayerFiles<S>,
    header: Arc<Header>,
    l1: L1Table,
    /// In bytes. Only a resize changes it.
    size: AtomicU64,
    mapped_size: AtomicU64,
    data_length: ByteCount,
    beyond_end: BeyondEnd,
    metadata: MetadataCaches<S>,
    decoded: AsyncLruCache<DecodedKey, DecodedCluster, DecodedBackend<S>>,
    compressors: Arc<Compressors>,
    offload: Option<Arc<dyn Offload>>,
    /// Bytes of dirty tables from which a request waits for a write-back.
    dirty_max: usize,
    writer: Option<Box<Writer<S>>>,
}

/// What a layer's caches hold and have done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerStats {
    /// Bytes of the L1 table.
    pub l1_bytes: usize,
    /// Bytes of L2 tables and refcount blocks.
    pub metadata_bytes: usize,
    /// Bytes of decoded clusters.
    pub decoded_bytes: usize,
    /// Loads of metadata so far.
    pub metadata_misses: u64,
    /// Clusters decompressed so far.
    pub decoded_misses: u64,
}

impl<S: Storage> Layer<S> {
    pub(crate) fn assemble(
        files: LayerFiles<S>,
        header: Header,
        options: LayerOptions,
        l1: L1Table,
        size: ByteCount,
        data_length: ByteCount,
    ) -> Self {
        let cluster = header.geometry.cluster_len();
        let header = Arc::new(header);
        let limits = options.cache;
        let mut all = vec![Arc::clone(&files.image)];
        all.extend(files.data.clone());
        let metadata = MetadataCaches::with_files(
            &files.image,
            &header,
            limits.l2_bytes.div_ceil(cluster),
            limits.refcount_bytes.div_ceil(cluster),
            all,
        );
        let backend = DecodedBackend::new(
            &files.image,
            header.compression_type,
            cluster,
            options.offload.clone(),
        );
        Self {
            decoded: AsyncLruCache::new(backend, limits.decoded_bytes),
            files,
            compressors: Arc::new(Compressors::new(header.compression_type)),
            offload: options.offload,
            dirty_max: (limits.l2_bytes / 2).max(DIRTY_LEAST),
            writer: None,
            header,
            l1,
            size: AtomicU64::new(size.get()),
            mapped_size: AtomicU64::new(size.get()),
            data_length,
            beyond_end: options.beyond_end,
            metadata,
        }
    }

    /// Size of the disk, or of the snapshot that is shown.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        ByteCount::new(self.size.load(Ordering::SeqCst))
    }

    pub(crate) fn set_size(&self, size: ByteCount) {
        // A request that is counted and sees the old size is one that a shrink waits for.
        self.size.store(size.get(), Ordering::SeqCst);
    }

    /// The size up to which mappings count: ahead of the disk's size while it grows, and behind it
    /// while it shrinks.
    pub(crate) fn mapped_size(&self) -> ByteCount {
        ByteCount::new(self.mapped_size.load(Ordering::Acquire))
    }

    pub(crate) fn set_mapped_size(&self, size: ByteCount) {
        self.mapped_size.store(size.get(), Ordering::Release);
    }

    /// The header as read at open.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The image file.
    #[must_use]
    pub fn file(&self) -> &Arc<S> {
        &self.files.image
    }

    /// The file that holds guest data: the external data file where there is one.
    #[must_use]
    pub fn data_file(&self) -> &Arc<S> {
        self.files.data.as_ref().unwrap_or(&self.files.image)
    }

    /// The refcount of a host cluster.
    pub async fn refcount(&self, cluster: HostCluster) -> Result<u64, Error> {
        let geometry = self.geometry();
        // A writer may have moved the table.
        let header = self.writer().map_or_else(|_| Header::clone(&self.header), Writer::header);
        let table_entries = header.refcount_table_bytes().get() / 8;
        let index = geometry.refcount_table_index(cluster);
        let Some(index) = index.filter(|index| u64::from(index.get()) < table_entries) else {
            return Ok(0);
        };
        let at = header.refcount_table_offset + ByteCount::new(u64::from(index.get()) * 8);
        let entry = crate::check::read_refcount_table_entry(self.files.image.as_ref(), at).await?;
        let Some(block) = entry.block(geometry).map_err(|fault| self.corrupt(fault))? else {
            return Ok(0);
        };
        let block = self.metadata.rb_get_or_insert(geometry.host_cluster(block)).await?;
        Ok(block.get(geometry.refcount_block_index(cluster)))
    }

    /// What the caches hold and have done.
    #[must_use]
    pub fn stats(&self) -> LayerStats {
        LayerStats {
            l1_bytes: self.l1.memory(),
            metadata_bytes: self.metadata.weight(),
            decoded_bytes: self.decoded.weight(),
            metadata_misses: self.metadata.misses(),
            decoded_misses: self.decoded.misses(),
        }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    pub(crate) fn l1(&self) -> &L1Table {
        &self.l1
    }

    pub(crate) fn metadata(&self) -> &MetadataCaches<S> {
        &self.metadata
    }

    pub(crate) fn decoded(&self) -> &AsyncLruCache<DecodedKey, DecodedCluster, DecodedBackend<S>> {
        &self.decoded
    }

    pub(crate) fn beyond_end(&self) -> BeyondEnd {
        self.beyond_end
    }

    pub(crate) fn data_file_length(&self) -> ByteCount {
        self.data_length
    }

    pub(crate) fn compressors(&self) -> &Arc<Compressors> {
        &self.compressors
    }

    pub(crate) fn offload(&self) -> Option<&Arc<dyn Offload>> {
        self.offload.as_ref()
    }

    pub(crate) fn dirty_max(&self) -> usize {
        self.dirty_max
    }

    pub(crate) fn add_writer(&mut self, writer: Writer<S>) {
        // The file grows: where it ended at open says nothing.
        self.beyond_end = BeyondEnd::ReadZeros;
        self.writer = Some(Box::new(writer));
    }

    /// What changes need; an error for an image that was opened for reading.
    #[inline]
    pub(crate) fn writer(&self) -> Result<&Writer<S>, Error> {
        // An error that is made beforehand has to be dropped, which is asked about at run time.
        match self.writer.as_deref() {
            Some(writer) => Ok(writer),
            None => Err(Error::ReadOnly),
        }
    }

    /// Corruption was met on the way of a change: the image takes no more of them, and says so to
    /// whoever opens it next.
    pub(crate) async fn found_corrupt(&self, corruption: Corruption) -> Error {
        let field = HeaderField::IncompatibleFeatures;
        if self.header.version == cowl_format::Version::V3 {
            // Where this fails the image is read-only in memory at least.
            self.update_header(field, |header| {
                header.incompatible = header.incompatible.union(IncompatibleFeatures::CORRUPT);
            })
            .await
            .ok();
        }
        const EIO: i32 = 5;
        self.metadata.latch().close_with(EIO, &corruption.to_string());
        self.corrupt(corruption)
    }

    #[cold]
    pub(crate) fn corrupt(&self, corruption: Corruption) -> Error {
        Error::Corrupt { path: self.files.image.name().to_owned(), corruption }
    }
}
