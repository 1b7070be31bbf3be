//! Which parts of a disk were changed since somebody began to look.

/// One bit for each [`granularity`](Self::granularity) bytes of a disk: set where they are dirty.
///
/// Uniform parts take no memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmap {
    granularity: u64,
    chunk_bits: u64,
    chunks: Vec<BitmapChunk>,
}

/// Bits that lie together; the last chunk may have more of them than the disk needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapChunk {
    /// All clear.
    Clean,
    /// All set.
    Dirty,
    /// The least significant bit of the first byte comes first.
    Bits(Box<[u8]>),
}

/// A part of a disk that is dirty or clean throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyRun {
    /// Whether it is dirty.
    pub is_dirty: bool,
    /// Its length in bytes.
    pub length: u64,
}

impl DirtyBitmap {
    /// Chunks of `chunk_bytes` bytes of bits each, in order.
    ///
    /// # Panics
    /// When `granularity` is no power of two, or a chunk has another length.
    #[must_use]
    pub fn new(granularity: u64, chunk_bytes: usize, chunks: Vec<BitmapChunk>) -> Self {
        assert!(granularity.is_power_of_two());
        assert!(0 < chunk_bytes);
        for chunk in &chunks {
            if let BitmapChunk::Bits(bits) = chunk {
                assert!(bits.len() == chunk_bytes);
            }
        }
        Self { granularity, chunk_bits: 8 * chunk_bytes as u64, chunks }
    }

    /// Bytes of the disk that one bit stands for.
    #[must_use]
    pub fn granularity(&self) -> u64 {
        self.granularity
    }

    /// The longest run that begins at byte `at`, at most `length_max` long. Behind the last bit
    /// everything is clean.
    #[must_use]
    pub fn run(&self, at: u64, length_max: u64) -> DirtyRun {
        let first = at / self.granularity;
        let (is_dirty, mut known) = self.same_from(first);
        let mut end = first + known;
        while end.saturating_mul(self.granularity) < at.saturating_add(length_max) {
            let (next, count) = self.same_from(end);
            if next != is_dirty {
                break;
            }
            known = count;
            end = end.saturating_add(known);
        }
        let length = end.saturating_mul(self.granularity) - at;
        DirtyRun { is_dirty, length: length.min(length_max) }
    }

    /// The bit number `bit`, and how many in a row are known to be like it, at least that one.
    fn same_from(&self, bit: u64) -> (bool, u64) {
        let within = bit % self.chunk_bits;
        let chunk = usize::try_from(bit / self.chunk_bits).ok();
        match chunk.and_then(|chunk| self.chunks.get(chunk)) {
            None => (false, u64::MAX - bit),
            Some(BitmapChunk::Clean) => (false, self.chunk_bits - within),
            Some(BitmapChunk::Dirty) => (true, self.chunk_bits - within),
            Some(BitmapChunk::Bits(bits)) => same_in(bits, within),
        }
    }
}

/// The same within stored bits.
fn same_in(bits: &[u8], first: u64) -> (bool, u64) {
    let is_set = |bit: u64| {
        let byte = usize::try_from(bit / 8).expect("within a chunk");
        bits[byte] & (1 << (bit % 8)) != 0
    };
    let end = 8 * bits.len() as u64;
    let value = is_set(first);
    let uniform = if value { u8::MAX } else { 0 };
    let mut bit = first + 1;
    while bit < end {
        let byte = usize::try_from(bit / 8).expect("within a chunk");
        match bit % 8 {
            // Whole bytes at a time.
            0 if bits[byte] == uniform => bit += 8,
            _ if is_set(bit) == value => bit += 1,
            _ => break,
        }
    }
    (value, bit.min(end) - first)
}

#[cfg(test)]
mod tests {
    use super::{BitmapChunk, DirtyBitmap, DirtyRun};

    const G: u64 = 512;

    /// The runs of `length` bytes from `at` on.
    fn runs(bitmap: &DirtyBitmap, mut at: u64, length: u64) -> Vec<(bool, u64)> {
        let end = at + length;
        let mut runs = Vec::new();
        while at < end {
            let DirtyRun { is_dirty, length } = bitmap.run(at, end - at);
            assert!(0 < length);
            runs.push((is_dirty, length));
            at += length;
        }
        runs
    }

    fn bitmap() -> DirtyBitmap {
        let bits = BitmapChunk::Bits(Box::new([0b1111_0000, 0xff]));
        let chunks = vec![BitmapChunk::Clean, bits, BitmapChunk::Dirty, BitmapChunk::Clean];
        DirtyBitmap::new(G, 2, chunks)
    }

    #[test]
    fn runs_go_on_over_the_borders_of_chunks() {
        let dirty = (20 * G, 48 * G);
        assert_eq!(
            runs(&bitmap(), 0, 100 * G),
            [(false, dirty.0), (true, dirty.1 - dirty.0), (false, 52 * G)]
        );
    }

    #[test]
    fn a_run_may_begin_and_end_within_a_bit() {
        assert_eq!(runs(&bitmap(), 20 * G - 100, 200), [(false, 100), (true, 100)]);
        assert_eq!(bitmap().run(30 * G + 1, 5), DirtyRun { is_dirty: true, length: 5 });
    }

    #[test]
    fn every_bit_is_what_a_look_at_it_says() {
        let mut state = 1_u32;
        let bytes: Vec<u8> = (0..64)
            .map(|_| {
                state = state.wrapping_mul(1_103_515_245).wrapping_add(12345);
                // Long runs and short ones.
                if state & 0x400 == 0 { state.to_le_bytes()[2] } else { 0xff }
            })
            .collect();
        let chunks =
            bytes.chunks(4).map(|bits| BitmapChunk::Bits(bits.to_vec().into_boxed_slice()));
        let bitmap = DirtyBitmap::new(G, 4, chunks.collect());
        let mut at = 0;
        for (is_dirty, length) in runs(&bitmap, 0, 64 * 8 * G) {
            for bit in at / G..(at + length) / G {
                let stored = bytes[usize::try_from(bit / 8).unwrap()] & (1 << (bit % 8)) != 0;
                assert_eq!(stored, is_dirty, "bit {bit}");
            }
            at += length;
        }
    }

    #[test]
    fn the_end_of_all_numbers_is_no_trap() {
        let run = bitmap().run(u64::MAX - 10, 10);
        assert_eq!(run, DirtyRun { is_dirty: false, length: 10 });
    }
}
