//! Huffman codes of literals (RFC 8878, section 4.2).

use crate::Fault;
use crate::bits::{BackwardBits, MarkedBits};
use crate::fse::{Shares, State, numbers};

/// Bits of the longest code.
const CODE_MAX: u32 = 11;

/// Symbols whose codes fit into what is loaded at once.
const AT_ONCE: usize = (MarkedBits::LOADED / CODE_MAX) as usize;

/// The length of a code, and in the high byte its symbol, for each 11 bits that begin with it.
type Code = u16;

/// A table of codes.
pub(crate) struct Codes {
    table: [Code; 1 << CODE_MAX],
}

impl Codes {
    /// The fewest literals that four streams may have.
    const FOUR_MIN: usize = 6;

    pub(crate) fn new() -> Self {
        Self { table: [0; 1 << CODE_MAX] }
    }

    /// Takes the codes that the description at `frame[start..end]` says, and returns where it
    /// ends (section 4.2.1).
    pub(crate) fn read(&mut self, frame: &[u8], start: usize, end: usize) -> Result<usize, Fault> {
        let &first = frame.get(start).ok_or(Fault::Short)?;
        let body = start + 1;
        let mut weights = Weights::new();
        let tree_end = match first {
            0..128 => {
                let tree_end = body + usize::from(first);
                weights.read_coded(frame, body, tree_end.min(end))?;
                tree_end
            }
            _ => {
                let count = usize::from(first) - 127;
                let tree_end = body + count.div_ceil(2);
                let pairs = frame.get(body..tree_end).ok_or(Fault::Short)?;
                for index in 0..count {
                    let pair = pairs[index / 2];
                    weights.push(if index % 2 == 0 { pair >> 4 } else { pair & 15 })?;
                }
                tree_end
            }
        };
        if end < tree_end {
            return Err(Fault::Short);
        }
        self.fill(&mut weights)?;
        Ok(tree_end)
    }

    /// Codes by their weights (section 4.2.1.3). The last weight is what makes the sum a power of
    /// two.
    fn fill(&mut self, weights: &mut Weights) -> Result<(), Fault> {
        let share = |weight: usize| (1_usize << weight) >> 1;
        let shares = (0..).zip(weights.counts).map(|(weight, count)| count * share(weight));
        let sum: usize = shares.sum();
        if sum == 0 {
            return Err(Fault::Table);
        }
        let length_max = sum.ilog2() + 1;
        let left = (1 << length_max) - sum;
        if CODE_MAX < length_max || !left.is_power_of_two() {
            return Err(Fault::Table);
        }
        weights.push_number(u64::from(left.ilog2() + 1))?;
        // There are no codes of the greatest length, and so of the lowest weight, but in pairs.
        if weights.counts[1] == 0 {
            return Err(Fault::Table);
        }
        // Longer codes, of lower weights, come first.
        let sorted = weights.sorted();
        let mut symbols = &sorted[weights.counts[0]..];
        let mut table = &mut self.table[..];
        for (weight, length) in (1..).zip((1..=length_max).rev()) {
            let share = share(weight) << (CODE_MAX - length_max);
            let (of_weight, others) = symbols.split_at(weights.counts[weight]);
            let (codes, rest) = table.split_at_mut(of_weight.len() * share);
            put_all(codes, share, of_weight, length);
            (symbols, table) = (others, rest);
        }
        Ok(())
    }

    /// Fills `output` with what the stream in `frame[start..end]` says.
    pub(crate) fn decode_one(
        &self,
        frame: &[u8],
        start: usize,
        end: usize,
        output: &mut [u8],
    ) -> Result<(), Fault> {
        let stream = BackwardBits::new(frame, start, end)?;
        self.finish(stream, MarkedBits::of(stream)?, output)
    }

