//! The commands that change a disk without bytes of their own: `discard`, `truncate`, `flush`.

use std::time::Instant;

use cowl::{Format, Preallocation};

use super::number;
use super::report::Done;
use super::shell::{Flow, Shell, Trouble};
use super::transfer::{failed, request_length};
use super::words::{Word, Words, letter, value};
use crate::disk::words;
use crate::getopt::Opt;

const DISCARD: &[Opt<Word>] = &[letter('C'), letter('q')];

pub(super) fn discard(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let words = Words::parse(words, DISCARD)?;
    let [at, length] = words.operands.as_slice() else { return Err(Trouble::Usage) };
    let (at, length) = (number::bytes(at)?, request_length(length, "")?);
    let start = Instant::now();
    let result = shell.device().discard(at, length);
    result.map_err(|errno| failed("discard", errno))?;
    let done = Done { verb: "discard", at, length, took: start.elapsed() };
    shell.print(&done.statistics(words.statistics()));
    Ok(Flow::Continue)
}

const TRUNCATE: &[Opt<Word>] = &[value(Word::Text('m'), 'm')];

pub(super) fn truncate(shell: &mut Shell<'_>, given: &[String]) -> Result<Flow, Trouble> {
    let given = Words::parse(given, TRUNCATE)?;
    let preallocation = match given.text('m') {
        None | Some("off") => Preallocation::Off,
        Some("metadata") => Preallocation::Metadata,
        Some("falloc") => Preallocation::Falloc,
        Some("full") => Preallocation::Full,
        Some(mode) => {
            return Err(Trouble::Message(format!("Invalid preallocation mode '{mode}'")));
        }
    };
    // Further words are ignored, as in qemu-io.
    let [size, ..] = given.operands.as_slice() else { return Err(Trouble::Usage) };
    let size = number::bytes(size)?;
    let device = shell.device();
    if preallocation == Preallocation::Metadata && device.disk.format() == Format::Raw {
        return Err(Trouble::Message("Unsupported preallocation mode: metadata".into()));
    }
    if preallocation != Preallocation::Off && size < device.size() {
        let message = match device.disk.format() {
            Format::Raw => "Cannot use preallocation for shrinking files",
            Format::Qcow2 => "Preallocation can't be used for shrinking images",
        };
        return Err(Trouble::Message(message.into()));
    }
    let result = device.disk.resize(size, preallocation);
    result.map_err(|error| Trouble::Message(words(&error)))?;
    Ok(Flow::Continue)
}

pub(super) fn flush(shell: &mut Shell<'_>, _: &[String]) -> Result<Flow, Trouble> {
    // Requests in flight are no business of it: only what was acknowledged is made durable.
    let result = shell.device().flush();
    result.map_err(|errno| Trouble::Message(failed("flush", errno)))?;
    Ok(Flow::Continue)
}

pub(super) fn aio_flush(shell: &mut Shell<'_>, _: &[String]) -> Result<Flow, Trouble> {
    let finished = shell.in_flight.take_all();
    shell.print(&finished);
    Ok(Flow::Continue)
}
