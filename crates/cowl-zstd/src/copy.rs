//! Copies of a few bytes, many times: 16 at once where there is room for more than is asked for.
//!
//! Positions are of 32 bits: where `usize` has 64, adding to one of them does not overflow, and the
//! processor has one bound to look at instead of two.

use crate::Fault;

const CHUNK: u32 = 16;

/// Bytes that literals must be followed by, so that all of them are copied in chunks.
pub(crate) const MARGIN: usize = CHUNK as usize;

/// Copies `length` bytes of `literals` from `from` on to `output` from `to` on, as many as there is
/// room for; up to 15 bytes behind them may be overwritten.
#[inline(always)]
pub(crate) fn copy_literals(
    literals: &[u8],
    from: u32,
    output: &mut [u8],
    to: u32,
    length: u32,
) -> Result<(), Fault> {
    if length <= CHUNK
        && let Some(chunk) = chunk(literals, from)
        && put_chunk(output, to, chunk)
    {
        return Ok(());
    }
    copy_long(literals, from, output, to, length)
}

/// Copies `length` bytes of `output` from `distance` before `to` on to `to`, as many as there is
/// room for; those that are written are read again where the distance is shorter. Up to 15 bytes
/// behind them may be overwritten.
#[inline(always)]
pub(crate) fn copy_match(
    output: &mut [u8],
    to: u32,
    distance: u32,
    length: u32,
) -> Result<(), Fault> {
    let from = to.checked_sub(distance).ok_or(Fault::Sequence)?;
    if CHUNK <= distance
        && let Some(chunk) = chunk(output, from)
        && put_chunk(output, to, chunk)
    {
        if length <= CHUNK {
            return Ok(());
        }
        return copy_far(output, to + CHUNK, distance, length - CHUNK);
    }
    copy_near(output, to, distance, length)
}

#[inline(always)]
fn chunk(bytes: &[u8], at: u32) -> Option<u128> {
    let at = at as usize;
    let chunk = bytes.get(at..at + MARGIN)?.try_into().ok()?;
    Some(u128::from_ne_bytes(chunk))
}

#[inline(always)]
fn put_chunk(bytes: &mut [u8], at: u32, chunk: u128) -> bool {
    let at = at as usize;
    let Some(room) = bytes.get_mut(at..at + MARGIN) else { return false };
    room.copy_from_slice(&chunk.to_ne_bytes());
    true
}

#[inline(never)]
fn copy_long(
    literals: &[u8],
    from: u32,
    output: &mut [u8],
    to: u32,
    length: u32,
) -> Result<(), Fault> {
    let (from, to, length) = (from as usize, to as usize, length as usize);
    let input = literals.get(from..from + length).ok_or(Fault::Sequence)?;
    let end = output.len().min(to + length);
    if let Some(room) = output.get_mut(to..end) {
        room.copy_from_slice(&input[..room.len()]);
    }
    Ok(())
}

/// In chunks, of which none is read before it is written.
#[inline(never)]
fn copy_far(output: &mut [u8], mut to: u32, distance: u32, length: u32) -> Result<(), Fault> {
    let end = to.checked_add(length).ok_or(Fault::Room)?;
    while to < end {
        // The chunk before this one had room, and this one is read from there or before.
        let Some(chunk) = chunk(output, to - distance) else { return Err(Fault::Sequence) };
        if !put_chunk(output, to, chunk) {
            return copy_near(output, to, distance, end - to);
        }
        to += CHUNK;
    }
    Ok(())
}

#[inline(never)]
fn copy_near(output: &mut [u8], to: u32, distance: u32, length: u32) -> Result<(), Fault> {
    let (to, distance, length) = (to as usize, distance as usize, length as usize);
    if to < distance || distance == 0 {
        return Err(Fault::Sequence);
    }
    let end = output.len().min(to + length);
    if end <= to {
        return Ok(());
    }
    let output = &mut output[..end];
    let from = to - distance;
    if distance == 1 {
        let byte = output[from];
        output[to..].fill(byte);
        return Ok(());
    }
    // What is there doubles.
    let mut at = to;
    while at < output.len() {
        let step = (at - from).min(output.len() - at);
        output.copy_within(from..from + step, at);
        at += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{copy_literals, copy_match};
    use crate::Fault;

    #[test]
    fn a_match_repeats_what_lies_before_it() {
        for distance in 1..40_u8 {
            for length in 0..80_u8 {
                // With room for chunks behind it, and without.
                for room in [0, 1, 15, 16, 64] {
                    let to = u32::from(distance) + 2;
                    let known: Vec<u8> = (0..distance + 2).collect();
                    let mut expected = known.clone();
                    for _ in 0..length {
                        expected.push(expected[expected.len() - usize::from(distance)]);
                    }
                    let mut output = known;
                    output.resize(expected.len() + room, 0xee);
                    let result = copy_match(&mut output, to, distance.into(), length.into());
                    assert_eq!(result, Ok(()));
                    assert_eq!(output[..expected.len()], expected, "{distance}, {length}, {room}");
                }
            }
        }
    }

    #[test]
    fn a_match_that_starts_before_the_first_byte_is_refused() {
        let mut output = [7; 200];
        for distance in [0, 101, 117, u32::MAX - 20, u32::MAX] {
            for length in [3, 16, 17, 60] {
                let result = copy_match(&mut output, 100, distance, length);
                assert_eq!(result, Err(Fault::Sequence), "{distance}, {length}");
            }
        }
    }

    #[test]
    fn what_has_no_room_is_not_copied() {
        let known: Vec<u8> = (0..100).collect();
        for distance in [1, 2, 15, 16, 17, 50] {
            for (to, length) in [(90, 11), (90, 40), (99, 3), (100, 3), (100, 40), (103, 17)] {
                let mut output = known.clone();
                let mut expected = known.clone();
                for at in to..output.len() {
                    expected[at] = expected[at - distance];
                }
                let [to, distance] = [to, distance].map(|value| u32::try_from(value).unwrap());
                let result = copy_match(&mut output, to, distance, length);
                assert_eq!((result, &output), (Ok(()), &expected), "{to}, {distance}, {length}");
                let mut output = known.clone();
                copy_literals(&[7; 60], 5, &mut output, to, length).unwrap();
                let end = known.len().min(to as usize);
                assert_eq!(output[..end], known[..end]);
                assert!(output[end..].iter().all(|byte| *byte == 7));
            }
        }
    }

    #[test]
    fn literals_end_where_they_end() {
        let literals: Vec<u8> = (0..60).collect();
        for length in 0..50_u32 {
            let mut output = [0xee; 60];
            copy_literals(&literals, 5, &mut output, 8, length).unwrap();
            let end = 8 + length as usize;
            assert_eq!(output[8..end], literals[5..5 + length as usize]);
            assert!(output[..8].iter().chain(&output[end.max(24)..]).all(|&byte| byte == 0xee));
        }
        let mut output = [0; 60];
        assert_eq!(copy_literals(&literals, 50, &mut output, 0, 11), Err(Fault::Sequence));
    }
}
