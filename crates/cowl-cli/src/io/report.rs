//! What a finished request prints: how much, how fast, and the bytes themselves.

use std::time::Duration;

/// A size as qemu-io writes it: three decimals, none when they are zeros, `4 KiB`, `1.500 MiB`.
pub(super) fn size(value: f64) -> String {
    const UNITS: [&str; 6] = ["EiB", "PiB", "TiB", "GiB", "MiB", "KiB"];
    let units = UNITS.iter().zip((1..=UNITS.len()).rev());
    for (unit, power) in units {
        let one = 1024f64.powi(i32::try_from(power).expect("at most six"));
        if one <= value {
            return without_zeros(format!("{:.3}", value / one), unit);
        }
    }
    without_zeros(format!("{value:.6}"), "bytes")
}

/// A number of bytes as [`size`] writes it.
pub(super) fn bytes(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three decimals are printed")]
    let value = count as f64;
    size(value)
}

fn without_zeros(mut number: String, unit: &str) -> String {
    if let Some(point) = number.find(".000") {
        number.truncate(point);
    }
    format!("{number} {unit}")
}

/// How the statistics of a request are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Statistics {
    /// Not at all.
    Quiet,
    /// In two lines for people.
    Human,
    /// As `bytes,ops,time,bytes/sec,ops/sec`.
    Machine,
}

/// A request that has ended well.
#[derive(Clone, Copy, Debug)]
pub(super) struct Done {
    /// What happened to the bytes: `read`, `wrote`, `discard`.
    pub(super) verb: &'static str,
    /// The first of them.
    pub(super) at: u64,
    /// How many.
    pub(super) length: u64,
    /// How long it took.
    pub(super) took: Duration,
}

impl Done {
    /// The statistics of the request.
    pub(super) fn statistics(&self, how: Statistics) -> String {
        let Self { verb, at, length, took } = *self;
        let seconds = took.as_secs_f64().max(1e-9);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let (rate, operations) = (length as f64 / seconds, 1.0 / seconds);
        match how {
            Statistics::Quiet => String::new(),
            Statistics::Human => format!(
                "{verb} {length}/{length} bytes at offset {at}\n{}, 1 ops; {} ({}/sec and \
                 {operations:.4} ops/sec)\n",
                bytes(length),
                time(took),
                size(rate),
            ),
            Statistics::Machine => {
                format!("{length},1,{},{rate:.3},{operations:.3}\n", clock(took))
            }
        }
    }
}

fn time(took: Duration) -> String {
    if took.as_secs() == 0 { format!("{:05.2} sec", took.as_secs_f64()) } else { clock(took) }
}

fn clock(took: Duration) -> String {
    let seconds = took.as_secs();
    let hundredths = took.subsec_millis() / 10;
    format!("{}:{:02}:{:02}.{hundredths:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

/// Bytes as hexadecimal numbers and characters, sixteen a line; the first is that at `at`.
pub(super) fn dump(bytes: &[u8], at: u64) -> String {
    let mut text = String::with_capacity(bytes.len() * 5);
    let mut offset = at;
    for line in bytes.chunks(16) {
        text.push_str(&format!("{offset:08x}:  "));
        for byte in line {
            text.push_str(&format!("{byte:02x} "));
        }
        text.push(' ');
        for &byte in line {
            text.push(if byte.is_ascii_alphanumeric() { char::from(byte) } else { '.' });
        }
        text.push('\n');
        offset += 16;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Done, Statistics, dump, size};
    use std::time::Duration;

    #[test]
    fn sizes_have_three_decimals_or_none() {
        for (value, text) in [
            (0.0, "0 bytes"),
            (512.0, "512 bytes"),
            (5.272_794, "5.272794 bytes"),
            (1023.0, "1023 bytes"),
            (1024.0, "1 KiB"),
            (1536.0, "1.500 KiB"),
            (3_584.0 * 1024.0, "3.500 MiB"),
            (1_152_921_504_606_846_976.0, "1 EiB"),
        ] {
            assert_eq!(size(value), text);
        }
    }

    #[test]
    fn statistics_are_two_lines_or_one() {
        let took = Duration::from_millis(500);
        let done = Done { verb: "wrote", at: 512, length: 1024, took };
        assert_eq!(
            done.statistics(Statistics::Human),
            "wrote 1024/1024 bytes at offset 512\n\
             1 KiB, 1 ops; 00.50 sec (2 KiB/sec and 2.0000 ops/sec)\n"
        );
        assert_eq!(done.statistics(Statistics::Machine), "1024,1,0:00:00.50,2048.000,2.000\n");
        assert_eq!(done.statistics(Statistics::Quiet), "");
        let slow = Done { took: Duration::from_millis(3_661_500), ..done };
        assert!(slow.statistics(Statistics::Human).contains("1 ops; 1:01:01.50 ("));
    }

    #[test]
    fn a_dump_shows_letters_and_digits() {
        let text = dump(b"AZ09 \xff~", 16);
        assert_eq!(text, "00000010:  41 5a 30 39 20 ff 7e  AZ09...\n");
        assert_eq!(dump(&[0; 17], 1).lines().nth(1), Some("00000011:  00  ."));
    }
}
