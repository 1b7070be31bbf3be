//! The table of all commands, and those that are about the program itself.

use std::time::Duration;

use super::shell::{Flow, Shell, Trouble};
use super::{change, inquiry, number, opening, transfer};
use crate::help::wrap;
use crate::number::integer;

/// A command of the language.
pub(super) struct Command {
    /// Its name.
    pub(super) name: &'static str,
    /// Another one.
    alias: Option<&'static str>,
    /// What follows the name; commands without any have none.
    arguments: Option<&'static str>,
    /// What it does, in one line.
    summary: &'static str,
    /// More about it.
    help: &'static str,
    /// How many words follow at least, and at most.
    counts: (usize, Option<usize>),
    /// Whether it is about an open disk.
    pub(super) needs_disk: bool,
    /// Whether it changes that disk.
    pub(super) writes: bool,
    /// Carries it out; the first word is the name.
    pub(super) run: fn(&mut Shell<'_>, &[String]) -> Result<Flow, Trouble>,
}

impl Command {
    /// The line that the list of commands shows, with the name that was typed.
    pub(super) fn usage(&self, name: &str) -> String {
        let arguments = self.arguments.map_or(String::new(), |text| format!("{text} "));
        format!("{name} {arguments}-- {}\n", self.summary)
    }

    /// What number of words was expected, when `count` is wrong.
    pub(super) fn wrong_count(&self, count: usize) -> Option<String> {
        match self.counts {
            (least, None) if count < least => Some(format!("at least {least}")),
            (least, Some(most)) if count < least || most < count => Some(match least == most {
                true => format!("{least}"),
                false => format!("between {least} and {most}"),
            }),
            _ => None,
        }
    }
}

/// The command called `name`.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name || command.alias == Some(name))
}

const READ_LETTERS: &str = "-C prints statistics for machines, -q none; -P BYTE compares what is \
    read with a pattern; -v prints the bytes. -r has no effect here.";
const WRITE_LETTERS: &str = "-C prints statistics for machines, -q none; -P BYTE fills with \
    another pattern than 0xcd; -f makes the bytes durable. -r has no effect here.";

