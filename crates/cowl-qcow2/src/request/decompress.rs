//! Decompression of one cluster.
//!
//! The stream is followed by bytes of somebody else, and only its first cluster of output counts:
//! that is how QEMU reads it, so that is how images are. libdeflate is the fastest and accepts
//! every stream that ends where its cluster ends; what it refuses gets a second, patient look by
//! zlib. zstd frames are decompressed in one step, straight into the cluster: a streaming decoder
//! would first allocate the window that the frame asks for, up to 128 MiB. Where only a part of the
//! cluster is asked for, a decoder of our own reads the frame up to there (`cowl-zstd`); what that
//! refuses is given to the library as well.

use cowl_format::CompressionType;
use flate2::FlushDecompress;
use zstd::zstd_safe::{self, DCtx};

use super::Spares;

/// Why a stream cannot be decompressed.
type Fault = &'static str;

const ENDS_EARLY: Fault = "the stream ends before the cluster does";
const GOES_ON: Fault = "the stream goes on behind the cluster";
const BROKEN: Fault = "the stream is damaged";

/// The first bytes of a cluster, or all of them.
#[derive(Default)]
pub(crate) struct Decoded {
    /// It may have more room than there are bytes.
    memory: Vec<u8>,
    length: usize,
}

impl Decoded {
    /// The memory, for the next one.
    pub(crate) fn into_memory(self) -> Vec<u8> {
        self.memory
    }

    /// Bytes of memory that are taken.
    pub(crate) fn capacity(&self) -> usize {
        self.memory.capacity()
    }
}

impl core::ops::Deref for Decoded {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[..self.length]
    }
}

impl From<Vec<u8>> for Decoded {
    fn from(memory: Vec<u8>) -> Self {
        Self { length: memory.len(), memory }
    }
}

/// Decompresses clusters of one image, from any number of threads.
pub(crate) struct Decompressor {
    kind: CompressionType,
    cluster_len: usize,
    // Contexts are hundreds of kilobytes, and those of zstd grow to about twice the cluster.
    // As many as ever run at once.
    deflate: Spares<libdeflater::Decompressor>,
    zstd: Spares<DCtx<'static>>,
    zstd_first: Spares<Box<cowl_zstd::Decoder>>,
}

impl Decompressor {
    pub(crate) fn new(kind: CompressionType, cluster_len: usize) -> Self {
        let (deflate, zstd) = (Spares::new(usize::MAX), Spares::new(usize::MAX));
        Self { kind, cluster_len, deflate, zstd, zstd_first: Spares::new(usize::MAX) }
    }

    /// How many bytes have room for the first `reach` of a cluster.
    pub(crate) fn room_for(&self, reach: usize) -> usize {
        match self.kind {
            CompressionType::Zlib => self.cluster_len,
            CompressionType::Zstd => reach,
        }
    }

    /// The cluster that `stream` begins with: its first `reach` bytes, and as many more as are no
    /// more work and have room in the memory of `output`, which is made longer where it has to be:
    /// for [`room_for`](Self::room_for) these bytes, or for a cluster where only a library reads
    /// the stream.
    pub(crate) fn decompress(
        &self,
        stream: &[u8],
        reach: usize,
        output: Vec<u8>,
    ) -> Result<Decoded, Fault> {
        match self.kind {
            CompressionType::Zlib => self.inflate(stream, output).map(Decoded::from),
            CompressionType::Zstd => self.unzstd(stream, reach, output),
        }
    }

    fn inflate(&self, stream: &[u8], mut output: Vec<u8>) -> Result<Vec<u8>, Fault> {
        output.resize(self.cluster_len, 0);
        let mut context = self.deflate.take().unwrap_or_default();
        let result = context.deflate_decompress(stream, &mut output);
        self.deflate.give_back(context);
        match result {
            Ok(length) if length == output.len() => Ok(output),
            _ => inflate_patiently(stream, &mut output).map(|()| output),
        }
    }

