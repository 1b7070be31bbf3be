//! Numbers of a command line: offsets, lengths, and bytes to fill with.

use crate::number::integer;
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

#[cfg(test)]
mod tests {
    use super::{bytes, pattern};

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
