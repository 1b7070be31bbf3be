//! Compressed writes: a whole cluster becomes a stream of bytes, packed behind the last one.
//!
//! A host cluster that holds streams has a refcount of one for each. The stream is written before
//! anything points to it. A cluster that does not get smaller is written as it is.

use std::sync::Arc;

use cowl_format::{ByteCount, CompressedDescriptor, GuestOffset, HostOffset, L2Entry};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::allocator::{ClusterUse, Reference};
use crate::flush::{After, Edge};
use crate::mapping::Change;
use crate::{Error, Image, Layer, offload};

/// Room for a stream, counted: given back when dropped.
struct StreamPlace<'a, S: Storage> {
    layer: &'a Layer<S>,
    descriptor: CompressedDescriptor,
    is_kept: bool,
}

impl<S: Storage> Drop for StreamPlace<'_, S> {
    fn drop(&mut self) {
        if !self.is_kept
            && let Ok(writer) = self.layer.writer()
        {
            let unused = Reference::Compressed(self.descriptor);
            writer.quarantine.add_unused(unused, &writer.epochs);
        }
    }
}

impl<S: Storage> Image<S> {
    /// Writes whole clusters in compressed form: `at` starts a cluster, and `bytes` end one or the
    /// disk. Durability and dropping as in [`Self::write_from`].
    pub async fn write_compressed(&self, at: GuestOffset, bytes: &[u8]) -> Result<(), Error> {
        let length = ByteCount::from_usize(bytes.len());
        self.check_range(at, length)?;
        let top = self.top();
        let cluster = top.geometry().cluster_size();
        let end = at + length;
        let ends_whole = end.is_aligned_to(cluster) || end.get() == self.size().get();
        if !at.is_aligned_to(cluster) || !ends_whole {
            let what = "compressed writes take whole clusters";
            return Err(Error::InvalidRequest { what });
        }
        if top.header().has_data_file() {
            let what = "an image with an external data file has no compressed clusters";
            return Err(Error::InvalidRequest { what });
        }
        let writer = top.before_change().await?;
        let mut at = at;
        for part in bytes.chunks(top.geometry().cluster_len()) {
            top.make_room().await?;
            let length = ByteCount::from_usize(part.len());
            // What fills the last cluster lies behind the disk: it must not become part of the disk
            // meanwhile, where others may write to it.
            let _same_size = match length.get() < cluster {
                true => Some(writer.resizing.lock().await),
                false => None,
            };
            let _pin = self.pin_range(at, length)?;
            if length.get() < cluster && (at + length).get() != self.size().get() {
                return self.write_unchecked(at, part).await;
            }
            let _claim = writer.claims.claim(top.geometry().guest_cluster(at), 1).await;
            self.write_cluster_compressed(at, part).await?;
            at = at + length;
        }
        Ok(())
    }

    async fn write_cluster_compressed(&self, at: GuestOffset, part: &[u8]) -> Result<(), Error> {
        let top = self.top();
        let geometry = top.geometry();
        let mut whole = vec![0; geometry.cluster_len()];
        whole[..part.len()].copy_from_slice(part);
        let compressors = Arc::clone(top.compressors());
        let stream = offload::run(top.offload(), move || compressors.compress(&whole)).await??;
        let Some(stream) = stream else {
            let mut done = 0;
            while done < part.len() {
                let at = at + ByteCount::from_usize(done);
                let rest = &part[done..];
                let run = top.lookup(at, ByteCount::from_usize(rest.len())).await?;
                let rest = &rest[..run.length.as_usize()];
                done += match top.in_place(&run) {
                    Some(host) => top.put(host, rest).await.map(|()| rest.len())?,
                    None => self.write_new(at, rest, &run).await?,
                };
            }
            return Ok(());
        };
        let mut place = top.place_stream(stream.len()).await?;
        let host = place.descriptor.host();
        top.refuse_metadata(host, ByteCount::from_usize(stream.len())).await?;
        let buffer = IoBuffer::from_slice(&stream);
        let write = top.file().write(host, buffer, Purpose::CompressedData);
        top.writer()?.change(write).await.0?;
        let barriers = top.metadata().barriers();
        barriers.touch();
        let data = Edge::DataBeforeEntry.after(barriers.next());
        let after = data.max(Edge::RefcountBeforePointer.after(After::THIS_COMMIT));
        let entry = L2Entry::compressed(place.descriptor, geometry);
        top.relink(geometry.guest_cluster(at), |_| Some(Change { entry, after })).await?;
        place.is_kept = true;
        Ok(())
    }
}

impl<S: Storage> Layer<S> {
    /// Takes and counts room for a stream of `length` bytes, less than a cluster.
    async fn place_stream(&self, length: usize) -> Result<StreamPlace<'_, S>, Error> {
        let writer = self.writer()?;
        let geometry = self.geometry();
        let size = geometry.cluster_size();
        let length = length as u64;
        loop {
            let mut space = self.lock_space(writer).await;
            if let Some(at) = space.packed
                && at % size + length <= size
            {
                let cluster = at / size;
                let refcount = self.refcount_in(&space, cluster).await?;
                // The first stream takes over the reservation's own reference.
                let is_first = at.is_multiple_of(size);
                if is_first || refcount < geometry.refcount_max() {
                    if !is_first {
                        self.set_refcount(&space, cluster, refcount + 1).await?;
                    }
                    let end = at + length;
                    space.packed = (!end.is_multiple_of(size)).then_some(end);
                    let (host, length) = (HostOffset::new(at), ByteCount::new(length));
                    let descriptor = CompressedDescriptor::new(host, length, geometry);
                    let Some(descriptor) = descriptor else {
                        return Err(Error::ImageFull { path: self.file().name().to_owned() });
                    };
                    return Ok(StreamPlace { layer: self, descriptor, is_kept: false });
                }
            }
            drop(space);
            let mut granted = self.allocate(1, ClusterUse::Data).await?;
            let mut space = self.lock_space(writer).await;
            let is_unused = space.packed.is_some_and(|at| at.is_multiple_of(size));
            if !is_unused {
                space.packed = Some(granted.run().first.get() * size);
                granted.keep_first();
            }
        }
    }
}
