//! Bytes that tell who wrote them, and where they belong.
//!
//! Each write has a number; sector n of the disk, written by write w, is filled with a stamp of
//! both. Bytes of an older write, of a failed one or of another address are so recognised as what
//! they are.

use crate::effect::SECTOR;
use crate::random::mix;

/// How well the bytes of a write compress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Texture {
    /// The stamp of a sector, again and again.
    Plain,
    /// Other bytes in each word.
    Noise,
}

/// The eight bytes at `at`, a multiple of 8. No byte is zero, so none is taken for a hole.
fn word(write: u64, texture: Texture, at: u64) -> [u8; 8] {
    let place = match texture {
        Texture::Plain => at / SECTOR,
        Texture::Noise => at / 8 + (1 << 40),
    };
    mix(mix(write) ^ place).to_le_bytes().map(|byte| byte.max(1))
}

/// Fills `bytes`, which lie at `at` on the disk, with the stamps of a write.
pub fn fill(write: u64, texture: Texture, at: u64, bytes: &mut [u8]) {
    for (place, byte) in (at..).zip(bytes) {
        let word = word(write, texture, place & !7);
        *byte = word[usize::try_from(place % 8).expect("below 8")];
    }
}

/// Whether `bytes`, which lie at `at`, are those of a write.
#[must_use]
pub fn matches(write: u64, texture: Texture, at: u64, bytes: &[u8]) -> bool {
    let mut rest = bytes;
    let mut place = at;
    while !rest.is_empty() {
        let skip = usize::try_from(place % 8).expect("below 8");
        let length = rest.len().min(8 - skip);
        if word(write, texture, place & !7)[skip..skip + length] != rest[..length] {
            return false;
        }
        rest = &rest[length..];
        place += length as u64;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::{Texture, fill, matches};

    #[test]
    fn a_stamp_belongs_to_one_write_and_one_place() {
        for texture in [Texture::Plain, Texture::Noise] {
            let mut bytes = [0; 77];
            fill(3, texture, 1001, &mut bytes);
            assert!(matches(3, texture, 1001, &bytes));
            assert!(!matches(4, texture, 1001, &bytes));
            assert!(!matches(3, texture, 1001 + 512, &bytes));
        }
    }
}
