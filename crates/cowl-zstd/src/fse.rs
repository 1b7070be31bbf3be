//! Finite state entropy coding: how probable symbols are, and the states that follow from that
//! (RFC 8878, section 4.1).

use crate::Fault;
use crate::bits::ForwardBits;

/// A state of a table: what its code stands for, and the way to the next state. In one word, from
/// the lowest bits on: the bits to read for the value (8 bits), those for the next state (8), what
/// they are added to there (16), and what they are added to for the value (32).
///
/// Words of different tables may be added: no sum of three fields is more than its field can hold.
#[derive(Clone, Copy, Default)]
pub(crate) struct State(u64);

impl State {
    pub(crate) const fn new(base: u32, extra: u8) -> Self {
        Self((base as u64) << 32 | extra as u64)
    }

    #[inline(always)]
    fn then(self, next: u32, width: u32) -> Self {
        Self(self.0 | u64::from(next) << 16 | u64::from(width) << 8)
    }

    /// The bits of three states together.
    #[inline(always)]
    pub(crate) fn with(self, second: Self, third: Self) -> Self {
        Self(self.0 + second.0 + third.0)
    }

    /// Added to the value.
    #[inline(always)]
    pub(crate) fn base(self) -> u64 {
        self.0 >> 32
    }

    /// Bits of the value.
    #[inline(always)]
    pub(crate) fn extra(self) -> u32 {
        u32::from(self.0.to_le_bytes()[0])
    }

    /// Added to the next state.
    #[inline(always)]
    pub(crate) fn next(self) -> u64 {
        self.0 >> 16 & 0xffff
    }

    /// Bits of the next state.
    #[inline(always)]
    pub(crate) fn width(self) -> u32 {
        u32::from(self.0.to_le_bytes()[1])
    }
}

/// Numbers from `first` on: as many for each code as its extra bits tell apart.
pub(crate) const fn numbers<const CODES: usize>(first: u32, extra: &[u8]) -> [State; CODES] {
    let mut values = [State::new(0, 0); CODES];
    let single = CODES - extra.len();
    let mut base = first;
    let mut code = 0;
    while code < CODES {
        let bits = if code < single { 0 } else { extra[code - single] };
        values[code] = State::new(base, bits);
        base += 1 << bits;
        code += 1;
    }
    values
}

/// How probable each symbol is, in shares of a power of two. -1 is a share of less than one, which
/// takes one state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shares {
    counts: [i16; Self::SYMBOLS_MAX],
    symbols: usize,
    /// The logarithm of the sum.
    log: u32,
}

impl Shares {
    /// Match lengths have 53 symbols; nothing else has more.
    pub(crate) const SYMBOLS_MAX: usize = 53;

    /// What a description says (section 4.1.1), and how many bytes it has.
    pub(crate) fn read(
        bytes: &[u8],
        symbols_max: usize,
        log_max: u32,
    ) -> Result<(Self, usize), Fault> {
        assert!(symbols_max <= Self::SYMBOLS_MAX);
        let mut bits = ForwardBits::new(bytes);
        let log = bits.peek(4) + 5;
        bits.skip(4);
        if log_max < log {
            return Err(Fault::Table);
        }
        let mut shares = Self { counts: [0; Self::SYMBOLS_MAX], symbols: 0, log };
        let mut left = 1_u32 << log;
        while 0 < left {
            let value = read_share(&mut bits, left);
            // One more than the count: 0 stands for -1.
            let count = i16::try_from(value).map_err(|_| Fault::Table)? - 1;
            shares.push(count, symbols_max)?;
            left -= u32::from(count.unsigned_abs());
            if count == 0 {
                shares.push_zeros(&mut bits, symbols_max)?;
            }
        }
        Ok((shares, bits.length()?))
    }

    /// The logarithm of the number of states.
    pub(crate) fn log(&self) -> u32 {
        self.log
    }

    /// Shares that the specification names.
    pub(crate) fn of(counts: &[i16], log: u32) -> Self {
        let mut shares = Self { counts: [0; Self::SYMBOLS_MAX], symbols: counts.len(), log };
        shares.counts[..counts.len()].copy_from_slice(counts);
        shares
    }

    /// Zeros behind a zero: how many, up to three at a time.
    fn push_zeros(&mut self, bits: &mut ForwardBits, symbols_max: usize) -> Result<(), Fault> {
        loop {
            let zeros = bits.peek(2);
            bits.skip(2);
            for _ in 0..zeros {
                self.push(0, symbols_max)?;
            }
            if zeros < 3 {
                return Ok(());
            }
        }
    }

    fn push(&mut self, count: i16, symbols_max: usize) -> Result<(), Fault> {
        if self.symbols == symbols_max {
            return Err(Fault::Table);
        }
        self.counts[self.symbols] = count;
        self.symbols += 1;
        Ok(())
    }

    /// Fills `states` with those of this table. `values` has what each symbol stands for.
    pub(crate) fn spread(&self, values: &[State], states: &mut [State]) {
        let counts = &self.counts[..self.symbols];
        spread(counts, self.log, &values[..counts.len()], &mut states[..1 << self.log]);
    }
}

/// States of the largest table.
const STATES_MAX: usize = 512;

#[multiversion::multiversion(targets("x86_64+bmi1+bmi2+lzcnt"))]
fn spread(counts: &[i16], log: u32, values: &[State], states: &mut [State]) {
    // A power of two above the number of symbols: no index into it is beyond its end.
    const SYMBOLS: usize = Shares::SYMBOLS_MAX.next_power_of_two();
    let mut symbols = [0_u8; STATES_MAX];
    // What each symbol stands for, and how many states it has and there were of it.
    let mut next = [(State::default(), 0_u32); SYMBOLS];
    // The rare ones come last, one state for each.
    let mut behind = states.len();
    for (symbol, (&count, &value)) in counts.iter().zip(values).enumerate() {
        next[symbol % SYMBOLS] = (value, u32::from(count.unsigned_abs()));
        if count < 0 {
            behind -= 1;
            symbols[behind % STATES_MAX] = byte(symbol);
        }
    }
    let step = (states.len() >> 1) + (states.len() >> 3) + 3;
    let last = states.len() - 1;
    let mut state = 0;
    for (symbol, &count) in (0..).zip(counts) {
        for _ in 0..count.max(0) {
            symbols[state % STATES_MAX] = symbol;
            state = (state + step) & last;
            while behind <= state {
                state = (state + step) & last;
            }
        }
    }
    for (state, &symbol) in states.iter_mut().zip(&symbols) {
        let (value, share) = &mut next[usize::from(symbol) % SYMBOLS];
        // As many as make the share, which is not 0, as long as the number of states.
        let bits = log + share.leading_zeros() - (u32::BITS - 1);
        *state = value.then((*share << bits) - (1 << log), bits);
        *share += 1;
    }
}

/// A share where `left` of them are left: numbers below a threshold take a bit less.
fn read_share(bits: &mut ForwardBits, left: u32) -> u32 {
    let value_max = left + 1;
    let width = value_max.ilog2() + 1;
    let short_values = (1 << width) - 1 - value_max;
    let value = bits.peek(width);
    let short = value & ((1 << (width - 1)) - 1);
    if short < short_values {
        bits.skip(width - 1);
        return short;
    }
    bits.skip(width);
    match value < 1 << (width - 1) {
        true => value,
        false => value - short_values,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "there are 53 symbols at most")]
fn byte(symbol: usize) -> u8 {
    symbol as u8
}
