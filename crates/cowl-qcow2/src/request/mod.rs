//! From located bytes to the guest's buffer.

mod decompress;
mod read;

pub(crate) use decompress::Decompressor;
