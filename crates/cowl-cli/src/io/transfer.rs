//! The commands that move bytes: `read`, `write`, their forms with several buffers, and the forms
//! that do not wait.

use std::fs;
use std::sync::Arc;
use std::time::Instant;

use cowl::{ByteCount, ZeroRequest};

use super::device::{Device, Durable, Errno};
use super::number;
use super::report::{Done, Statistics, dump};
use super::shell::{Flow, Shell, Trouble};
use super::words::{Word, Words, letter, value};
use crate::disk::system_words;
use crate::getopt::Opt;

/// The largest request of QEMU's block layer: whole sectors below 2 GiB.
pub(super) const REQUEST_MAX: u64 = 0x7fff_fe00;

const SECTOR_BYTES: u64 = 512;

/// What a buffer is filled with when nothing is said.
const FILL: u8 = 0xcd;

const READ: &[Opt<Word>] = &[
    letter('b'),
    letter('C'),
    value(Word::PatternLength, 'l'),
    letter('p'),
    value(Word::Pattern, 'P'),
    letter('q'),
    letter('r'),
    value(Word::PatternOffset, 's'),
    letter('v'),
];

pub(super) fn read(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let words = Words::parse(words, READ)?;
    let [at, length] = words.operands.as_slice() else { return Err(Trouble::Usage) };
    let (at, length) = (number::bytes(at)?, request_length(length, "")?);
    if words.pattern.is_none() && (words.pattern_offset.is_some() || words.pattern_length.is_some())
    {
        return Err(Trouble::Usage);
    }
    let pattern_offset = words.pattern_offset.unwrap_or(0);
    let pattern_length = words.pattern_length.or(length.checked_sub(pattern_offset));
    let pattern_length = pattern_length
        .filter(|&pattern| pattern_offset.checked_add(pattern).is_some_and(|end| end <= length))
        .ok_or_else(|| "pattern verification range exceeds end of read data".to_owned())?;
    if words.has('b') {
        check_sectors(at, length)?;
        return Err(failed("read", Errno::UNSUPPORTED).into());
    }
    let mut buffer = vec![0; ByteCount::new(length).as_usize()];
    let start = Instant::now();
    shell.device().read(at, &mut buffer).map_err(|errno| failed("read", errno))?;
    let done = Done { verb: "read", at, length, took: start.elapsed() };
    let first = ByteCount::new(pattern_offset).as_usize();
    let checked = &buffer[first..first + ByteCount::new(pattern_length).as_usize()];
    let mismatch = words.pattern.and_then(|byte| mismatch(checked, byte, at + pattern_offset));
    shell.print(mismatch.as_deref().unwrap_or_default());
    shell.print(&shown(&done, &buffer, &words));
    if mismatch.is_some() { Err(Trouble::Told) } else { Ok(Flow::Continue) }
}

const READV: &[Opt<Word>] =
    &[letter('C'), value(Word::Pattern, 'P'), letter('q'), letter('r'), letter('v')];

pub(super) fn readv(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let words = Words::parse(words, READV)?;
    let (at, length) = vector(&words.operands)?;
    let (text, fine) = read_vector(shell.device(), at, length, &words, Instant::now());
    shell.print(&text);
    if fine { Ok(Flow::Continue) } else { Err(Trouble::Told) }
}

const AIO_READ: &[Opt<Word>] =
    &[letter('C'), value(Word::Pattern, 'P'), letter('i'), letter('q'), letter('r'), letter('v')];

pub(super) fn aio_read(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let words = Words::parse(words, AIO_READ)?;
    if words.has('i') {
        shell.print("injecting invalid read request\n");
        return Ok(Flow::Continue);
    }
    let (at, length) = vector(&words.operands)?;
    let (device, start) = (Arc::clone(shell.device()), Instant::now());
    shell.in_flight.start(move || read_vector(&device, at, length, &words, start).0);
    Ok(Flow::Continue)
}