    fn unzstd(&self, stream: &[u8], reach: usize, mut output: Vec<u8>) -> Result<Decoded, Fault> {
        if reach < self.cluster_len {
            if output.len() < reach {
                output.resize(output.capacity().clamp(reach, self.cluster_len), 0);
            }
            let mut decoder = self.zstd_first.take().unwrap_or_default();
            let first = decoder.decode(stream, self.cluster_len, &mut output, reach);
            self.zstd_first.give_back(decoder);
            if let Ok(length) = first {
                return Ok(Decoded { memory: output, length });
            }
            // Whatever is wrong with the stream comes to light below.
        }
        let mut context = match self.zstd.take() {
            Some(context) => context,
            None => DCtx::try_create().ok_or("no memory for zstd")?,
        };
        let result = unzstd_frames(&mut context, stream, output, self.cluster_len);
        self.zstd.give_back(context);
        result.map(Decoded::from)
    }
}

/// Accepts a stream that goes on behind the cluster, as QEMU does.
fn inflate_patiently(stream: &[u8], output: &mut [u8]) -> Result<(), Fault> {
    let mut inflate = flate2::Decompress::new(false);
    inflate.decompress(stream, output, FlushDecompress::Finish).map_err(|_| BROKEN)?;
    match inflate.total_out() == output.len() as u64 {
        true => Ok(()),
        false => Err(ENDS_EARLY),
    }
}

