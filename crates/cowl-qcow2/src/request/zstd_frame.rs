//! A cluster as a zstd frame: written in small blocks, and read no further than it is asked for.
//!
//! A block is what the decompressor does in one go, and it goes on to the next one without looking
//! back at the frame's end. Most writers make one block of a whole cluster of 64 KiB; a read of 4
//! KiB costs the decompression of all of it then. The frames written here end a block each 16 KiB,
//! so that such a read costs 10 of 16 on average. That makes no longer frames: tables of their own
//! suit 16 KiB of a program as much better as they cost (0.6 percent less for clusters of 64 KiB of
//! binaries, 0.1 percent less for text, up to 0.4 percent more for clusters of 2 MiB). All of such
//! a frame takes 5 to 9 percent longer to decompress.

use zstd::zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd::zstd_safe::{
    CCtx, CParameter, DCtx, InBuffer, OutBuffer, ResetDirective, get_error_name,
    get_frame_content_size,
};

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

/// Reads the blocks that `stream` begins with, up to the one that has byte `reach - 1` of the
/// cluster, to the start of `cluster`. Returns how many bytes they are, at least `reach`; `None`
/// where that is no less work than to read all of the frame, or where the frame is not sound that
/// far. The context's memory grows to about twice the length of the cluster.
pub(super) fn read_first(
    context: &mut DCtx<'static>,
    stream: &[u8],
    cluster: &mut [u8],
    reach: usize,
) -> Option<usize> {
    if cluster.len() <= reach || !has_more_blocks(stream, cluster.len() as u64) {
        return None;
    }
    context.reset(ResetDirective::SessionOnly).ok()?;
    // Who has room for all of a block is taken to the next one at once. So there is room for all
    // but the last byte, which is in the block that came last then, wherever blocks end.
    let (head, tail) = cluster.split_at_mut(reach.saturating_sub(1).max(1));
    let mut output = OutBuffer::around(head);
    let mut input = InBuffer::around(stream);
    while output.pos() < output.capacity() {
        let before = (output.pos(), input.pos());
        let more = context.decompress_stream(&mut output, &mut input).ok()?;
        // The frame ends although it said it was longer: what follows is another one.
        let is_short = more == 0 && output.pos() < output.capacity();
        if is_short || before == (output.pos(), input.pos()) {
            return None;
        }
    }
    // Without input it gives out what that block has left, and goes no further.
    let mut rest = OutBuffer::around(tail);
    context.decompress_stream(&mut rest, &mut InBuffer::around(&[])).ok()?;
    let done = head.len() + rest.pos();
    (reach <= done).then_some(done)
}

