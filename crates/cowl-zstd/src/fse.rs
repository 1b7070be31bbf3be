//! Tables of finite state entropy coding (RFC 8878, section 4.1).

use crate::Fault;
use crate::bits::ForwardBits;

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

    /// Calls `put` with each state's number, symbol, bits to read for the next state and what
    /// these are added to.
    pub(crate) fn spread(&self, mut put: impl FnMut(usize, usize, u32, u32)) {
        const STATES_MAX: usize = 512;
        let states = 1_usize << self.log;
        assert!(states <= STATES_MAX);
        let mut symbols = [0_u8; STATES_MAX];
        let mut next = [0_u32; Self::SYMBOLS_MAX];
        // The rare ones come last, one state for each.
        let mut behind = states;
        let counts = &self.counts[..self.symbols];
        for (symbol, &count) in counts.iter().enumerate() {
            next[symbol] = u32::from(count.unsigned_abs());
            if count < 0 {
                behind -= 1;
                symbols[behind] = byte(symbol);
            }
        }
        let step = (states >> 1) + (states >> 3) + 3;
        let mut state = 0;
        for (symbol, &count) in counts.iter().enumerate() {
            for _ in 0..count.max(0) {
                symbols[state] = byte(symbol);
                state = (state + step) & (states - 1);
                while behind <= state {
                    state = (state + step) & (states - 1);
                }
            }
        }
        for (state, &symbol) in symbols[..states].iter().enumerate() {
            let symbol = usize::from(symbol);
            let share = next[symbol];
            next[symbol] += 1;
            let bits = self.log - share.ilog2();
            put(state, symbol, bits, (share << bits) - (1 << self.log));
        }
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