fn unzstd_frames(
    context: &mut DCtx<'static>,
    stream: &[u8],
    mut output: Vec<u8>,
    length: usize,
) -> Result<Vec<u8>, Fault> {
    let mut frames = stream;
    output.clear();
    output.reserve_exact(length);
    let mut done = 0;
    while done < length {
        let fault = if done == 0 { BROKEN } else { ENDS_EARLY };
        let frame_length = zstd_safe::find_frame_compressed_size(frames).map_err(|_| fault)?;
        let (frame, rest) = frames.split_at_checked(frame_length).ok_or(fault)?;
        let room = length - done;
        if let Ok(Some(content)) = zstd_safe::get_frame_content_size(frame)
            && (room as u64) < content
        {
            return Err(GOES_ON);
        }
        // As a rule there is one frame, and nobody clears the memory before it.
        let written = match done {
            0 => context.decompress(&mut output, frame),
            _ => {
                output.resize(length, 0);
                context.decompress(&mut output[done..], frame)
            }
        };
        let written = written.map_err(|_| BROKEN)?;
        // The memory may have more room than the cluster.
        if room < written {
            return Err(BROKEN);
        }
        done += written;
        frames = rest;
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use cowl_format::CompressionType;

    use super::{BROKEN, Decompressor, ENDS_EARLY, Fault, GOES_ON};

    fn cluster() -> Vec<u8> {
        (0..4096_u32).map(|index| (index / 7).to_le_bytes()[0]).collect()
    }

    fn decompress(kind: CompressionType, stream: &[u8], output: Vec<u8>) -> Result<Vec<u8>, Fault> {
        let decoded = Decompressor::new(kind, 4096).decompress(stream, 4096, output)?;
        Ok(decoded.to_vec())
    }

    fn deflated(bytes: &[u8]) -> Vec<u8> {
        let level = flate2::Compression::default();
        let mut encoder = flate2::write::DeflateEncoder::new(Vec::new(), level);
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn what_follows_the_stream_is_ignored() {
        for (kind, mut stream) in [
            (CompressionType::Zlib, deflated(&cluster())),
            (CompressionType::Zstd, zstd::bulk::compress(&cluster(), 3).unwrap()),
        ] {
            stream.extend([0xa5; 600]);
            // Whatever the memory was used for before.
            for output in [vec![], vec![7; 4096], vec![7; 10], vec![7; 10_000]] {
                assert_eq!(decompress(kind, &stream, output).unwrap(), cluster());
            }
        }
    }

    #[test]
    fn a_deflate_stream_longer_than_the_cluster_gives_its_first_cluster() {
        let long = [cluster(), cluster()].concat();
        let stream = deflated(&long);
        assert_eq!(decompress(CompressionType::Zlib, &stream, Vec::new()).unwrap(), cluster());
    }

    #[test]
    fn two_zstd_frames_make_one_cluster_but_half_a_frame_does_not() {
        let bytes = cluster();
        let mut stream = zstd::bulk::compress(&bytes[..1000], 3).unwrap();
        stream.extend(zstd::bulk::compress(&bytes[1000..], 3).unwrap());
        for output in [vec![], vec![7; 4096]] {
            assert_eq!(decompress(CompressionType::Zstd, &stream, output).unwrap(), bytes);
        }
        // One that says its length, and one that does not.
        let long = [bytes.clone(), bytes].concat();
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.write_all(&long).unwrap();
        let silent = encoder.finish().unwrap();
        assert_eq!(decompress(CompressionType::Zstd, &silent, vec![7; 10_000]), Err(BROKEN));
        let long = zstd::bulk::compress(&long, 3).unwrap();
        assert_eq!(decompress(CompressionType::Zstd, &long, Vec::new()), Err(GOES_ON));
    }

    #[test]
    fn a_zstd_frame_that_asks_for_a_huge_window_costs_no_more_than_any_other() {
        // Magic, no content size, a window of 128 MiB, one last run-length block of 4096 bytes.
        let stream = [0x28, 0xb5, 0x2f, 0xfd, 0, 17 << 3, 0x03, 0x80, 0x00, 7];
        assert_eq!(decompress(CompressionType::Zstd, &stream, Vec::new()).unwrap(), [7; 4096]);
    }

    #[test]
    fn short_and_damaged_streams_are_errors() {
        let zlib = |stream: &[u8]| decompress(CompressionType::Zlib, stream, Vec::new());
        assert_eq!(zlib(&deflated(&cluster()[..4095])), Err(ENDS_EARLY));
        assert_eq!(zlib(&[0xff; 700]), Err(BROKEN));
        let zstd = |stream: &[u8]| decompress(CompressionType::Zstd, stream, Vec::new());
        let stream = zstd::bulk::compress(&cluster()[..100], 3).unwrap();
        assert!(zstd(&stream).is_err());
        assert_eq!(zstd(&[0xff; 700]), Err(BROKEN));
    }

    #[test]
    fn a_part_of_a_cluster_is_the_same_as_in_all_of_it() {
        let bytes =
            [cluster(), cluster(), vec![9; 100_000], cluster()].concat()[..1 << 16].to_vec();
        let mut compressor = crate::request::Compressor::new(CompressionType::Zstd).unwrap();
        let blocks = compressor.compress(&bytes).unwrap().unwrap();
        let whole = zstd::bulk::compress(&bytes, 3).unwrap();
        let deflated = deflated(&bytes);
        for (kind, stream, length_max) in [
            (CompressionType::Zstd, blocks, 4096 + 300),
            (CompressionType::Zstd, whole, 4096 + 300),
            (CompressionType::Zlib, deflated, 64 << 10),
        ] {
            let decompressor = Decompressor::new(kind, 1 << 16);
            for output in [vec![], vec![7; 1 << 16], vec![7; 100]] {
                let part = decompressor.decompress(&stream, 4096, output).unwrap();
                assert!((4096..=length_max).contains(&part.len()), "{}", part.len());
                assert_eq!(*part, bytes[..part.len()]);
                assert_eq!(*decompressor.decompress(&stream, 1 << 16, vec![]).unwrap(), bytes);
            }
        }
    }

    #[test]
    fn a_part_is_read_of_frames_of_every_kind() {
        let bytes = cluster();
        let mut silent = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        silent.write_all(&bytes).unwrap();
        let mut summed = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        summed.include_checksum(true).unwrap();
        summed.write_all(&bytes).unwrap();
        let halves =
            [&bytes[..2048], &bytes[2048..]].map(|half| zstd::bulk::compress(half, 3).unwrap());
        for stream in [silent.finish().unwrap(), summed.finish().unwrap(), halves.concat()] {
            let decompressor = Decompressor::new(CompressionType::Zstd, 4096);
            assert_eq!(*decompressor.decompress(&stream, 10, vec![7; 4096]).unwrap(), bytes);
        }
    }
}