/// Whether `stream` begins with a frame that says it has `length` bytes, and whose first block is
/// not its last one (RFC 8878, sections 3.1.1.1 and 3.1.1.2). Not for frames with a checksum, which
/// is for those who read all of it, nor for those with a window of their own: they could ask for
/// any, and what lies behind it would be overwritten.
fn has_more_blocks(stream: &[u8], length: u64) -> bool {
    const DESCRIPTOR: usize = 4;
    let is_known = get_frame_content_size(stream).is_ok_and(|content| content == Some(length));
    let Some(&descriptor) = stream.get(DESCRIPTOR) else { return false };
    let has_checksum = descriptor & 0x04 != 0;
    let is_single_segment = descriptor & 0x20 != 0;
    let dictionary = [0, 1, 2, 4][usize::from(descriptor & 0x03)];
    let content_size = match descriptor >> 6 {
        0 => 1,
        1 => 2,
        2 => 4,
        _ => 8,
    };
    let block = DESCRIPTOR + 1 + dictionary + content_size;
    let is_last = stream.get(block).is_none_or(|first| first & 0x01 != 0);
    is_known && is_single_segment && !has_checksum && !is_last
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use zstd::zstd_safe::DCtx;

    use super::{BLOCK_LEN, read_first, write, writer};

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

    #[test]
    fn a_read_ends_with_the_block_that_it_needs() {
        for length in [1 << 15, 1 << 16, 1 << 21] {
            let cluster = cluster(length);
            let mut stream = frame(&cluster);
            stream.extend([0xa5; 300]);
            let mut context = DCtx::create();
            for reach in [1, 4096, BLOCK_LEN - 1, BLOCK_LEN, BLOCK_LEN + 1, length - 1] {
                let mut output = vec![0xee; length];
                let done = read_first(&mut context, &stream, &mut output, reach).unwrap();
                assert_eq!(done, reach.next_multiple_of(BLOCK_LEN), "{reach} of {length}");
                assert_eq!(output[..done], cluster[..done]);
                assert!(output[done..].iter().all(|&byte| byte == 0xee));
            }
        }
    }

    #[test]
    fn what_others_wrote_in_blocks_is_read_in_blocks_too() {
        // 128 KiB each.
        let cluster = cluster(1 << 20);
        let stream = zstd::bulk::compress(&cluster, 3).unwrap();
        let mut output = vec![0; cluster.len()];
        let done = read_first(&mut DCtx::create(), &stream, &mut output, 200_000);
        assert_eq!(done, Some(256 << 10));
        assert_eq!(output[..256 << 10], cluster[..256 << 10]);
    }

    #[test]
    fn nothing_is_read_in_part_where_that_gains_or_proves_nothing() {
        let bytes = cluster(1 << 16);
        let mut output = vec![0; 1 << 16];
        let mut context = DCtx::create();
        let mut first = |stream: &[u8], reach| read_first(&mut context, stream, &mut output, reach);
        // One block, one that is needed whole, a length of its own, none, a checksum.
        assert_eq!(first(&zstd::bulk::compress(&bytes, 3).unwrap(), 10), None);
        assert_eq!(first(&frame(&bytes), 1 << 16), None);
        assert_eq!(first(&frame(&bytes[..1 << 15]), 10), None);
        let mut silent = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        silent.write_all(&bytes[..10]).unwrap();
        silent.flush().unwrap();
        silent.write_all(&bytes[10..]).unwrap();
        assert_eq!(first(&silent.finish().unwrap(), 10), None);
        let mut summed = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        summed.include_checksum(true).unwrap();
        summed.set_pledged_src_size(Some(1 << 16)).unwrap();
        summed.write_all(&bytes[..10]).unwrap();
        summed.flush().unwrap();
        summed.write_all(&bytes[10..]).unwrap();
        assert_eq!(first(&summed.finish().unwrap(), 10), None);
    }

    #[test]
    fn a_damaged_frame_is_nothing_from_the_damage_on() {
        let bytes = cluster(1 << 16);
        let whole = frame(&bytes);
        let mut output = vec![0; 1 << 16];
        let mut context = DCtx::create();
        for length in 0..whole.len() {
            // Cut off, and going on with something else.
            let mut stream = whole[..length].to_vec();
            for _ in 0..2 {
                for reach in [1, BLOCK_LEN + 1, (1 << 16) - 1] {
                    if let Some(done) = read_first(&mut context, &stream, &mut output, reach) {
                        assert!(reach <= done);
                        if stream.len() == length {
                            assert_eq!(output[..done], bytes[..done]);
                        }
                    }
                }
                stream.resize(whole.len(), 0xff);
            }
        }
        let done = read_first(&mut context, &whole, &mut output, 1);
        assert_eq!(done, Some(BLOCK_LEN));
    }
    #[test]
    fn what_follows_a_frame_that_ends_early_is_not_read() {
        // One segment of 4096 bytes, so it says; a raw block of one byte, an empty one, the end.
        let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd, 0x60, 0x00, 0x0f];
        stream.extend([0x08, 0x00, 0x00, 7]);
        stream.extend([0x01, 0x00, 0x00]);
        // A second one with a window of 128 MiB, and one run-length block.
        stream.extend([0x28, 0xb5, 0x2f, 0xfd, 0x00, 17 << 3, 0x03, 0x80, 0x00, 9]);
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&stream).unwrap(), Some(4096));
        let mut output = vec![0; 4096];
        let mut context = DCtx::create();
        for reach in [2, 3, 100, 4095] {
            assert_eq!(read_first(&mut context, &stream, &mut output, reach), None, "{reach}");
        }
        assert!(context.sizeof() < 1 << 20);
        // A window of 128 MiB in the first one.
        let mut stream = vec![0x28, 0xb5, 0x2f, 0xfd, 0x40, 17 << 3, 0x00, 0x0f];
        stream.extend([0x08, 0x00, 0x00, 7, 0x03, 0x80, 0x00, 9]);
        assert_eq!(zstd::zstd_safe::get_frame_content_size(&stream).unwrap(), Some(4096));
        assert_eq!(read_first(&mut context, &stream, &mut output, 1), None);
    }
}