/// In the order of the alphabet, as `help` lists them.
const COMMANDS: &[Command] = &[
    Command {
        counts: (0, Some(0)),
        run: abort,
        ..plain("abort", "simulate a program crash using abort(3)")
    },
    Command {
        counts: (0, Some(0)),
        run: change::aio_flush,
        ..on_disk("aio_flush", "completes all outstanding aio requests")
    },
    Command {
        arguments: Some("[-Ciqrv] [-P pattern] off len [len..]"),
        help: "Starts a read and does not wait for it; its outcome is printed by a later command, \
               at the latest by aio_flush or at the end. The letters are those of readv; -i only \
               says that an invalid request would have been counted.",
        counts: (2, None),
        run: transfer::aio_read,
        ..on_disk("aio_read", "asynchronously reads a number of bytes")
    },
    Command {
        arguments: Some("[-Cfiqruz] [-P pattern] off len [len..]"),
        help: "Starts a write and does not wait for it; its outcome is printed by a later \
               command, at the latest by aio_flush or at the end. The letters are those of writev; \
               -z writes zeros and with -u may give space back; -i only says that an invalid \
               request would have been counted.",
        counts: (2, None),
        writes: true,
        run: transfer::aio_write,
        ..on_disk("aio_write", "asynchronously writes a number of bytes")
    },
    Command {
        alias: Some("a"),
        arguments: Some("offset [count]"),
        counts: (1, Some(2)),
        run: inquiry::alloc,
        ..on_disk("alloc", "checks if offset is allocated in the file")
    },
    Command {
        alias: Some("c"),
        counts: (0, Some(0)),
        run: opening::close,
        ..on_disk("close", "close the current open file")
    },
    Command {
        alias: Some("d"),
        arguments: Some("[-Cq] off len"),
        help: "Gives up the content of a range. -C prints statistics for machines, -q none.",
        counts: (2, None),
        writes: true,
        run: change::discard,
        ..on_disk("discard", "discards a number of bytes at a specified offset")
    },
    Command {
        alias: Some("f"),
        counts: (0, Some(0)),
        run: change::flush,
        ..on_disk("flush", "flush all in-core file state to disk")
    },
    Command {
        alias: Some("?"),
        arguments: Some("[command]"),
        counts: (0, Some(1)),
        run: help,
        ..plain("help", "help for one or all commands")
    },
    Command {
        alias: Some("i"),
        counts: (0, Some(0)),
        run: inquiry::info,
        ..on_disk("info", "prints information about the current file")
    },
    Command {
        alias: Some("l"),
        counts: (0, Some(0)),
        run: inquiry::length,
        ..on_disk("length", "gets the length of the current file")
    },
    Command {
        arguments: Some(""),
        counts: (0, Some(0)),
        run: inquiry::map,
        ..on_disk("map", "prints the allocated areas of a file")
    },
    Command {
        alias: Some("o"),
        arguments: Some("[-rsCnkU] [-t cache] [-d discard] [-o options] [path]"),
        help: "Opens a disk for the commands that follow. -r opens it read-only, -U although \
               another process writes to it; -n is short for -t none; -d ignore makes discards do \
               nothing; -o gives options such as driver=raw. -i and -k choose QEMU's drivers and \
               have no effect here. -s and -C are not available.",
        counts: (1, None),
        run: opening::open,
        ..plain("open", "open the file specified by path")
    },
    Command { alias: Some("q"), counts: (0, None), run: quit, ..plain("quit", "exit the program") },
    Command {
        alias: Some("r"),
        arguments: Some("[-abCqrv] [-P pattern [-s off] [-l len]] off len"),
        help: READ_HELP,
        counts: (2, None),
        run: transfer::read,
        ..on_disk("read", "reads a number of bytes at a specified offset")
    },
    Command {
        arguments: Some("[-Cqrv] [-P pattern] off len [len..]"),
        help: READ_LETTERS,
        counts: (2, None),
        run: transfer::readv,
        ..on_disk("readv", "reads a number of bytes at a specified offset")
    },
    Command {
        arguments: Some("[(-r|-w)] [-c cache] [-o options]"),
        help: "Closes the disk and opens it otherwise: -r read-only, -w for writing, -c with \
               another cache mode, -o with other values of read-only, cache.direct, \
               cache.writeback, cache.no-flush, discard or force-share.",
        counts: (0, None),
        run: opening::reopen,
        ..on_disk("reopen", "reopens an image with new options")
    },
    Command {
        arguments: Some("signal"),
        help: "Sends the signal of this number to the program itself.",
        counts: (1, Some(1)),
        run: sigraise,
        ..plain("sigraise", "raises a signal")
    },
    Command {
        counts: (1, Some(1)),
        run: sleep,
        ..plain("sleep", "waits for the given value in milliseconds")
    },
    Command {
        alias: Some("t"),
        arguments: Some("[-m prealloc_mode] off"),
        counts: (1, Some(3)),
        writes: true,
        run: change::truncate,
        ..on_disk("truncate", "truncates the current file at the given offset")
    },
    Command {
        alias: Some("w"),
        arguments: Some("[-bcCfnqruz] [-P pattern | -s source_file] off len"),
        help: WRITE_HELP,
        counts: (2, None),
        writes: true,
        run: transfer::write,
        ..on_disk("write", "writes a number of bytes at a specified offset")
    },
    Command {
        arguments: Some("[-Cfqr] [-P pattern] off len [len..]"),
        help: WRITE_LETTERS,
        counts: (2, None),
        writes: true,
        run: transfer::writev,
        ..on_disk("writev", "writes a number of bytes at a specified offset")
    },
];

const READ_HELP: &str = "-C prints statistics for machines, -q none; -P BYTE compares what is \
    read with a pattern, -s and -l only a part of it; -v prints the bytes. -b (the VM state) is \
    refused; -p and -r have no effect here.";
