//! Codes of literal lengths, offsets and match lengths, and the states that stand for them
//! (RFC 8878, sections 3.1.1.3.2.1 and 3.1.1.3.2.2).

use crate::Fault;
use crate::fse::{Shares, State, numbers};

/// The states of one kind of code.
pub(crate) struct Table<const STATES: usize> {
    states: [State; STATES],
    /// The logarithm of how many there are.
    pub(crate) log: u32,
    is_known: bool,
}

impl<const STATES: usize> Table<STATES> {
    pub(crate) const fn new() -> Self {
        Self { states: [State::new(0, 0); STATES], log: 0, is_known: false }
    }

    /// The table of the block before is no table for the next one.
    pub(crate) fn forget(&mut self) {
        self.is_known = false;
    }

    /// Takes what `mode` says about the table of the block; its description starts at
    /// `section[*at]`, and `at` goes on behind it.
    pub(crate) fn read(
        &mut self,
        mode: u8,
        kind: &Kind,
        section: &[u8],
        at: &mut usize,
    ) -> Result<(), Fault> {
        const PREDEFINED: u8 = 0;
        const RUN: u8 = 1;
        const DESCRIBED: u8 = 2;
        match mode & 3 {
            PREDEFINED => self.spread(kind, &Shares::of(kind.shares, kind.shares_log)),
            RUN => {
                let &symbol = section.get(*at).ok_or(Fault::Short)?;
                self.states[0] = *kind.values.get(usize::from(symbol)).ok_or(Fault::Table)?;
                self.log = 0;
                *at += 1;
            }
            DESCRIBED => {
                let rest = section.get(*at..).ok_or(Fault::Short)?;
                let (shares, length) = Shares::read(rest, kind.values.len(), STATES.ilog2())?;
                self.spread(kind, &shares);
                *at += length;
            }
            _ if self.is_known => {}
            _ => return Err(Fault::Table),
        }
        self.is_known = true;
        Ok(())
    }

    fn spread(&mut self, kind: &Kind, shares: &Shares) {
        self.log = shares.log();
        shares.spread(kind.values, &mut self.states);
    }

    #[inline(always)]
    pub(crate) fn at(&self, state: usize) -> State {
        self.states[state % STATES]
    }
}

/// What the codes of one kind stand for, and how probable they are where a block does not say.
pub(crate) struct Kind {
    /// For each code, without a next state.
    values: &'static [State],
    shares: &'static [i16],
    shares_log: u32,
}

pub(crate) const LITERAL_LENGTHS: Kind = Kind {
    values: &numbers::<36>(0, &LITERAL_EXTRA),
    shares: &[
        4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1,
        1, 1, -1, -1, -1, -1,
    ],
    shares_log: 6,
};

pub(crate) const MATCH_LENGTHS: Kind = Kind {
    values: &numbers::<53>(3, &MATCH_EXTRA),
    shares: &[
        1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
        1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1,
    ],
    shares_log: 6,
};

pub(crate) const OFFSETS: Kind = Kind {
    values: &offsets(),
    shares: &[
        1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1,
    ],
    shares_log: 5,
};

/// Extra bits of the last codes, which stand for more than one length each.
const LITERAL_EXTRA: [u8; 20] = [1, 1, 1, 1, 2, 2, 3, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
const MATCH_EXTRA: [u8; 21] =
    [1, 1, 1, 1, 2, 2, 3, 3, 4, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];

/// As many extra bits as the code says, below a bit that is set.
const fn offsets() -> [State; 32] {
    let mut values = [State::new(0, 0); 32];
    let mut code = 0;
    while code < 32 {
        values[code as usize] = State::new(1 << code, code);
        code += 1;
    }
    values
}
