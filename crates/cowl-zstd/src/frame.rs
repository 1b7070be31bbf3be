//! The header of a frame, and its blocks (RFC 8878, sections 3.1.1.1 and 3.1.1.2).

use core::ops::Range;

use crate::Fault;
use crate::literals::Literals;
use crate::sequences::Sequences;

/// Decodes frames, one after the other, in the same memory: 14 KiB, and the literals of one block,
/// at most 128 KiB.
pub struct Decoder {
    literals: Literals,
    sequences: Sequences,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder that has not decoded anything.
    pub fn new() -> Self {
        Self { literals: Literals::new(), sequences: Sequences::new() }
    }

    /// Decodes the frame that `stream` begins with, which has `length` bytes of content (less than
    /// 2 GiB), to the start of `output`, until that has `reach` bytes at least or is full. Returns
    /// how many it has. Bytes behind them may have changed, also where this fails.
    ///
    /// What the frame says behind that place is not looked at, nor whether it is sound. Where there
    /// is room for all of it, a `reach` of more than the length has all of it looked at.
    ///
    /// # Errors
    ///
    /// The frame is none for this decoder, or not sound up to that place.
    pub fn decode(
        &mut self,
        stream: &[u8],
        length: usize,
        output: &mut [u8],
        reach: usize,
    ) -> Result<usize, Fault> {
        i32::try_from(length).map_err(|_| Fault::Kind)?;
        let room = length.min(output.len());
        let output = &mut output[..room];
        // Where all has room, one byte more has the end looked at.
        let reach = if room < length { reach.min(room) } else { reach.min(length + 1) };
        let mut at = header_length(stream, length)?;
        self.literals.forget();
        self.sequences.forget();
        let mut done = 0;
        let mut is_last = false;
        while done < reach && !is_last {
            let block = Block::read(stream, at, length)?;
            // No block has more, nor may this one have more than the frame has left.
            let end_max = length.min(done + block.length_max);
            done = self.decode_block(stream, &block, output, done..end_max, reach)?;
            (at, is_last) = (block.end, block.is_last);
        }
        match reach.min(room) <= done {
            true => Ok(done.min(room)),
            false => Err(Fault::Short),
        }
    }

    /// Decodes one block to `place.start` of the content, whose end is at `place.end` at most, as
    /// far as `output` has room. Returns how many bytes of content are decoded then.
    fn decode_block(
        &mut self,
        stream: &[u8],
        block: &Block,
        output: &mut [u8],
        place: Range<usize>,
        reach: usize,
    ) -> Result<usize, Fault> {
        let body = stream.get(block.body..block.end).ok_or(Fault::Short)?;
        let length = match block.kind {
            Kind::Raw | Kind::Run => block.length,
            Kind::Compressed => {
                let literals = &mut self.literals;
                let sequences = literals.read(stream, block.body, block.end, place.len())?;
                let section = sequences..block.end;
                return self.sequences.run(stream, section, literals, output, place, reach);
            }
        };
        if place.len() < length {
            return Err(Fault::Room);
        }
        let end = place.start + length;
        let room = end.min(output.len());
        let output = &mut output[place.start..room];
        match block.kind {
            Kind::Run => output.fill(*body.first().ok_or(Fault::Short)?),
            _ => output.copy_from_slice(&body[..output.len()]),
        }
        Ok(end)
    }
}

/// What the header of a block says.
struct Block {
    kind: Kind,
    is_last: bool,
    /// Bytes of content of a raw block or a run, coded bytes of a compressed one.
    length: usize,
    /// The most that a block of this frame may have, coded or not.
    length_max: usize,
    /// Where its body lies.
    body: usize,
    end: usize,
}

enum Kind {
    Raw,
    Run,
    Compressed,
}

impl Block {
    const LENGTH_MAX: usize = 128 << 10;

    /// The header at `at`, in a frame that has `frame_length` bytes of content.
    fn read(stream: &[u8], at: usize, frame_length: usize) -> Result<Self, Fault> {
        let header = stream.get(at..).and_then(<[u8]>::first_chunk::<3>).ok_or(Fault::Short)?;
        let &[low, middle, high] = header;
        let header = u32::from_le_bytes([low, middle, high, 0]);
        let length = (header >> 3) as usize;
        let length_max = Self::LENGTH_MAX.min(frame_length);
        if length_max < length {
            return Err(Fault::Block);
        }
        let body = at + 3;
        let (kind, end) = match header >> 1 & 3 {
            0 => (Kind::Raw, body + length),
            1 => (Kind::Run, body + 1),
            2 => (Kind::Compressed, body + length),
            _ => return Err(Fault::Block),
        };
        Ok(Self { kind, is_last: header & 1 != 0, length, length_max, body, end })
    }
}

/// Bytes of the header of a frame of one segment that says it has `length` bytes.
fn header_length(stream: &[u8], length: usize) -> Result<usize, Fault> {
    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    const IS_SINGLE_SEGMENT: u8 = 0x20;
    // That bit, those of a checksum and of a dictionary, and a reserved one.
    const EXPECTED: u8 = 0x2f;
    let rest = stream.strip_prefix(&MAGIC).ok_or(Fault::Kind)?;
    let (&descriptor, rest) = rest.split_first().ok_or(Fault::Kind)?;
    if descriptor & EXPECTED != IS_SINGLE_SEGMENT {
        return Err(Fault::Kind);
    }
    let (width, least) = [(1, 0), (2, 256), (4, 0), (8, 0)][usize::from(descriptor >> 6)];
    let mut eight = [0; 8];
    eight[..width].copy_from_slice(rest.get(..width).ok_or(Fault::Kind)?);
    match u64::from_le_bytes(eight).checked_add(least) == Some(length as u64) {
        true => Ok(MAGIC.len() + 1 + width),
        false => Err(Fault::Kind),
    }
}

#[cfg(test)]
mod tests;
