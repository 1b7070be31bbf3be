//! Numbers of a command line: offsets and lengths, bytes to fill with, and plain C integers.

use crate::size::{SizeError, parse_size};

/// Reads an offset or a length; the error is the line that qemu-io prints.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(value) if i64::try_from(value).is_ok() => Ok(value),
        Ok(_) | Err(SizeError::OutOfRange) => {
            Err(format!("Parsing error: argument too large -- {text}"))
        }
        Err(SizeError::Malformed) => Err(format!(
            "Parsing error: non-numeric argument, or extraneous/unrecognized suffix -- {text}"
        )),
    }
}

/// Reads the byte that a pattern consists of.
pub(super) fn pattern(text: &str) -> Result<u8, String> {
    integer(text)
        .and_then(|value| u8::try_from(value).ok())
        .ok_or_else(|| format!("{text} is not a valid pattern byte"))
}

/// A whole number as C's `strtol` reads it with base 0: `16`, `0x10`, `020`, `-1`.
pub(super) fn integer(text: &str) -> Option<i64> {
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
    use super::{bytes, integer, pattern};

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
    fn a_pattern_is_one_byte() {
        assert_eq!(pattern("0xff"), Ok(255));
        assert_eq!(pattern("256"), Err("256 is not a valid pattern byte".into()));
        assert_eq!(pattern("-1"), Err("-1 is not a valid pattern byte".into()));
    }

    #[test]
    fn mistakes_in_sizes_are_told_in_the_words_of_qemu_io() {
        assert_eq!(bytes("1.5k"), Ok(1536));
        assert_eq!(bytes("8E"), Err("Parsing error: argument too large -- 8E".into()));
        assert!(bytes("x").is_err_and(|text| text.starts_with("Parsing error: non-numeric")));
    }
}
