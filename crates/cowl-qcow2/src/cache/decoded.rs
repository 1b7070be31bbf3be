//! Decompressed clusters in memory.
//!
//! A guest reads a compressed cluster in pieces; decompressing it for each piece would cost ten
//! times the work. The loader reads the stream and decompresses it through the embedder's
//! [`Offload`].
//!
//! Where a stream lets it, a cluster's first read decompresses as much as it asks for and no more:
//! who reads here and there seldom comes back for the rest. Whoever does gets the rest with all of
//! it, once; and who goes from cluster to cluster gets them whole at first.

use core::ops::Range;
use std::sync::Arc;

use cowl_format::{CompressedDescriptor, CompressionType, GuestOffset};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::cache::async_lru::{AsyncLruCacheBackend, Charge};
use crate::request::{ClusterSpares, Decoded, Decompressor, Spares};
use crate::sync::OnceCell;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::{Error, Offload, host, offload};

/// The bytes of one guest cluster. Its memory is used again when it is dropped.
pub(crate) struct DecodedCluster {
    /// As many as were asked for at first.
    first: Decoded,
    /// All of them, once somebody wants more than that.
    whole: OnceCell<Decoded>,
    charge: Charge,
    tools: Arc<Tools>,
}

impl DecodedCluster {
    /// The bytes in `range`, if they are here.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Option<&[u8]> {
        match self.first.get(range.clone()) {
            None => self.whole.get()?.get(range),
            first => first,
        }
    }
}

impl Drop for DecodedCluster {
    fn drop(&mut self) {
        let whole = self.whole.take();
        for decoded in [Some(std::mem::take(&mut self.first)), whole].into_iter().flatten() {
            self.tools.outputs.give_back(decoded.into_memory());
        }
    }
}

/// Which compressed stream: two guest clusters with the same descriptor share it.
#[derive(Clone, Copy)]
pub(crate) struct DecodedKey {
    pub(crate) descriptor: CompressedDescriptor,
    /// Where the cluster lies; nothing is found by it.
    pub(crate) guest: GuestOffset,
    /// Where in the cluster the bytes end that are asked for; nothing is found by it.
    pub(crate) reach: usize,
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

/// Memory of buffers for streams that is kept, in bytes, as much for clusters, and as much for the
/// first bytes of some: what a few dozen loads at once use.
const SPARE_BYTES_MAX: usize = 4 << 20;

/// Loads decoded clusters of one image.
pub(crate) struct DecodedBackend<S> {
    file: Arc<S>,
    tools: Arc<Tools>,
    offload: Option<Arc<dyn Offload>>,
    /// Where the cluster loaded last ends, and the next one begins for who reads on.
    next: AtomicU64,
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
            cluster_len,
            buffer_len: cluster_len + STREAM_EXCESS_MAX,
            buffers: Spares::new(SPARE_BYTES_MAX / cluster_len),
            outputs: ClusterSpares::new(cluster_len, SPARE_BYTES_MAX),
        };
        let next = AtomicU64::new(u64::MAX);
        Self { file: Arc::clone(file), tools: Arc::new(tools), offload, next }
    }

    /// All bytes of `cluster`, which has fewer than are asked for; and whether it has grown by
    /// this.
    pub(crate) async fn complete<'a>(
        &self,
        key: DecodedKey,
        cluster: &'a DecodedCluster,
    ) -> Result<(&'a [u8], bool), Error> {
        let mut has_grown = false;
        let load = async || {
            let whole = self.decode(key, self.tools.cluster_len).await?;
            cluster.charge.add(whole.capacity());
            has_grown = true;
            Ok::<_, Error>(whole)
        };
        let whole = cluster.whole.get_or_try_init(load).await?;
        Ok((whole, has_grown))
    }

    /// The first `reach` bytes of a cluster, or more.
    async fn decode(&self, key: DecodedKey, reach: usize) -> Result<Decoded, Error> {
        let stream = self.tools.buffer(key.descriptor.length_max().as_usize());
        let at = key.descriptor.host();
        let (result, stream) =
            host::read(self.file.as_ref(), at, stream, Purpose::CompressedData).await;
        result?;
        let tools = Arc::clone(&self.tools);
        let decompress = move || tools.decompress(stream, reach);
        let decoded = offload::run(self.offload.as_ref(), decompress).await?;
        decoded.map_err(|reason| Error::Corrupt {
            path: self.file.name().to_owned(),
            corruption: cowl_format::Corruption::Inflate { guest: key.guest, at, reason },
        })
    }
}

/// What the work on a stream needs besides the stream.
struct Tools {
    decompressor: Decompressor,
    cluster_len: usize,
    buffer_len: usize,
    buffers: Spares<IoBuffer>,
    outputs: ClusterSpares,
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

    fn decompress(&self, stream: IoBuffer, reach: usize) -> Result<Decoded, &'static str> {
        let output = self.outputs.take(self.decompressor.room_for(reach));
        let decoded = self.decompressor.decompress(&stream, reach, output);
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
        let length = self.tools.cluster_len;
        let at = key.guest.get();
        let is_next = self.next.swap(at + length as u64, Ordering::Relaxed) == at;
        let first = self.decode(key, if is_next { length } else { key.reach }).await?;
        charge.add(first.capacity());
        let (whole, tools) = (OnceCell::new(), Arc::clone(&self.tools));
        Ok(DecodedCluster { first, whole, charge, tools })
    }

    fn charge(cluster: &DecodedCluster) -> &Charge {
        &cluster.charge
    }
}
