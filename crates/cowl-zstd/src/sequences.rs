//! The sequences of a block, and how they are done (RFC 8878, sections 3.1.1.3.2, 3.1.1.4 and
//! 3.1.1.5).

use core::hint::select_unpredictable;
use core::ops::Range;

use crate::Fault;
use crate::bits::{BackwardBits, low};
use crate::copy::{copy_literals, copy_match};
use crate::fse::State;
use crate::literals::Literals;
use crate::states::{LITERAL_LENGTHS, MATCH_LENGTHS, OFFSETS, Table};

/// Tables, and the last offsets: what a block may use of the one before it.
pub(crate) struct Sequences {
    tables: Tables,
    recent: Recent,
}

struct Tables {
    literal_lengths: Table<512>,
    offsets: Table<256>,
    match_lengths: Table<512>,
}

/// The last three offsets, the latest first.
type Recent = [u32; 3];

/// Those before the first block.
const RECENT: Recent = [1, 4, 8];

/// Bytes that there are, and literals that were taken for them.
#[derive(Clone, Copy)]
struct Progress {
    done: u32,
    taken: u32,
}

impl Sequences {
    pub(crate) const fn new() -> Self {
        let tables = Tables {
            literal_lengths: Table::new(),
            offsets: Table::new(),
            match_lengths: Table::new(),
        };
        Self { tables, recent: RECENT }
    }

    /// A frame begins.
    pub(crate) fn forget(&mut self) {
        self.tables.literal_lengths.forget();
        self.tables.offsets.forget();
        self.tables.match_lengths.forget();
        self.recent = RECENT;
    }

    /// Does the sequences that `frame[section]` describes, with the block's literals, from
    /// `place.start` of the content on, until the block ends or there are `reach` bytes, as far as
    /// `output` has room. Returns how many bytes of content there are then, `place.end` at most.
    pub(crate) fn run(
        &mut self,
        frame: &[u8],
        section: Range<usize>,
        literals: &Literals,
        output: &mut [u8],
        place: Range<usize>,
        reach: usize,
    ) -> Result<usize, Fault> {
        let (start, end) = (section.start, section.end);
        let section = frame.get(section).ok_or(Fault::Short)?;
        let (count, mut body) = count(section)?;
        let mut taken = 0;
        let mut done = place.start;
        if 0 < count {
            let &modes = section.get(body).ok_or(Fault::Short)?;
            if modes & 3 != 0 {
                return Err(Fault::Table);
            }
            body += 1;
            let tables = &mut self.tables;
            tables.literal_lengths.read(modes >> 6, &LITERAL_LENGTHS, section, &mut body)?;
            tables.offsets.read(modes >> 4, &OFFSETS, section, &mut body)?;
            tables.match_lengths.read(modes >> 2, &MATCH_LENGTHS, section, &mut body)?;
            let bits = BackwardBits::new(frame, start + body, end)?;
            let before = position(done)?;
            // More than the block may have is not wanted: it is refused below.
            let wanted = position(reach.min(place.end + 1))?;
            let recent = &mut self.recent;
            let progress =
                run_coded(tables, recent, bits, count, literals.all(), output, before, wanted)?;
            (done, taken) = (progress.done as usize, progress.taken as usize);
            if literals.length() < taken {
                return Err(Fault::Sequence);
            }
        } else if body != section.len() {
            return Err(Fault::Block);
        }
        if done < reach {
            // What no sequence took.
            let rest = literals.length() - taken;
            let (from, to) = (position(taken)?, position(done)?);
            copy_literals(literals.all(), from, output, to, position(rest)?)?;
            done += rest;
        }
        (done <= place.end).then_some(done).ok_or(Fault::Room)
    }
}

