//! The literals of a block: bytes that it does not copy (RFC 8878, section 3.1.1.3.1).

use crate::Fault;
use crate::bits::low;
use crate::copy;
use crate::huffman::Codes;

/// Literals of one block, and the codes that the next one may use again.
pub(crate) struct Literals {
    bytes: Vec<u8>,
    length: usize,
    codes: Codes,
    has_codes: bool,
}

impl Literals {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), length: 0, codes: Codes::new(), has_codes: false }
    }

    /// A frame begins: no codes are known.
    pub(crate) fn forget(&mut self) {
        self.has_codes = false;
    }

    pub(crate) fn length(&self) -> usize {
        self.length
    }

    /// The literals, and other bytes behind them, at least [`copy::MARGIN`].
    pub(crate) fn all(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes the section that starts the block in `frame[start..end]`, of at most `length_max`
    /// literals, and returns where it ends.
    pub(crate) fn read(
        &mut self,
        frame: &[u8],
        start: usize,
        end: usize,
        length_max: usize,
    ) -> Result<usize, Fault> {
        let header = Header::read(frame.get(start..end).ok_or(Fault::Short)?)?;
        if length_max < header.length {
            return Err(Fault::Block);
        }
        self.length = header.length;
        let needed = self.length + copy::MARGIN;
        if self.bytes.len() < needed {
            self.bytes.reserve_exact(needed - self.bytes.len());
            self.bytes.resize(needed, 0);
        }
        let output = &mut self.bytes[..header.length];
        let body_start = start + header.header_length;
        let body_end = body_start + header.body_length;
        if end < body_end {
            return Err(Fault::Short);
        }
        let body = frame.get(body_start..body_end).ok_or(Fault::Short)?;
        match header.kind {
            Kind::Raw => output.copy_from_slice(body),
            Kind::Run => output.fill(*body.first().ok_or(Fault::Short)?),
            Kind::Coded | Kind::CodedAsBefore => {
                let mut streams = body_start;
                if matches!(header.kind, Kind::Coded) {
                    streams = self.codes.read(frame, body_start, body_end)?;
                    self.has_codes = true;
                } else if !self.has_codes {
                    return Err(Fault::Table);
                }
                match header.has_four_streams {
                    true => self.codes.decode_four(frame, streams, body_end, output)?,
                    false => self.codes.decode_one(frame, streams, body_end, output)?,
                }
            }
        }
        Ok(body_end)
    }
}

/// What the section starts with (section 3.1.1.3.1.1).
struct Header {
    kind: Kind,
    has_four_streams: bool,
    /// Literals.
    length: usize,
    header_length: usize,
    /// Bytes of the section behind the header.
    body_length: usize,
}

enum Kind {
    Raw,
    Run,
    Coded,
    /// With the codes of the block before.
    CodedAsBefore,
}

impl Header {
    fn read(section: &[u8]) -> Result<Self, Fault> {
        let mut eight = [0; 8];
        let known = section.len().min(8);
        eight[..known].copy_from_slice(&section[..known]);
        let header = u64::from_le_bytes(eight);
        #[expect(clippy::cast_possible_truncation, reason = "fields have 20 bits at most")]
        let field = |from: u32, width: u32| low(header >> from, width) as usize;
        let format = eight[0] >> 2 & 3;
        let kind = match eight[0] & 3 {
            0 => Kind::Raw,
            1 => Kind::Run,
            2 => Kind::Coded,
            _ => Kind::CodedAsBefore,
        };
        let is_coded = matches!(kind, Kind::Coded | Kind::CodedAsBefore);
        let (header_length, length, coded_length) = match (is_coded, format) {
            (false, 0 | 2) => (1, field(3, 5), 0),
            (false, 1) => (2, field(4, 12), 0),
            (false, _) => (3, field(4, 20), 0),
            (true, 0 | 1) => (3, field(4, 10), field(14, 10)),
            (true, 2) => (4, field(4, 14), field(18, 14)),
            (true, _) => (5, field(4, 18), field(22, 18)),
        };
        if known < header_length {
            return Err(Fault::Short);
        }
        let body_length = match kind {
            Kind::Raw => length,
            Kind::Run => 1,
            Kind::Coded | Kind::CodedAsBefore => coded_length,
        };
        Ok(Self { kind, has_four_streams: format != 0, length, header_length, body_length })
    }
}
