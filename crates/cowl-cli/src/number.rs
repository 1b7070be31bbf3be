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
