//! The help, made from the same tables that parse the command line.

use std::fmt::Write;

use crate::commands::{VERBS, Verb};
use crate::getopt::{Opt, Takes};
use crate::option::Flag;
use crate::session::Session;

const WIDTH: usize = 80;

/// `--help` without a command: what there is and how to begin.
pub(crate) fn program(session: &Session) -> String {
    let name = &session.program;
    let mut text = version(session);
    text.push_str(&format!(
        "Disk images that remember only what changed: make, inspect, copy and check them.\n\n\
         Usage: {name} COMMAND [OPTIONS] IMAGE...\n\nCommands:\n"
    ));
    for verb in VERBS {
        writeln!(text, "  {:<9} {}", verb.name, verb.summary).expect("a string takes text");
    }
    text.push_str(&format!(
        "\nFirst steps:\n\
         \x20 {name} tour                                  see it all at work, in ten seconds\n\
         \x20 {name} create -f qcow2 disk.qcow2 20G        a 20 GiB disk that takes 200 KiB\n\
         \x20 {name} create -f qcow2 -b disk.qcow2 -F qcow2 try.qcow2\n\
         \x20                                            changes go to try.qcow2 only\n\
         \x20 {name} convert -p -O raw try.qcow2 try.img   flatten the two into a plain file\n\
         \x20 {name} info --backing-chain try.qcow2        what it is, and what it stands on\n\n\
         Sizes take k, M, G, T, P or E (powers of 1024). '{name} COMMAND --help' explains a\n\
         command. Called by the name qemu-img, through a symbolic link, the program speaks\n\
         under that name; called qemu-io it is the command io, called qemu-nbd a server.\n\n\
         Options of every command:\n"
    ));
    text.push_str(&options(&[crate::option::ERRORS, crate::option::HELP]));
    text.push_str(
        "  -V, --version\n      Show the version.\n\nSupported image formats: qcow2 raw\n",
    );
    text
}

/// `--help` of a command.
pub(crate) fn verb(verb: &Verb, session: &Session) -> String {
    // Under a name such as qemu-io the program is the command.
    let mut name = session.program.clone();
    if !session.is_whole_program() {
        name = format!("{name} {}", verb.name);
    }
    let mut text = format!("{}\n\nUsage: {name} {}\n", verb.summary, verb.usage);
    if !verb.about.is_empty() {
        text.push_str(&format!("\n{}\n", wrap(verb.about, 0)));
    }
    text.push_str(&format!("\nOptions:\n{}", options(verb.options)));
    if !verb.examples.is_empty() {
        text.push_str("\nExamples:\n");
        for example in verb.examples {
            writeln!(text, "  {name} {example}").expect("a string takes text");
        }
    }
    text
}

/// `--version`. Scripts read the number of qemu-img out of its first line, so under that name the
/// line has its form and the version whose behaviour this program follows.
pub(crate) fn version(session: &Session) -> String {
    let own = env!("CARGO_PKG_VERSION");
    if session.is_drop_in() {
        format!("{} version 10.0.2 (cowl {own})\n", session.program)
    } else {
        format!("cowl {own}\n")
    }
}

fn options(options: &[Opt<Flag>]) -> String {
    let mut text = String::new();
    for option in options {
        let letter = option.short.map(|letter| format!("-{letter}"));
        let names = option.long.iter().take(1).map(|name| format!("--{name}"));
        let mut heading = letter.into_iter().chain(names).collect::<Vec<_>>().join(", ");
        match option.takes {
            Takes::Nothing => {}
            Takes::Value(value) => heading.push_str(&format!(" {value}")),
            Takes::OptionalValue(value) => heading.push_str(&format!("[={value}]")),
        }
        text.push_str(&format!("  {heading}\n{}\n", wrap(option.help, 6)));
    }
    text
}

/// Breaks a text into lines of 80 columns.
pub(crate) fn wrap(text: &str, indent: usize) -> String {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = " ".repeat(indent);
        for word in paragraph.split(' ') {
            if line.len() + 1 + word.len() > WIDTH && line.len() > indent {
                lines.push(std::mem::replace(&mut line, " ".repeat(indent)));
            }
            if line.len() > indent {
                line.push(' ');
            }
            line.push_str(word);
        }
        lines.push(line);
    }
    lines.join("\n")
}
