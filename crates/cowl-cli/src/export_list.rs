//! `qemu-nbd -L`: the exports of a server, in qemu-nbd's words.

use std::fmt::Write;
use std::io;

use cowl_nbd::{ConnectError, ListedExport, NbdUri, list_exports};

use crate::disk::system_words;
use crate::failure::{Failure, Kind};

/// What qemu-nbd calls the transmission flags, by their bits.
const FLAGS: [(u16, &str); 12] = [
    (1, "readonly"),
    (2, "flush"),
    (3, "fua"),
    (4, "rotational"),
    (5, "trim"),
    (6, "zeroes"),
    (7, "df"),
    (8, "multi"),
    (9, "resize"),
    (10, "cache"),
    (11, "fast-zero"),
    (12, "block-status-payload"),
];

/// The list of the server at `place`, which messages call `name`.
pub(crate) fn list(place: &NbdUri, name: &str) -> Result<String, Failure> {
    let exports = list_exports(place).map_err(|error| failure(&error, name))?;
    let mut text = format!("exports available: {}\n", exports.len());
    for export in &exports {
        describe(&mut text, export);
    }
    Ok(text)
}

fn failure(error: &ConnectError, name: &str) -> Failure {
    let message = match error {
        ConnectError::Io(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
            format!("Failed to connect to '{name}': {}", system_words(error))
        }
        other => format!("Failed to list the exports of '{name}': {other}"),
    };
    Failure::new(Kind::Open, message)
}

fn describe(text: &mut String, export: &ListedExport) {
    let mut line = |line: String| writeln!(text, "{line}").expect("a string takes text");
    line(format!(" export: '{}'", export.name));
    if !export.description.is_empty() {
        line(format!("  description: {}", export.description));
    }
    line(format!("  size:  {}", export.size));
    let set = FLAGS.iter().filter(|(bit, _)| export.flags & (1 << bit) != 0);
    let words: String = set.map(|(_, word)| format!(" {word}")).collect();
    line(format!("  flags: {:#x} ({words} )", export.flags));
    if let Some([least, best, most]) = export.block_sizes {
        line(format!("  min block: {least}"));
        line(format!("  opt block: {best}"));
        line(format!("  max block: {most}"));
    }
    let bits = if export.is_extended { 64 } else { 32 };
    line(format!("  transaction size: {bits}-bit"));
    if !export.contexts.is_empty() {
        line(format!("  available meta contexts: {}", export.contexts.len()));
        for context in &export.contexts {
            line(format!("   {context}"));
        }
    }
}