/// Does `count` sequences behind the `done` bytes of `output`, or as many as it takes for `reach`
/// bytes. What `output` has no room for is counted and not copied.
///
/// Literals that are not there are taken from behind them, as long as there is something: the
/// caller looks at how many were taken.
#[multiversion::multiversion(targets("x86_64+bmi1+bmi2"))]
#[expect(clippy::too_many_arguments, reason = "a function of its own for each kind of processor")]
fn run_coded(
    tables: &Tables,
    recent: &mut Recent,
    mut bits: BackwardBits,
    count: usize,
    literals: &[u8],
    output: &mut [u8],
    done: u32,
    reach: u32,
) -> Result<Progress, Fault> {
    let mut now = Progress { done, taken: 0 };
    let mut last = *recent;
    let mut literal_state = bits.read(tables.literal_lengths.log)?;
    let mut offset_state = bits.read(tables.offsets.log)?;
    let mut match_state = bits.read(tables.match_lengths.log)?;
    for left in (0..count).rev() {
        let literal = tables.literal_lengths.at(literal_state);
        let offset = tables.offsets.at(offset_state);
        let matched = tables.match_lengths.at(match_state);
        let all = literal.with(offset, matched);

        // Offset, match length, literal length and next states, one behind the other.
        let (loaded, top) = bits.load()?;
        let at = |end: u32, count: u32| low(loaded >> (top.wrapping_sub(end) & 63), count);
        let offset_value = at(offset.extra(), offset.extra());
        let mut parts = Parts {
            match_length: at(offset.extra() + matched.extra(), matched.extra()),
            literal_length: at(all.extra(), literal.extra()),
            next: at(all.extra() + all.width(), all.width()),
        };
        if BackwardBits::LOADED < all.extra() + all.width() {
            parts = Parts::read(bits, literal, offset, matched)?;
        }
        // Nothing follows the last one, and there are no bits for that.
        bits.skip(if left == 0 { all.extra() } else { all.extra() + all.width() });

        let next = parts.next;
        literal_state = index(literal.next() + (next >> (offset.width() + matched.width())));
        match_state = index(matched.next() + low(next >> offset.width(), matched.width()));
        offset_state = index(offset.next() + low(next, offset.width()));

        let literal_length = value(literal.base() + parts.literal_length);
        let match_length = value(matched.base() + parts.match_length);
        let distance = distance(&mut last, value(offset.base() + offset_value), literal_length);
        copy_literals(literals, now.taken, output, now.done, literal_length)?;
        now.taken += literal_length;
        now.done += literal_length;
        copy_match(output, now.done, distance, match_length)?;
        now.done += match_length;
        if reach <= now.done {
            return if bits.is_overrun() { Err(Fault::Stream) } else { Ok(now) };
        }
    }
    *recent = last;
    bits.is_done().then_some(now).ok_or(Fault::Stream)
}

/// The bits of a sequence.
struct Parts {
    match_length: u64,
    literal_length: u64,
    next: u64,
}

impl Parts {
    /// One by one: more bits than are loaded at once.
    #[cold]
    fn read(
        mut bits: BackwardBits,
        literal: State,
        offset: State,
        matched: State,
    ) -> Result<Self, Fault> {
        let width = literal.with(offset, matched).width();
        bits.skip(offset.extra());
        let mut read = |count| bits.read(count).map(|value| value as u64);
        Ok(Self {
            match_length: read(matched.extra())?,
            literal_length: read(literal.extra())?,
            next: read(width)?,
        })
    }
}

/// How far back a match lies; the last three distances have numbers of their own, other ones where
/// there are no literals before it (section 3.1.1.5).
#[inline(always)]
fn distance(recent: &mut Recent, value: u32, literal_length: u32) -> u32 {
    let [first, second, third] = *recent;
    // Which one it is changes too often for the processor to guess: no branches.
    let is_new = 3 < value;
    let which = value.wrapping_sub(1).wrapping_add(u32::from(literal_length == 0));
    let which = select_unpredictable(is_new, 3, which);
    let other = select_unpredictable(is_new, value, first.wrapping_add(2)).wrapping_sub(3);
    let distance = select_unpredictable(which == 2, third, other);
    let distance = select_unpredictable(which == 1, second, distance);
    let distance = select_unpredictable(which == 0, first, distance);
    let second_now = select_unpredictable(which == 0, second, first);
    let third_now = select_unpredictable(which < 2, third, second);
    *recent = [distance, second_now, third_now];
    distance
}

/// A place in the content or among the literals.
fn position(place: usize) -> Result<u32, Fault> {
    u32::try_from(place).map_err(|_| Fault::Room)
}

/// The number of sequences, and the bytes that it takes.
fn count(section: &[u8]) -> Result<(usize, usize), Fault> {
    let byte = |index: usize| section.get(index).copied().map(usize::from).ok_or(Fault::Short);
    Ok(match byte(0)? {
        first @ 0..128 => (first, 1),
        255 => (byte(1)? + (byte(2)? << 8) + 0x7f00, 3),
        first => (((first - 128) << 8) + byte(1)?, 2),
    })
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "tables have 512 states at most")]
fn index(state: u64) -> usize {
    state as usize
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the last code of offsets starts at 2 GiB")]
fn value(value: u64) -> u32 {
    value as u32
}
