//! Numbers on the command line, with qemu-img's messages.

use std::ops::RangeInclusive;

use crate::failure::Failure;
use crate::size::{SizeError, parse_size};

/// The largest size there is: offsets are signed 64 bits in every tool around.
const SIZE_MAX: u64 = i64::MAX as u64;

/// Reads a size that may be anything; `what` names it in the message.
pub(crate) fn size(what: &str, text: &str) -> Result<u64, Failure> {
    within(what, text, 0..=SIZE_MAX)
}

/// Reads a size inside `range`.
pub(crate) fn within(what: &str, text: &str, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    match parse_size(text) {
        Ok(value) if range.contains(&value) => Ok(value),
        Ok(_) | Err(SizeError::OutOfRange) => Err(Failure::usage(format!(
            "Invalid {what} specified. Must be between {} and {}.",
            range.start(),
            range.end()
        ))),
        Err(SizeError::Malformed) => {
            Err(Failure::usage(format!("Invalid {what} specified: '{text}'.")))
        }
    }
}

/// Reads a number without a unit inside `range`.
pub(crate) fn count(what: &str, text: &str, range: RangeInclusive<u64>) -> Result<u64, Failure> {
    let Some(value) = integer(text) else {
        return Err(Failure::usage(format!("Invalid {what} specified: '{text}'.")));
    };
    u64::try_from(value).ok().filter(|value| range.contains(value)).ok_or_else(|| {
        let (least, most) = (range.start(), range.end());
        let message = format!("Invalid {what} specified. Must be between {least} and {most}.");
        Failure::usage(message)
    })
}

/// A whole number as C's `strtol` reads it with base 0: `16`, `0x10`, `020`, `-1`.
pub(crate) fn integer(text: &str) -> Option<i64> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    if !digits.starts_with(|first: char| first.is_ascii_digit()) {
        return None;
    }
    let hexadecimal = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X"));
    let value = match (hexadecimal, digits.strip_prefix('0')) {
        (Some(digits), _) if digits.starts_with(['+', '-']) => return None,
        (Some(digits), _) => i64::from_str_radix(digits, 16).ok()?,
        (None, Some(digits)) if !digits.is_empty() => i64::from_str_radix(digits, 8).ok()?,
        (None, _) => digits.parse().ok()?,
    };
    Some(if negative { -value } else { value })
}

#[cfg(test)]
mod tests {
    use super::{count, integer};

    #[test]
    fn integers_have_the_bases_of_c() {
        for (text, value) in
            [("16", 16), ("0x10", 16), ("020", 16), ("0", 0), ("-5", -5), ("+7", 7)]
        {
            assert_eq!(integer(text), Some(value), "{text}");
        }
        for text in ["", "x", "08", "0x", "9f", "1k", "1.0", "-", "0x+1", "''"] {
            assert_eq!(integer(text), None, "{text}");
        }
    }

    #[test]
    fn a_count_has_no_unit() {
        assert_eq!(count("depth", "64", 1..=100).ok(), Some(64));
        let message = |text| count("depth", text, 1..=100).unwrap_err().message;
        assert_eq!(message("1k"), "Invalid depth specified: '1k'.");
        assert_eq!(message("-1"), "Invalid depth specified. Must be between 1 and 100.");
    }
}
