//! Changing bytes of an image behind everybody's back.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Writes `bytes` at `offset`.
///
/// # Panics
/// When the file cannot be written.
pub fn poke(path: &Path, offset: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path);
    let file = file.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    file.write_all_at(bytes, offset).expect("the file takes the bytes");
}

/// Writes a big-endian number.
pub fn poke_u16(path: &Path, offset: u64, value: u16) {
    poke(path, offset, &value.to_be_bytes());
}

/// Writes a big-endian number.
pub fn poke_u32(path: &Path, offset: u64, value: u32) {
    poke(path, offset, &value.to_be_bytes());
}

/// Writes a big-endian number.
pub fn poke_u64(path: &Path, offset: u64, value: u64) {
    poke(path, offset, &value.to_be_bytes());
}

/// Reads `N` bytes at `offset`.
///
/// # Panics
/// When the file has none there.
#[must_use]
pub fn read_at<const N: usize>(path: &Path, offset: u64) -> [u8; N] {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut bytes = [0; N];
    file.read_exact_at(&mut bytes, offset).expect("the file has the bytes");
    bytes
}