/// Reads and says how it went, and whether it went well.
fn read_vector(
    device: &Device,
    at: u64,
    length: u64,
    words: &Words,
    start: Instant,
) -> (String, bool) {
    let mut buffer = vec![0; ByteCount::new(length).as_usize()];
    if let Err(errno) = device.read(at, &mut buffer) {
        return (format!("{}\n", failed("readv", errno)), false);
    }
    let done = Done { verb: "read", at, length, took: start.elapsed() };
    let mismatch = words.pattern.and_then(|byte| mismatch(&buffer, byte, at));
    let fine = mismatch.is_none();
    (mismatch.unwrap_or_default() + &shown(&done, &buffer, words), fine)
}

const WRITE: &[Opt<Word>] = &[
    letter('b'),
    letter('c'),
    letter('C'),
    letter('f'),
    letter('n'),
    letter('p'),
    value(Word::Pattern, 'P'),
    letter('q'),
    letter('r'),
    letter('u'),
    value(Word::Text('s'), 's'),
    letter('z'),
];

pub(super) fn write(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let words = Words::parse(words, WRITE)?;
    let [at, length] = words.operands.as_slice() else { return Err(Trouble::Usage) };
    check_write_letters(&words)?;
    let at = number::bytes(at)?;
    let length = match words.has('n') {
        true => number::bytes(length)?,
        false => request_length(length, " without -n")?,
    };
    if words.has('b') || words.has('c') {
        check_sectors(at, length)?;
    }
    let buffer = match words.has('z') {
        true => Vec::new(),
        false => filled(&words, length)?,
    };
    let device = shell.device();
    let start = Instant::now();
    let result = if words.has('b') {
        Err(Errno::UNSUPPORTED)
    } else if words.has('z') {
        device.write_zeros(at, length, zero_request(&words), durable(&words))
    } else if words.has('c') {
        device.write_compressed(at, &buffer)
    } else {
        device.write(at, &buffer, durable(&words))
    };
    result.map_err(|errno| failed("write", errno))?;
    let done = Done { verb: "wrote", at, length, took: start.elapsed() };
    shell.print(&done.statistics(words.statistics()));
    Ok(Flow::Continue)
}

/// Letters that contradict each other.
fn check_write_letters(words: &Words) -> Result<(), String> {
    let has = |letter| words.has(letter);
    let sources = [has('z'), words.pattern.is_some(), words.text('s').is_some()];
    let message = if has('b') && has('z') {
        "-b and -z cannot be specified at the same time"
    } else if has('f') && (has('b') || has('c')) {
        "-f and -b or -c cannot be specified at the same time"
    } else if has('n') && !has('z') {
        "-n requires -z to be specified"
    } else if has('u') && !has('z') {
        "-u requires -z to be specified"
    } else if 1 < sources.iter().filter(|given| **given).count() {
        "Only one of -z, -P, and -s can be specified at the same time"
    } else {
        return Ok(());
    };
    Err(message.into())
}

const WRITEV: &[Opt<Word>] =
    &[letter('C'), letter('f'), value(Word::Pattern, 'P'), letter('q'), letter('r')];

pub(super) fn writev(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let words = Words::parse(words, WRITEV)?;
    let (at, length) = vector(&words.operands)?;
    let buffer = filled(&words, length)?;
    let start = Instant::now();
    let result = shell.device().write(at, &buffer, durable(&words));
    result.map_err(|errno| failed("writev", errno))?;
    let done = Done { verb: "wrote", at, length, took: start.elapsed() };
    shell.print(&done.statistics(words.statistics()));
    Ok(Flow::Continue)
}

const AIO_WRITE: &[Opt<Word>] = &[
    letter('C'),
    letter('f'),
    letter('i'),
    value(Word::Pattern, 'P'),
    letter('q'),
    letter('r'),
    letter('u'),
    letter('z'),
];