    /// Fills `output`, a quarter from each of four streams, which lie behind the table of their
    /// lengths in `frame[start..end]` (section 3.1.1.3.1.6).
    pub(crate) fn decode_four(
        &self,
        frame: &[u8],
        start: usize,
        end: usize,
        output: &mut [u8],
    ) -> Result<(), Fault> {
        let quarter = output.len().div_ceil(4);
        if output.len() < Self::FOUR_MIN || output.len() < 3 * quarter {
            return Err(Fault::Stream);
        }
        let lengths = frame.get(start..end).and_then(<[u8]>::first_chunk::<6>);
        let [first, second, third] = lengths.ok_or(Fault::Short)?.as_chunks::<2>().0 else {
            return Err(Fault::Short);
        };
        let mut at = start + 6;
        let mut stream = |length: &[u8; 2]| {
            let stream_start = at;
            at += usize::from(u16::from_le_bytes(*length));
            BackwardBits::new(frame, stream_start, at.min(end))
        };
        let streams = [stream(first)?, stream(second)?, stream(third)?];
        let [first, second, third] = streams;
        let streams = [first, second, third, BackwardBits::new(frame, at, end)?];

        // All but the last few of each.
        let shortest = output.len() - 3 * quarter;
        let whole = shortest / AT_ONCE * AT_ONCE;
        let bits = decode_in_turns(self, frame, streams, output, whole)?;
        for ((stream, bits), output) in streams.into_iter().zip(bits).zip(quarters(output)) {
            self.finish(stream, bits, &mut output[whole..])?;
        }
        Ok(())
    }

    /// Fills `output` with the last symbols of a stream.
    fn finish(
        &self,
        stream: BackwardBits,
        mut bits: MarkedBits,
        output: &mut [u8],
    ) -> Result<(), Fault> {
        for group in output.chunks_mut(AT_ONCE) {
            for symbol in group {
                *symbol = self.next(&mut bits);
            }
            bits.reload(stream.frame())?;
        }
        bits.is_done(stream).then_some(()).ok_or(Fault::Stream)
    }

    #[inline(always)]
    fn next(&self, bits: &mut MarkedBits) -> u8 {
        let code = self.table[bits.top(CODE_MAX)];
        // The shift uses no more than the low byte, so that is not cut out first.
        bits.take(u32::from(code));
        code.to_le_bytes()[1]
    }
}

/// Fills `codes` with the codes of symbols that have `length` bits, each `share` times.
fn put_all(codes: &mut [Code], share: usize, symbols: &[u8], length: u32) {
    match share {
        1 => put::<1>(codes, 1, symbols, length),
        2 => put::<2>(codes, 2, symbols, length),
        4 => put::<4>(codes, 4, symbols, length),
        8 => put::<8>(codes, 8, symbols, length),
        _ => put::<16>(codes, share, symbols, length),
    }
}

/// The same where the share is a multiple of `CHUNK`.
#[inline(always)]
fn put<const CHUNK: usize>(codes: &mut [Code], share: usize, symbols: &[u8], length: u32) {
    for (codes, &symbol) in codes.chunks_exact_mut(share).zip(symbols) {
        let code = Code::from_le_bytes([length.to_le_bytes()[0], symbol]);
        for chunk in codes.as_chunks_mut::<CHUNK>().0 {
            *chunk = [code; CHUNK];
        }
    }
}

/// Four parts of one length, but for the last one, which may be shorter.
#[inline(always)]
fn quarters(output: &mut [u8]) -> [&mut [u8]; 4] {
    let quarter = output.len().div_ceil(4);
    let (one, rest) = output.split_at_mut(quarter);
    let (two, rest) = rest.split_at_mut(quarter);
    let (three, four) = rest.split_at_mut(quarter);
    [one, two, three, four]
}

