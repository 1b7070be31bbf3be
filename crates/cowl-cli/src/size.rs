//! Numbers with a unit as qemu-img reads them: `1G`, `1.5k`, `0x200`, `10b`.
//!
//! Units are powers of 1024, in either case. A fraction needs a unit above bytes; a hexadecimal
//! number takes none. The distinction between "no number" and "out of range" decides which message
//! a user sees, so both are kept.
//!
//! Not here: the messages, which name the option that held the number.

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// Not a number of this form.
    Malformed,
    /// A number, but negative or above 64 bits.
    OutOfRange,
}

/// Reads a size in bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim_start_matches([' ', '\t', '\n', '\r', '\x0b', '\x0c']);
    let (negative, digits) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return parse_hexadecimal(hex, negative);
    }
    let whole_length = digits.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = digits.split_at(whole_length);
    if negative || (whole.is_empty() && digits.len() < text.len()) {
        let out_of_range = rest.is_empty() && !whole.is_empty();
        return Err(if out_of_range { SizeError::OutOfRange } else { SizeError::Malformed });
    }
    let whole_value: u64 = match whole.parse() {
        Ok(value) => value,
        Err(_) if whole.is_empty() && rest.starts_with('.') => 0,
        Err(_) if whole.is_empty() || !rest.is_empty() => return Err(SizeError::Malformed),
        Err(_) => return Err(SizeError::OutOfRange),
    };
    let (fraction, unit) = split_fraction(rest, whole.is_empty())?;
    scale(whole_value, fraction, unit_shift(unit)?)
}

fn parse_hexadecimal(digits: &str, negative: bool) -> Result<u64, SizeError> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(SizeError::Malformed);
    }
    match u64::from_str_radix(digits, 16) {
        Ok(value) if !negative => Ok(value),
        _ => Err(SizeError::OutOfRange),
    }
}

/// Splits `.25k` into the digits of the fraction and the unit.
fn split_fraction(rest: &str, needs_digits: bool) -> Result<(&str, &str), SizeError> {
    let Some(after_point) = rest.strip_prefix('.') else {
        return Ok(("", rest));
    };
    let length = after_point.bytes().take_while(u8::is_ascii_digit).count();
    if length == 0 && needs_digits {
        return Err(SizeError::Malformed);
    }
    Ok(after_point.split_at(length))
}

fn unit_shift(unit: &str) -> Result<u32, SizeError> {
    match unit {
        "" | "b" | "B" => Ok(0),
        "k" | "K" => Ok(10),
        "m" | "M" => Ok(20),
        "g" | "G" => Ok(30),
        "t" | "T" => Ok(40),
        "p" | "P" => Ok(50),
        "e" | "E" => Ok(60),
        _ => Err(SizeError::Malformed),
    }
}

/// `whole.fraction << shift`, the half rounded up.
fn scale(whole: u64, fraction: &str, shift: u32) -> Result<u64, SizeError> {
    let fraction_64: u128 = fixed_point(fraction);
    if shift == 0 && fraction_64 != 0 {
        return Err(SizeError::Malformed);
    }
    // Both terms keep 64 bits of fraction; the whole part is shifted only after the range is known.
    let whole_scaled = u128::from(whole) << shift;
    let fraction_scaled = fraction_64 << shift;
    let rounded = (fraction_scaled + (1 << 63)) >> 64;
    u64::try_from(whole_scaled + rounded).map_err(|_| SizeError::OutOfRange)
}

/// The digits after a decimal point in units of 2^-64, at least 1 when any digit is not zero.
fn fixed_point(digits: &str) -> u128 {
    let value: f64 = format!("0.{digits}0").parse().unwrap_or(0.0);
    if value == 0.0 {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 2^64")]
    let fixed = (value * 2f64.powi(64)) as u128;
    fixed.max(1)
}

#[cfg(test)]
mod tests {
    use super::{SizeError, parse_size};

    #[test]
    fn units_are_powers_of_1024_in_either_case() {
        for (text, value) in [
            ("0", 0),
            ("1", 1),
            ("10b", 10),
            ("1B", 1),
            ("1k", 1024),
            ("1K", 1024),
            ("3M", 3 << 20),
            ("1G", 1 << 30),
            ("1T", 1 << 40),
            ("7P", 7 << 50),
            ("7E", 7 << 60),
            (" 12", 12),
            ("+1k", 1024),
            ("010", 10),
            ("0x10", 16),
            ("0X1f", 31),
            ("0x10b", 0x10b),
        ] {
            assert_eq!(parse_size(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn fractions_are_exact_and_the_half_rounds_up() {
        for (text, value) in [
            ("1.5k", 1536),
            (".5k", 512),
            ("5.k", 5120),
            ("1.0b", 1),
            ("0.1k", 102),
            ("0.000001k", 0),
            ("1.9999999999k", 2048),
            ("1.00000000000000000001k", 1024),
            ("1.5e", 3 << 59),
            ("2.5M", 5 << 19),
        ] {
            assert_eq!(parse_size(text), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_number_is_malformed() {
        for text in [
            "",
            " ",
            "+",
            "-",
            "x",
            "1.5",
            "0.9999b",
            "1e3",
            "1e2k",
            "1kk",
            "1kB",
            "1 k",
            "1k ",
            "0x",
            "0xg",
            "0x10k",
            "0x1.8k",
            "00x10",
            "1..5k",
            ".k",
            "+ 1",
            "-k",
            "-0k",
            "--1",
            "1,5k",
            "inf",
            "nan",
            "99999999999999999999k",
        ] {
            assert_eq!(parse_size(text), Err(SizeError::Malformed), "{text}");
        }
    }

    #[test]
    fn numbers_outside_64_bits_are_out_of_range() {
        for text in
            ["-1", "-0", "16E", "99999999999999999999", "18446744073709551616", "17179869184G"]
        {
            assert_eq!(parse_size(text), Err(SizeError::OutOfRange), "{text}");
        }
        assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
    }
}
