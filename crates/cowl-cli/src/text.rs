//! Sizes and dates in words, as qemu-img prints them.

use jiff::Timestamp;
use jiff::tz::TimeZone;

/// A size with three significant digits and a binary unit: `1.5 GiB`, `196 KiB`, `0 B`.
///
/// From 1000 on the next unit is used, so that three digits are enough.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let power = (1..UNITS.len())
        .rev()
        .find(|power| 1000u128 << (10 * (power - 1)) <= u128::from(bytes))
        .unwrap_or(0);
    #[expect(clippy::cast_precision_loss, reason = "three digits are printed")]
    let value = bytes as f64 / (1u64 << (10 * power)) as f64;
    format!("{} {}B", three_digits(value), UNITS[power])
}

/// C's `%0.3g`: three significant digits, no trailing zeros, an exponent when they do not suffice.
fn three_digits(value: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    // Rounding decides the exponent, as in C.
    let scientific = format!("{value:.2e}");
    let (_, exponent) = scientific.split_once('e').expect("e is in the format");
    let exponent: i32 = exponent.parse().expect("an exponent is a number");
    if 3 <= exponent {
        return format!("1e+{exponent:02}");
    }
    let decimals = usize::try_from(2 - exponent).expect("exponent is at most 2");
    let text = format!("{value:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
}

/// A moment in local time: `2026-11-21 08:47:17`.
pub(crate) fn local_date(seconds: u64) -> String {
    let moment = i64::try_from(seconds).ok().and_then(|s| Timestamp::from_second(s).ok());
    moment.map_or_else(
        || format!("@{seconds}"),
        |moment| moment.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}

/// A guest clock: hours, minutes, seconds, milliseconds.
pub(crate) fn guest_clock(seconds: u64, nanoseconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:04}:{minutes:02}:{:02}.{:03}", seconds % 60, nanoseconds / 1_000_000 % 1000)
}

#[cfg(test)]
mod tests {
    use super::{guest_clock, size};

    #[test]
    fn sizes_have_three_significant_digits() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (512, "512 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1023, "0.999 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (200_704, "196 KiB"),
            (1_023_990, "1e+03 KiB"),
            (1_024_000, "0.977 MiB"),
            (1 << 20, "1 MiB"),
            (1_048_064, "1 MiB"),
            (2_297_856, "2.19 MiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn guest_clocks_count_hours_without_end() {
        assert_eq!(guest_clock(0, 0), "0000:00:00.000");
        assert_eq!(guest_clock(360_061, 2_999_999), "0100:01:01.002");
    }
}
