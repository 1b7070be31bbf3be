//! Reading the target back: is it what the sources are, and what is its digest?

use cowl::{Backing, BlockDevice, ByteCount};
use sha2::{Digest, Sha256};

use crate::Progress;
use crate::convert::options::{ConvertError, ConvertOptions, Salvaged};
use crate::convert::sink::Written;
use crate::convert::source::Source;

const STEP: u64 = 1 << 20;

/// Compares the target with the sources and computes the digest, as far as `options` ask for it.
pub(super) fn verify(
    source: &Source<'_>,
    written: &Written,
    options: &ConvertOptions,
    salvaged: &[Salvaged],
    progress: &dyn Progress,
) -> Result<Option<[u8; 32]>, ConvertError> {
    if !options.verify && !options.digest {
        return Ok(None);
    }
    let target = written.open(Backing::FromImage).map_err(ConvertError::VerifyRead)?;
    let mut hash = Sha256::new();
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    let mut at = 0;
    let size = source.size().min(target.size().get());
    while at < size {
        let length = STEP.min(size - at);
        ours.resize(ByteCount::new(length).as_usize(), 0);
        target.read_at(&mut ours, at).map_err(ConvertError::VerifyRead)?;
        if options.digest {
            hash.update(&ours);
        }
        let is_salvaged =
            salvaged.iter().any(|part| part.at < at + length && at < part.at + part.length);
        if options.verify && !is_salvaged {
            theirs.resize(ours.len(), 0);
            source.read(at, &mut theirs).map_err(|source| ConvertError::Read { at, source })?;
            if let Some(sector) = first_difference(&theirs, &ours) {
                return Err(ConvertError::VerifyMismatch { at: at + sector });
            }
        }
        progress.advance(ByteCount::new(length));
        at += length;
    }
    Ok(options.digest.then(|| hash.finalize().into()))
}

fn first_difference(theirs: &[u8], ours: &[u8]) -> Option<u64> {
    if theirs == ours {
        return None;
    }
    let differs = theirs.chunks(512).zip(ours.chunks(512)).position(|(a, b)| a != b);
    differs.map(|sector| sector as u64 * 512)
}