const WRITE_HELP: &str = "-C prints statistics for machines, -q none; -P BYTE fills with another \
    pattern than 0xcd, -s FILE with the content of a file; -z writes zeros, with -u it may give \
    space back, with -n it may be as long as the disk; -c compresses; -f makes the bytes durable. \
    -b (the VM state) is refused; -p and -r have no effect here.";

/// A command without a disk; the caller fills in the rest.
const fn plain(name: &'static str, summary: &'static str) -> Command {
    Command {
        name,
        alias: None,
        arguments: None,
        summary,
        help: "",
        counts: (0, None),
        needs_disk: false,
        writes: false,
        run: quit,
    }
}

/// The same about the open disk.
const fn on_disk(name: &'static str, summary: &'static str) -> Command {
    Command { needs_disk: true, ..plain(name, summary) }
}

fn help(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let Some(name) = words.get(1) else {
        for command in COMMANDS {
            shell.print(&command.usage(command.name));
        }
        shell.print("\nUse 'help commandname' for extended help.\n");
        return Ok(Flow::Continue);
    };
    let Some(command) = find(name) else {
        return Err(format!("command {name} not found").into());
    };
    shell.print(&command.usage(name));
    if !command.help.is_empty() {
        shell.print(&format!("\n{}\n\n", wrap(command.help, 1)));
    }
    Ok(Flow::Continue)
}

fn quit(_: &mut Shell<'_>, _: &[String]) -> Result<Flow, Trouble> {
    Ok(Flow::Quit)
}

fn sleep(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let text = &words[1];
    let duration = integer(text).and_then(|value| u64::try_from(value).ok());
    let duration = duration.ok_or_else(|| format!("{text} is not a valid number"))?;
    std::thread::sleep(Duration::from_millis(duration));
    let finished = shell.in_flight.take_finished();
    shell.print(&finished);
    Ok(Flow::Continue)
}

fn abort(_: &mut Shell<'_>, _: &[String]) -> Result<Flow, Trouble> {
    std::process::abort()
}

fn sigraise(shell: &mut Shell<'_>, words: &[String]) -> Result<Flow, Trouble> {
    let signal = number::bytes(&words[1])?;
    let known = i32::try_from(signal).ok().filter(|signal| *signal <= SIGNAL_MAX);
    let signal = known.ok_or_else(|| {
        format!("signal argument '{}' is too large to be a valid signal", words[1])
    })?;
    if signal == 0 {
        return Ok(Flow::Continue);
    }
    // What was said before is said, as far as that is possible.
    shell.session.output.text_now("");
    let raised = if ENDING.contains(&signal) {
        // The plain meaning, at once: our own handler would run on another thread.
        signal_hook::low_level::emulate_default_handler(signal)
    } else {
        signal_hook::low_level::raise(signal)
    };
    raised.map_err(|error| Trouble::Message(format!("signal {signal}: {error}")))?;
    Ok(Flow::Continue)
}

/// The last signal of Linux.
const SIGNAL_MAX: i32 = 64;

/// Signals that the program itself watches.
const ENDING: [i32; 3] =
    [signal_hook::consts::SIGHUP, signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM];

#[cfg(test)]
mod tests {
    use super::{COMMANDS, find};

    #[test]
    fn commands_stand_in_the_order_of_the_alphabet() {
        assert!(COMMANDS.is_sorted_by_key(|command| command.name));
    }

    #[test]
    fn names_and_aliases_are_unique() {
        for command in COMMANDS {
            assert_eq!(find(command.name).unwrap().name, command.name);
            assert!(command.alias.is_none_or(|alias| find(alias).unwrap().name == command.name));
        }
    }

    #[test]
    fn a_wrong_number_of_words_is_told() {
        let expected = |name: &str, count| find(name).unwrap().wrong_count(count);
        assert_eq!(expected("read", 1), Some("at least 2".into()));
        assert_eq!(expected("alloc", 3), Some("between 1 and 2".into()));
        assert_eq!(expected("length", 1), Some("0".into()));
        assert_eq!(expected("quit", 5), None);
    }
}
