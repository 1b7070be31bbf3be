//! Compression of one cluster, with a context that is reused.

use cowl_format::CompressionType;
use flate2::{Compress, Compression, FlushCompress, Status};
use zstd::zstd_safe::CCtx;

use super::{Spares, zstd_frame};
use crate::Error;

/// QEMU inflates with a window of 12 bits: distances beyond 4 KiB would not be readable.
const WINDOW_BITS: u8 = 12;

/// A compressor for clusters of one image; one for each worker.
pub struct Compressor(Context);

enum Context {
    Zlib(Box<Compress>),
    Zstd(CCtx<'static>),
}

impl Compressor {
    /// A context for streams of this kind.
    pub fn new(kind: CompressionType) -> Result<Self, Error> {
        Ok(Self(match kind {
            CompressionType::Zlib => {
                let level = Compression::default();
                Context::Zlib(Box::new(Compress::new_with_window_bits(level, false, WINDOW_BITS)))
            }
            CompressionType::Zstd => {
                Context::Zstd(zstd_frame::writer().map_err(|reason| failed(&reason))?)
            }
        }))
    }

    /// Compresses `cluster`; `None` when that saves nothing.
    pub fn compress(&mut self, cluster: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        // Room for the longest stream there can be, so that every stream ends: a context that is
        // reset in the middle of one is a path that the library's other users do not take, and it
        // has panicked.
        let mut stream = vec![0; cluster.len() + cluster.len() / 8 + 64];
        let length = match &mut self.0 {
            Context::Zlib(context) => deflate(context, cluster, &mut stream)?,
            Context::Zstd(context) => {
                let length = zstd_frame::write(context, cluster, &mut stream);
                Some(length.map_err(|reason| failed(&reason))?)
            }
        };
        // A stream as long as the cluster saves nothing: the cluster is stored as it is.
        Ok(length.filter(|length| *length < cluster.len()).map(|length| {
            stream.truncate(length);
            stream
        }))
    }
}

fn deflate(
    context: &mut Compress,
    cluster: &[u8],
    stream: &mut [u8],
) -> Result<Option<usize>, Error> {
    context.reset();
    let status =
        context.compress(cluster, stream, FlushCompress::Finish).map_err(|error| failed(&error))?;
    let length = usize::try_from(context.total_out()).expect("at most a cluster");
    Ok((status == Status::StreamEnd).then_some(length))
}

fn failed(error: &dyn core::fmt::Display) -> Error {
    Error::Compressor { reason: error.to_string() }
}

/// Contexts of one image, as many as ever run at once.
pub(crate) struct Compressors {
    kind: CompressionType,
    idle: Spares<Compressor>,
}

impl Compressors {
    pub(crate) fn new(kind: CompressionType) -> Self {
        Self { kind, idle: Spares::new(usize::MAX) }
    }

    /// As [`Compressor::compress`].
    pub(crate) fn compress(&self, cluster: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        let mut compressor = match self.idle.take() {
            Some(compressor) => compressor,
            None => Compressor::new(self.kind)?,
        };
        let stream = compressor.compress(cluster);
        self.idle.give_back(compressor);
        stream
    }
}

#[cfg(test)]
mod tests {
    use cowl_format::CompressionType;

    use super::Compressor;

    #[test]
    fn many_small_noisy_clusters_in_a_row_are_left_alone() {
        let mut compressor = Compressor::new(CompressionType::Zlib).unwrap();
        let mut state = 7_u64;
        for _ in 0..2000 {
            let cluster: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()[0]
            })
            .take(512)
            .collect();
            assert_eq!(compressor.compress(&cluster).unwrap(), None);
        }
    }

    #[test]
    fn noise_is_not_compressed_and_patterns_are() {
        let mut state = 1_u32;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_be_bytes()[0]
        })
        .take(65_536)
        .collect();
        for kind in [CompressionType::Zlib, CompressionType::Zstd] {
            let mut compressor = Compressor::new(kind).unwrap();
            assert_eq!(compressor.compress(&noise).unwrap(), None);
            let stream = compressor.compress(&[7; 65_536]).unwrap().unwrap();
            assert!(stream.len() < 500);
            assert_eq!(compressor.compress(&noise).unwrap(), None);
            assert_eq!(compressor.compress(&[7; 65_536]).unwrap(), Some(stream));
        }
    }
}