/// Fills the first `length` bytes, a multiple of [`AT_ONCE`], of each quarter of `output` from four
/// streams, in turns: each symbol of a stream waits for the one before.
#[multiversion::multiversion(targets("x86_64+bmi1+bmi2"))]
fn decode_in_turns(
    codes: &Codes,
    frame: &[u8],
    streams: [BackwardBits; 4],
    output: &mut [u8],
    length: usize,
) -> Result<[MarkedBits; 4], Fault> {
    let [one, two, three, four] = quarters(output);
    let one = one[..length].as_chunks_mut::<AT_ONCE>().0;
    let two = two[..length].as_chunks_mut::<AT_ONCE>().0;
    let three = three[..length].as_chunks_mut::<AT_ONCE>().0;
    let four = four[..length].as_chunks_mut::<AT_ONCE>().0;
    let mut first = MarkedBits::of(streams[0])?;
    let mut second = MarkedBits::of(streams[1])?;
    let mut third = MarkedBits::of(streams[2])?;
    let mut fourth = MarkedBits::of(streams[3])?;
    for (((one, two), three), four) in one.iter_mut().zip(two).zip(three).zip(four) {
        for index in 0..AT_ONCE {
            one[index] = codes.next(&mut first);
            two[index] = codes.next(&mut second);
            three[index] = codes.next(&mut third);
            four[index] = codes.next(&mut fourth);
        }
        first.reload(frame)?;
        second.reload(frame)?;
        third.reload(frame)?;
        fourth.reload(frame)?;
    }
    Ok([first, second, third, fourth])
}

/// The weight of each symbol; the last one is not written.
struct Weights {
    weights: [u8; 256],
    count: usize,
    /// How many symbols have each weight.
    counts: [usize; CODE_MAX as usize + 1],
}

impl Weights {
    fn new() -> Self {
        Self { weights: [0; 256], count: 0, counts: [0; CODE_MAX as usize + 1] }
    }

    fn all(&self) -> &[u8] {
        &self.weights[..self.count]
    }

    fn push(&mut self, weight: u8) -> Result<(), Fault> {
        if CODE_MAX < u32::from(weight) || self.count == self.weights.len() {
            return Err(Fault::Table);
        }
        self.weights[self.count] = weight;
        self.count += 1;
        self.counts[usize::from(weight)] += 1;
        Ok(())
    }

    fn push_number(&mut self, weight: u64) -> Result<(), Fault> {
        self.push(u8::try_from(weight).map_err(|_| Fault::Table)?)
    }

    /// The symbols, those of lower weights first.
    fn sorted(&self) -> [u8; 256] {
        let mut places = self.counts;
        let mut sum = 0;
        for place in &mut places {
            (*place, sum) = (sum, sum + *place);
        }
        let mut sorted = [0; 256];
        for (symbol, &weight) in (0..=u8::MAX).zip(self.all()) {
            let place = &mut places[usize::from(weight)];
            sorted[*place % 256] = symbol;
            *place += 1;
        }
        sorted
    }

    /// Weights that are coded themselves, by two states in turns (section 4.2.1.2).
    fn read_coded(&mut self, frame: &[u8], start: usize, end: usize) -> Result<(), Fault> {
        const LOG_MAX: u32 = 6;
        const WEIGHTS: [State; CODE_MAX as usize + 1] = numbers(0, &[]);
        let description = frame.get(start..end).ok_or(Fault::Short)?;
        let (shares, length) = Shares::read(description, WEIGHTS.len(), LOG_MAX)?;
        let mut table = [State::default(); 1 << LOG_MAX];
        shares.spread(&WEIGHTS, &mut table);
        let mut bits = BackwardBits::new(frame, start + length, end)?;
        if bits.left() < 2 * shares.log() {
            return Err(Fault::Stream);
        }
        let mut states = [bits.read(shares.log())?, bits.read(shares.log())?];
        loop {
            let state = table[states[0]];
            self.push_number(state.base())?;
            if bits.left() < state.width() {
                return self.push_number(table[states[1]].base());
            }
            let next = usize::try_from(state.next()).map_err(|_| Fault::Table)?;
            states = [states[1], next + bits.read(state.width())?];
        }
    }
}
