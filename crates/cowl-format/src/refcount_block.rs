//! Refcount blocks: one number of 1 to 64 bits for each host cluster.
//!
//! Widths of 8 bits and more are big-endian integers; narrower ones are packed into bytes from the
//! least significant bit up.

use crate::bytes::{be16, be32, be64, put16, put32, put64};
use crate::{Geometry, RefcountBlockIndex};

/// The bytes of a refcount block, or of a part of one that starts at a byte boundary.
///
/// `B` is anything that holds bytes: a borrowed slice to read, a vector to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefcountBlock<B> {
    bytes: B,
    order: u32,
}

impl<B: AsRef<[u8]>> RefcountBlock<B> {
    /// Wraps the bytes of a block.
    pub fn new(bytes: B, geometry: Geometry) -> Self {
        assert!(bytes.as_ref().len() <= geometry.cluster_len());
        Self { bytes, order: geometry.refcount_order() }
    }

    /// Number of entries in the wrapped bytes.
    #[must_use]
    pub fn entries(&self) -> u64 {
        ((self.bytes.as_ref().len() as u64) << 3) >> self.order
    }

    /// The refcount at `index`.
    #[must_use]
    pub fn get(&self, index: RefcountBlockIndex) -> u64 {
        let bytes = self.bytes.as_ref();
        let index = index.get() as usize;
        match self.order {
            0..=2 => {
                let (at, shift, mask) = packed(index, self.order);
                u64::from(bytes[at] >> shift & mask)
            }
            3 => u64::from(bytes[index]),
            4 => u64::from(be16(bytes, index * 2)),
            5 => u64::from(be32(bytes, index * 4)),
            _ => be64(bytes, index * 8),
        }
    }

    /// The wrapped bytes, to look at.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// The wrapped bytes.
    pub fn into_bytes(self) -> B {
        self.bytes
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> RefcountBlock<B> {
    /// Sets the refcount at `index`. Panics when `value` does not fit in the width.
    #[allow(clippy::cast_possible_truncation, reason = "asserted to fit in the width")]
    pub fn set(&mut self, index: RefcountBlockIndex, value: u64) {
        assert!(value <= u64::MAX >> (64 - (1 << self.order)));
        let bytes = self.bytes.as_mut();
        let index = index.get() as usize;
        match self.order {
            0..=2 => {
                let (at, shift, mask) = packed(index, self.order);
                bytes[at] = bytes[at] & !(mask << shift) | (value as u8) << shift;
            }
            3 => bytes[index] = value as u8,
            4 => put16(bytes, index * 2, value as u16),
            5 => put32(bytes, index * 4, value as u32),
            _ => put64(bytes, index * 8, value),
        }
    }
}

/// Byte, shift and mask of a refcount narrower than a byte.
fn packed(index: usize, order: u32) -> (usize, u32, u8) {
    let per_byte_bits = 3 - order;
    let width = 1_u32 << order;
    let within = u32::try_from(index & ((1 << per_byte_bits) - 1)).expect("at most 7");
    (index >> per_byte_bits, within * width, 0xff >> (8 - width))
}

#[cfg(test)]
mod tests {
    use super::RefcountBlock;
    use crate::{Geometry, RefcountBlockIndex};

    #[test]
    fn all_seven_widths_keep_neighbours_apart() {
        for order in 0..=6 {
            let geometry = Geometry::new(9, order, false).unwrap();
            let mut block = RefcountBlock::new(vec![0; 512], geometry);
            let entries = u32::try_from(block.entries()).unwrap();
            assert_eq!(u64::from(entries), geometry.refcount_block_entries());
            let value = |index: u32| {
                u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15) & geometry.refcount_max()
            };
            for index in 0..entries {
                block.set(RefcountBlockIndex::new(index), value(index));
            }
            for index in 0..entries {
                assert_eq!(
                    block.get(RefcountBlockIndex::new(index)),
                    value(index),
                    "order {order}"
                );
            }
        }
    }

    #[test]
    fn narrow_widths_fill_a_byte_from_its_low_end() {
        let geometry = Geometry::new(9, 1, false).unwrap();
        let mut block = RefcountBlock::new(vec![0; 512], geometry);
        block.set(RefcountBlockIndex::new(1), 3);
        assert_eq!(block.into_bytes()[0], 0b0000_1100);
        let geometry = Geometry::new(9, 4, false).unwrap();
        let mut block = RefcountBlock::new(vec![0; 512], geometry);
        block.set(RefcountBlockIndex::new(1), 0x0102);
        assert_eq!(block.into_bytes()[2..4], [1, 2]);
    }
}