pub(super) fn aio_write(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let words = Words::parse(words, AIO_WRITE)?;
    if words.has('i') {
        shell.print("injecting invalid write request\n");
        return Ok(Flow::Continue);
    }
    if words.operands.len() < 2 {
        return Err(Trouble::Usage);
    }
    if words.has('z') && words.operands.len() != 2 {
        return Err("-z supports only a single length parameter".to_owned().into());
    }
    if words.has('u') && !words.has('z') {
        return Err("-u requires -z to be specified".to_owned().into());
    }
    let (at, length, buffer) = if words.has('z') {
        let (at, length) = (number::bytes(&words.operands[0])?, &words.operands[1]);
        (at, number::bytes(length)?, Vec::new())
    } else {
        let (at, length) = vector(&words.operands)?;
        (at, length, filled(&words, length)?)
    };
    let (device, start) = (Arc::clone(shell.device()), Instant::now());
    shell.in_flight.start(move || {
        let result = match words.has('z') {
            true => device.write_zeros(at, length, zero_request(&words), durable(&words)),
            false => device.write(at, &buffer, durable(&words)),
        };
        let done = Done { verb: "wrote", at, length, took: start.elapsed() };
        match result {
            Ok(()) => done.statistics(words.statistics()),
            Err(errno) => format!("{}\n", failed("aio_write", errno)),
        }
    });
    Ok(Flow::Continue)
}

/// The line about a request that failed.
pub(super) fn failed(what: &str, errno: Errno) -> String {
    format!("{what} failed: {errno}")
}

/// Reads the length of a request with one buffer.
pub(super) fn request_length(text: &str, unless: &str) -> Result<u64, String> {
    let length = number::bytes(text)?;
    if REQUEST_MAX < length {
        return Err(format!("length cannot exceed {REQUEST_MAX}{unless}, given {text}"));
    }
    Ok(length)
}

/// Reads an offset and the lengths of buffers, whose sum counts: they lie side by side in the disk,
/// and here in memory too.
fn vector(operands: &[String]) -> Result<(u64, u64), Trouble> {
    let [at, lengths @ ..] = operands else { return Err(Trouble::Usage) };
    if lengths.is_empty() {
        return Err(Trouble::Usage);
    }
    let at = number::bytes(at)?;
    let mut sum = 0;
    for text in lengths {
        let length = number::bytes(text)?;
        if REQUEST_MAX < length {
            return Err(format!("Argument '{text}' exceeds maximum size {REQUEST_MAX}").into());
        }
        if REQUEST_MAX - sum < length {
            let message =
                format!("The total number of bytes exceed the maximum size {REQUEST_MAX}");
            return Err(message.into());
        }
        sum += length;
    }
    Ok((at, sum))
}

fn check_sectors(at: u64, length: u64) -> Result<(), String> {
    for (value, what) in [(at, "offset"), (length, "count")] {
        if !value.is_multiple_of(SECTOR_BYTES) {
            return Err(format!("{value} is not a sector-aligned value for '{what}'"));
        }
    }
    Ok(())
}

/// The bytes to write: a pattern, or a file over and over.
fn filled(words: &Words, length: u64) -> Result<Vec<u8>, Trouble> {
    let length = ByteCount::new(length).as_usize();
    let Some(name) = words.text('s') else {
        return Ok(vec![words.pattern.unwrap_or(FILL); length]);
    };
    let complain = |why: &str| Trouble::ErrorLine(format!("{name}: {why}"));
    let source = fs::read(name).map_err(|error| complain(&system_words(&error)))?;
    if source.is_empty() || length == 0 {
        return Err(complain("file is empty"));
    }
    Ok(source.iter().copied().cycle().take(length).collect())
}

fn zero_request(words: &Words) -> ZeroRequest {
    if words.has('u') { ZeroRequest::MayUnmap } else { ZeroRequest::KeepAllocated }
}

fn durable(words: &Words) -> Durable {
    if words.has('f') { Durable::AtOnce } else { Durable::ByCacheMode }
}

/// The line about bytes that are not what was expected.
fn mismatch(bytes: &[u8], expected: u8, at: u64) -> Option<String> {
    let differs = bytes.iter().any(|&byte| byte != expected);
    differs.then(|| format!("Pattern verification failed at offset {at}, {} bytes\n", bytes.len()))
}

/// What a read shows: the bytes with `-v`, then the statistics; nothing at all with `-q`.
fn shown(done: &Done, bytes: &[u8], words: &Words) -> String {
    let how = words.statistics();
    let dumped = words.has('v') && how != Statistics::Quiet;
    let mut text = if dumped { dump(bytes, done.at) } else { String::new() };
    text.push_str(&done.statistics(how));
    text
}
