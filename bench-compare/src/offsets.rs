//! Where reads go: the same reproducible scatter for everybody who takes offsets.

/// Bytes of one read.
pub(crate) const BLOCK: usize = 4096;

/// A stream of block-aligned offsets.
pub(crate) struct Offsets {
    state: u64,
    blocks: u64,
    /// Blocks from one to the next; random without.
    step: Option<u64>,
}

impl Offsets {
    /// Random blocks of a disk of `size` bytes; each `seed` is another stream.
    pub(crate) fn random(size: u64, seed: u64) -> Self {
        let state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { state, blocks: size / BLOCK as u64, step: None }
    }

    /// From 0 on by `step` bytes, round and round.
    pub(crate) fn stepped(size: u64, step: u64) -> Self {
        Self { state: 0, blocks: size / BLOCK as u64, step: Some(step / BLOCK as u64) }
    }

    #[inline]
    pub(crate) fn next(&mut self) -> u64 {
        if let Some(step) = self.step {
            let this = self.state;
            self.state = (this + step) % self.blocks;
            return this * BLOCK as u64;
        }
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        // The high bits, scaled: no division on the path that is measured.
        let scaled = u128::from(self.state) * u128::from(self.blocks);
        (scaled >> 64) as u64 * BLOCK as u64
    }
}
