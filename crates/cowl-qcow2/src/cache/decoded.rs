//! Decompressed clusters in memory.
//!
//! A guest reads a compressed cluster in pieces; decompressing it for each piece would cost ten
//! times the work. The loader reads the stream and decompresses it through the embedder's
//! [`Offload`].

use std::sync::Arc;

use cowl_format::{CompressedDescriptor, CompressionType, GuestOffset};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::cache::async_lru::{AsyncLruCacheBackend, Charge};
use crate::request::Decompressor;
use crate::{Error, Offload, host, offload};

/// The bytes of one guest cluster.
pub(crate) struct DecodedCluster {
    pub(crate) bytes: Box<[u8]>,
    charge: Charge,
}

/// Which compressed stream: two guest clusters with the same descriptor share it.
#[derive(Clone, Copy)]
pub(crate) struct DecodedKey {
    pub(crate) descriptor: CompressedDescriptor,
    /// For messages only.
    pub(crate) guest: GuestOffset,
}

impl PartialEq for DecodedKey {
    fn eq(&self, other: &Self) -> bool {
        self.descriptor == other.descriptor
    }
}

impl Eq for DecodedKey {}

impl core::hash::Hash for DecodedKey {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.descriptor.host().hash(state);
    }
}

/// Loads decoded clusters of one image.
pub(crate) struct DecodedBackend<S> {
    file: Arc<S>,
    decompressor: Arc<Decompressor>,
    offload: Option<Arc<dyn Offload>>,
}

impl<S: Storage> DecodedBackend<S> {
    pub(crate) fn new(
        file: &Arc<S>,
        kind: CompressionType,
        cluster_len: usize,
        offload: Option<Arc<dyn Offload>>,
    ) -> Self {
        let decompressor = Arc::new(Decompressor::new(kind, cluster_len));
        Self { file: Arc::clone(file), decompressor, offload }
    }
}

impl<S: Storage> AsyncLruCacheBackend for DecodedBackend<S> {
    type Key = DecodedKey;
    type Value = DecodedCluster;

    async fn load(&self, key: DecodedKey, charge: Charge) -> Result<DecodedCluster, Error> {
        let stream = IoBuffer::zeroed(key.descriptor.length_max().as_usize());
        let at = key.descriptor.host();
        let (result, stream) =
            host::read(self.file.as_ref(), at, stream, Purpose::CompressedData).await;
        result?;
        let decompressor = Arc::clone(&self.decompressor);
        let decompress = move || decompressor.decompress(&stream);
        let decoded = offload::run(self.offload.as_ref(), decompress).await?;
        let bytes = decoded.map_err(|reason| Error::Corrupt {
            path: self.file.name().to_owned(),
            corruption: cowl_format::Corruption::Inflate { guest: key.guest, at, reason },
        })?;
        charge.add(bytes.len());
        Ok(DecodedCluster { bytes, charge })
    }

    fn charge(cluster: &DecodedCluster) -> &Charge {
        &cluster.charge
    }
}
