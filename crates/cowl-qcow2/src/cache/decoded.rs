//! Decompressed clusters in memory.
//!
//! A guest reads a compressed cluster in pieces; decompressing it for each piece would cost ten
//! times the work. The loader reads the stream and decompresses it through the embedder's
//! [`Offload`].

use std::sync::Arc;

use cowl_format::{CompressedDescriptor, CompressionType, GuestOffset};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::cache::async_lru::{AsyncLruCacheBackend, Charge};
use crate::request::{Decompressor, Spares};
use crate::{Error, Offload, host, offload};

/// The bytes of one guest cluster. Its memory is used again when it is dropped.
pub(crate) struct DecodedCluster {
    pub(crate) bytes: Vec<u8>,
    charge: Charge,
    tools: Arc<Tools>,
}

impl Drop for DecodedCluster {
    fn drop(&mut self) {
        self.tools.outputs.give_back(std::mem::take(&mut self.bytes));
    }
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

/// How much longer than a cluster a buffer for a stream is: streams are found by whole sectors.
const STREAM_EXCESS_MAX: usize = 512;

/// Memory of buffers for streams that is kept, in bytes, and as much for clusters: what a few dozen
/// loads at once use.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// Loads decoded clusters of one image.
pub(crate) struct DecodedBackend<S> {
    file: Arc<S>,
    tools: Arc<Tools>,
    offload: Option<Arc<dyn Offload>>,
}

impl<S: Storage> DecodedBackend<S> {
    pub(crate) fn new(
        file: &Arc<S>,
        kind: CompressionType,
        cluster_len: usize,
        offload: Option<Arc<dyn Offload>>,
    ) -> Self {
        let tools = Tools {
            decompressor: Decompressor::new(kind, cluster_len),
            buffer_len: cluster_len + STREAM_EXCESS_MAX,
            buffers: Spares::new(SPARE_BYTES_MAX / cluster_len),
            outputs: Spares::new(SPARE_BYTES_MAX / cluster_len),
        };
        Self { file: Arc::clone(file), tools: Arc::new(tools), offload }
    }
}

/// What the work on a stream needs besides the stream.
struct Tools {
    decompressor: Decompressor,
    buffer_len: usize,
    buffers: Spares<IoBuffer>,
    /// Of one cluster each.
    outputs: Spares<Vec<u8>>,
}

impl Tools {
    /// A buffer for `length` bytes.
    fn buffer(&self, length: usize) -> IoBuffer {
        if self.buffer_len < length {
            return IoBuffer::zeroed(length);
        }
        let mut buffer = self.buffers.take().unwrap_or_else(|| IoBuffer::zeroed(self.buffer_len));
        buffer.restore();
        buffer.truncate(length);
        buffer
    }

    fn decompress(&self, stream: IoBuffer) -> Result<Vec<u8>, &'static str> {
        let output = self.outputs.take().unwrap_or_default();
        let decoded = self.decompressor.decompress(&stream, output);
        if stream.capacity() == self.buffer_len {
            self.buffers.give_back(stream);
        }
        decoded
    }
}

impl<S: Storage> AsyncLruCacheBackend for DecodedBackend<S> {
    type Key = DecodedKey;
    type Value = DecodedCluster;

    async fn load(&self, key: DecodedKey, charge: Charge) -> Result<DecodedCluster, Error> {
        let stream = self.tools.buffer(key.descriptor.length_max().as_usize());
        let at = key.descriptor.host();
        let (result, stream) =
            host::read(self.file.as_ref(), at, stream, Purpose::CompressedData).await;
        result?;
        let tools = Arc::clone(&self.tools);
        let decompress = move || tools.decompress(stream);
        let decoded = offload::run(self.offload.as_ref(), decompress).await?;
        let bytes = decoded.map_err(|reason| Error::Corrupt {
            path: self.file.name().to_owned(),
            corruption: cowl_format::Corruption::Inflate { guest: key.guest, at, reason },
        })?;
        charge.add(bytes.len());
        Ok(DecodedCluster { bytes, charge, tools: Arc::clone(&self.tools) })
    }

    fn charge(cluster: &DecodedCluster) -> &Charge {
        &cluster.charge
    }
}
