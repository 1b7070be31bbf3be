//! One open qcow2 file: its header, its L1 table and its caches.
//!
//! A layer knows only itself; what it does not have, the [`Image`](crate::Image) looks for below
//! it.

use std::sync::Arc;

use cowl_format::{ByteCount, Corruption, Geometry, Header, HostCluster, L1Entry};
use cowl_storage::Storage;

use crate::Error;
use crate::cache::{AsyncLruCache, DecodedBackend, DecodedCluster, DecodedKey, MetadataCaches};
use crate::open::{BeyondEnd, LayerFiles, LayerOptions};

/// One open qcow2 file.
pub struct Layer<S: Storage> {
    files: LayerFiles<S>,
    header: Arc<Header>,
    l1: Box<[L1Entry]>,
    size: ByteCount,
    data_length: ByteCount,
    beyond_end: BeyondEnd,
    metadata: MetadataCaches<S>,
    decoded: AsyncLruCache<DecodedKey, DecodedCluster, DecodedBackend<S>>,
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
        l1: Box<[L1Entry]>,
        size: ByteCount,
        data_length: ByteCount,
    ) -> Self {
        let cluster = header.geometry.cluster_len();
        let header = Arc::new(header);
        let limits = options.cache;
        let metadata = MetadataCaches::new(
            &files.image,
            &header,
            limits.l2_bytes.div_ceil(cluster),
            limits.refcount_bytes.div_ceil(cluster),
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
            header,
            l1,
            size,
            data_length,
            beyond_end: options.beyond_end,
            metadata,
        }
    }

    /// Size of the disk, or of the snapshot that is shown.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.size
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
        let header = &self.header;
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
            l1_bytes: size_of_val(&*self.l1),
            metadata_bytes: self.metadata.weight(),
            decoded_bytes: self.decoded.weight(),
            metadata_misses: self.metadata.misses(),
            decoded_misses: self.decoded.misses(),
        }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    pub(crate) fn l1(&self) -> &[L1Entry] {
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

    pub(crate) fn corrupt(&self, corruption: Corruption) -> Error {
        Error::Corrupt { path: self.files.image.name().to_owned(), corruption }
    }
}
