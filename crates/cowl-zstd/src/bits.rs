//! Bits of a stream, forwards and backwards (RFC 8878, sections 3.1.1.3 and 4.1).

use crate::Fault;

/// Reads from the last bit of a stream to its first one, as entropy-coded streams are read.
///
/// The stream lies in a frame, behind at least [`MARGIN`](Self::MARGIN) bytes: eight bytes are
/// loaded at a time, and those before the stream may be among them. They are no part of what a
/// sound stream says; one that goes on into them shows at its end ([`is_done`](Self::is_done)).
/// Positions are of 32 bits, frames are shorter: where `usize` has 64, adding to one of them does
/// not overflow, and the processor has one bound to look at instead of two.
#[derive(Clone, Copy)]
pub(crate) struct BackwardBits<'a> {
    frame: &'a [u8],
    /// The first bit that belongs to the stream.
    start: u32,
    /// The bit behind the next one.
    end: u32,
}

impl<'a> BackwardBits<'a> {
    /// Bytes of the frame before the first stream in it.
    pub(crate) const MARGIN: usize = 8;

    /// Bits that are loaded at once, at least.
    pub(crate) const LOADED: u32 = 57;

    /// The stream in `frame[start..end]`, whose highest bit that is set says where it ends.
    pub(crate) fn new(frame: &'a [u8], start: usize, end: usize) -> Result<Self, Fault> {
        let stream = frame.get(start..end).ok_or(Fault::Short)?;
        let &last = stream.last().ok_or(Fault::Short)?;
        if last == 0 || start < Self::MARGIN {
            return Err(Fault::Stream);
        }
        let bit = |byte: usize| i32::try_from(byte * 8).map(i32::cast_unsigned);
        let bit = |byte: usize| bit(byte).map_err(|_| Fault::Kind);
        Ok(Self { frame, start: bit(start)?, end: bit(end - 1)? + last.ilog2() })
    }

    /// Eight bytes with the next bits, and how many bits of them there are up to the next one, 57
    /// to 64.
    #[inline(always)]
    pub(crate) fn load(&self) -> Result<(u64, u32), Fault> {
        let last = self.end.wrapping_sub(1);
        let loaded = word(self.frame, (last >> 3).wrapping_sub(7))?;
        Ok((loaded, Self::LOADED + (last & 7)))
    }

    /// The next `count` bits, at most 57.
    #[inline(always)]
    pub(crate) fn peek(&self, count: u32) -> Result<u64, Fault> {
        let (loaded, top) = self.load()?;
        Ok(low(loaded >> ((top - count) & 63), count))
    }

    /// Goes on behind the next `count` bits.
    #[inline(always)]
    pub(crate) fn skip(&mut self, count: u32) {
        self.end = self.end.wrapping_sub(count);
    }

    /// The number in the next `count` bits, at most 27, and goes on behind them.
    #[inline(always)]
    pub(crate) fn read(&mut self, count: u32) -> Result<usize, Fault> {
        let bits = self.peek(count)?;
        self.skip(count);
        usize::try_from(bits).map_err(|_| Fault::Stream)
    }

    /// How many bits are left.
    pub(crate) fn left(&self) -> u32 {
        match self.is_overrun() {
            true => 0,
            false => self.end - self.start,
        }
    }

    /// Whether all bits were read, and none before them.
    pub(crate) fn is_done(&self) -> bool {
        self.end == self.start
    }

    /// Whether bits before the stream were read. There are fewer than 2^31 of them.
    pub(crate) fn is_overrun(&self) -> bool {
        self.end.wrapping_sub(self.start).cast_signed() < 0
    }

    pub(crate) fn frame(&self) -> &'a [u8] {
        self.frame
    }
}

/// Loaded bits, the next one in the highest place. The lowest one that is set is a mark: it tells
/// how many were taken.
#[derive(Clone, Copy)]
pub(crate) struct MarkedBits {
    /// Where the bytes lie that were loaded.
    at: u32,
    bits: u64,
}

impl MarkedBits {
    /// Bits that may be taken until the next [`reload`](Self::reload).
    pub(crate) const LOADED: u32 = 56;

    /// The bits of a stream.
    #[inline(always)]
    pub(crate) fn of(stream: BackwardBits) -> Result<Self, Fault> {
        let last = stream.end.wrapping_sub(1);
        let mut bits = Self { at: (last >> 3).wrapping_sub(7), bits: 0 };
        bits.load(stream.frame, 7 - (last & 7))?;
        Ok(bits)
    }

    /// The next `count` bits, at least 1.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "as many bits as the caller says, few")]
    pub(crate) fn top(&self, count: u32) -> usize {
        (self.bits >> ((64 - count) & 63)) as usize
    }

    /// Goes on behind as many bits as the low six bits of `count` say.
    #[inline(always)]
    pub(crate) fn take(&mut self, count: u32) {
        self.bits <<= count & 63;
    }

    /// Loads again, with the bits that were not taken yet.
    #[inline(always)]
    pub(crate) fn reload(&mut self, frame: &[u8]) -> Result<(), Fault> {
        let taken = self.bits.trailing_zeros();
        self.at = self.at.wrapping_sub(taken >> 3);
        self.load(frame, taken & 7)
    }

    #[inline(always)]
    fn load(&mut self, frame: &[u8], taken: u32) -> Result<(), Fault> {
        self.bits = (word(frame, self.at)? | 1) << taken;
        Ok(())
    }

    /// Whether all bits of the stream were taken, and none before them.
    pub(crate) fn is_done(self, stream: BackwardBits) -> bool {
        let end = self.at.wrapping_mul(8).wrapping_add(64 - self.bits.trailing_zeros());
        end == stream.start
    }
}

/// The eight bytes at `at`, the last of them highest.
#[inline(always)]
fn word(frame: &[u8], at: u32) -> Result<u64, Fault> {
    let at = at as usize;
    let bytes = frame.get(at..at + 8).ok_or(Fault::Stream)?;
    Ok(u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
}

/// The lowest `count` bits of `bits`, less than 64.
#[inline(always)]
pub(crate) fn low(bits: u64, count: u32) -> u64 {
    bits & !(u64::MAX << (count & 63))
}

/// Reads from the first bit to the last, as the descriptions of tables are read.
pub(crate) struct ForwardBits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> ForwardBits<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// The next `count` bits, at most 16; zeros behind the end.
    pub(crate) fn peek(&self, count: u32) -> u32 {
        let mut four = [0; 4];
        let rest = self.bytes.get(self.at / 8..).unwrap_or_default();
        let length = rest.len().min(4);
        four[..length].copy_from_slice(&rest[..length]);
        u32::from_le_bytes(four) >> (self.at % 8) & ((1 << count) - 1)
    }

    pub(crate) fn skip(&mut self, count: u32) {
        self.at += count as usize;
    }

    /// Bytes that were read from, or why there are not that many.
    pub(crate) fn length(&self) -> Result<usize, Fault> {
        let length = self.at.div_ceil(8);
        (length <= self.bytes.len()).then_some(length).ok_or(Fault::Short)
    }
}
