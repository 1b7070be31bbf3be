//! The floor of compressed clusters: the libraries that decompress, with nothing around them.
//!
//! All streams are in memory, no cluster is looked up, copied or kept, and every core does nothing
//! else.

use std::fs;
use std::thread::available_parallelism;

use cowl_format::{ClusterMapping, CompressedDescriptor, CompressionType, GuestOffset, L2Entry};
use cowl_storage::{FileOptions, FileStorage};

use crate::offsets::BLOCK;
use crate::readers::{Clock, Order, Reading, on_threads};
use crate::row::Sample;

/// Clusters between two looks at the clock.
const BATCH: usize = 16;

/// The compressed clusters of an image.
struct Streams {
    file: Vec<u8>,
    kind: CompressionType,
    cluster: usize,
    descriptors: Vec<CompressedDescriptor>,
}

impl Streams {
    fn load(reading: &Reading) -> Result<Self, String> {
        let words = |error: &dyn std::fmt::Display| error.to_string();
        let storage = FileStorage::open(&reading.image, FileOptions::read_only());
        let storage = storage.map_err(|error| words(&error))?;
        let header = cowl_qcow2::read_header(&storage);
        let header = pollster::block_on(header).map_err(|error| words(&error))?;
        let file = fs::read(&reading.image).map_err(|error| words(&error))?;
        let geometry = header.geometry;
        let entries = |at: u64, count: usize| {
            let at = usize::try_from(at).map_err(|error| words(&error))?;
            let bytes = file.get(at..at + count * 8).ok_or("a table lies behind the end")?;
            let word = |word: &[u8]| u64::from_be_bytes(word.try_into().expect("8 bytes"));
            Ok::<_, String>(bytes.chunks_exact(8).map(word).collect::<Vec<u64>>())
        };
        let mut descriptors = Vec::new();
        for l1 in entries(header.l1_offset.get(), header.l1_entries as usize)? {
            let table = cowl_format::L1Entry::from_raw(l1).table(geometry);
            let Some(table) = table.map_err(|error| words(&error))? else { continue };
            for raw in entries(table.get(), geometry.l2_entries() as usize)? {
                let entry = L2Entry { raw, bitmap: 0 };
                let mapping = entry.decode(GuestOffset::ZERO, geometry, header.version, false);
                if let Ok(ClusterMapping::Compressed(descriptor)) = mapping {
                    descriptors.push(descriptor);
                }
            }
        }
        if descriptors.is_empty() {
            return Err("no compressed cluster".to_owned());
        }
        let (kind, cluster) = (header.compression_type, geometry.cluster_len());
        Ok(Self { file, kind, cluster, descriptors })
    }

    fn stream(&self, number: usize) -> &[u8] {
        let descriptor = self.descriptors[number % self.descriptors.len()];
        let start = usize::try_from(descriptor.host().get()).expect("it was read");
        let end = start + descriptor.length_max().as_usize();
        &self.file[start..end.min(self.file.len())]
    }
}

/// A thread's contexts.
struct Library {
    deflate: libdeflater::Decompressor,
    zstd: zstd::zstd_safe::DCtx<'static>,
    cluster: Vec<u8>,
}

impl Library {
    fn new(cluster: usize) -> Self {
        let zstd = zstd::zstd_safe::DCtx::create();
        Self { deflate: libdeflater::Decompressor::new(), zstd, cluster: vec![0; cluster] }
    }

    fn decompress(&mut self, kind: CompressionType, stream: &[u8]) -> Result<(), String> {
        let length = match kind {
            CompressionType::Zlib => {
                let done = self.deflate.deflate_decompress(stream, &mut self.cluster);
                done.map_err(|error| error.to_string())?
            }
            CompressionType::Zstd => {
                let failed = zstd::zstd_safe::get_error_name;
                let frame = zstd::zstd_safe::find_frame_compressed_size(stream).map_err(failed)?;
                self.zstd.decompress(&mut self.cluster[..], &stream[..frame]).map_err(failed)?
            }
        };
        match length == self.cluster.len() {
            true => Ok(()),
            false => Err(format!("a cluster of {length} bytes")),
        }
    }
}

/// Reads of one block that the library could serve: at random one for each cluster, on all cores;
/// in order one for each block of it, on one core.
pub(crate) fn alone(reading: &Reading) -> Sample {
    let streams = Streams::load(reading)?;
    let (threads, reads) = match reading.order {
        Order::Sequential => (1, (streams.cluster / BLOCK) as u64),
        Order::Random | Order::Walk => (available_parallelism().map_or(1, |n| n.get() as u64), 1),
    };
    let rate = on_threads(threads, |thread| {
        let mut library = Library::new(streams.cluster);
        let mut offsets = reading.offsets(thread);
        let mut clock = Clock::start(reading.sample);
        let mut next = 0;
        loop {
            for _ in 0..BATCH {
                next = match reading.order {
                    Order::Sequential => next + 1,
                    _ => (offsets.next() / streams.cluster as u64) as usize,
                };
                library.decompress(streams.kind, streams.stream(next))?;
            }
            if !clock.tick(BATCH as u64 * reads) {
                return Ok(clock.rate());
            }
        }
    })?;
    Ok(vec![rate])
}
