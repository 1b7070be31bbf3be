//! Frames of zstd: the start that is read here against what the library makes of all of them.

use ::zstd::zstd_safe;

/// The largest frame, and content of one: a cluster.
const LENGTH_MAX: usize = 2 << 20;

/// `data` is where a read ends, in sixteenths of the content, and then a frame.
///
/// # Panics
///
/// When a start is not that of what the library decodes, shorter than what was asked for, or not
/// the same in other memory or with less of it.
pub fn zstd(data: &[u8]) {
    let Some((&reach, stream)) = data.split_first() else { return };
    let Ok(Some(length)) = zstd_safe::get_frame_content_size(stream) else { return };
    let Ok(length) = usize::try_from(length) else { return };
    if LENGTH_MAX < length {
        return;
    }
    let reach = length * (usize::from(reach % 16) + 1) / 16;
    let mut decoder = cowl_zstd::Decoder::new();
    let mut first = vec![0; length];
    let result = decoder.decode(stream, length, &mut first, reach);
    // Nothing may come from what was in the memory before, the decoder's included.
    let mut again = vec![0xff; length];
    assert_eq!(decoder.decode(stream, length, &mut again, reach), result);
    assert!(result.is_err() || result.is_ok_and(|done| first[..done] == again[..done]));
    // Nor may it matter how much room there is behind what is asked for.
    let short = decoder.decode(stream, length, &mut again[..reach], reach);
    assert_eq!(short, result.map(|done| done.min(reach)));
    assert!(short.is_err() || first[..reach] == again[..reach]);
    // What is sound to its end is so for the library; a start may lie before damage.
    if decoder.decode(stream, length, &mut again, length + 1).is_ok() {
        assert!(by_library(stream, length).is_some_and(|whole| whole == again));
    }
    let Ok(done) = result else { return };
    assert!(reach <= done && done <= length);
    // The library may refuse what lies behind.
    let Some(whole) = by_library(stream, length) else { return };
    assert!(whole.starts_with(&first[..done]));
}

/// The content of the frame that `stream` begins with, of at most `length` bytes; nothing where the
/// library refuses it.
fn by_library(stream: &[u8], length: usize) -> Option<Vec<u8>> {
    let frame_length = zstd_safe::find_frame_compressed_size(stream).ok()?;
    ::zstd::bulk::decompress(&stream[..frame_length], length).ok()
}
