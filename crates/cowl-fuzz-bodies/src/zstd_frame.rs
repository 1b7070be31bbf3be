//! Frames of zstd: the start that is read here against what the library makes of all of them.

use ::zstd::zstd_safe;

/// The largest frame, and content of one: a cluster.
const LENGTH_MAX: usize = 2 << 20;

/// `data` is where a read ends, in sixteenths of the content, and then a frame.
///
/// # Panics
///
/// When a start is not that of what the library decodes, or shorter than what was asked for.
pub fn zstd(data: &[u8]) {
    let Some((&reach, stream)) = data.split_first() else { return };
    let Ok(Some(length)) = zstd_safe::get_frame_content_size(stream) else { return };
    let Ok(length) = usize::try_from(length) else { return };
    if LENGTH_MAX < length {
        return;
    }
    let reach = length * (usize::from(reach % 16) + 1) / 16;
    let mut first = vec![0; length];
    let Ok(done) = cowl_zstd::Decoder::new().decode(stream, &mut first, reach) else { return };
    assert!(reach <= done && done <= length);
    // The library may refuse what lies behind, and does not look at what follows the frame.
    let Ok(frame_length) = zstd_safe::find_frame_compressed_size(stream) else { return };
    let Ok(whole) = ::zstd::bulk::decompress(&stream[..frame_length], length) else { return };
    assert!(whole.starts_with(&first[..done]));
}
