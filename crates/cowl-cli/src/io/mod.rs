//! The command language of qemu-io: read, write and ask about one open disk, a line at a time.
//!
//! [`Shell`] takes a line apart and runs its command; the table of all commands is in `command.rs`.
//! What commands say on standard output is what qemu-io says, to the letter: test suites compare
//! it.
//!
//! Not here: the options of the program, which are those of `commands/io.rs`.

mod shell;

mod change;
mod command;
mod inquiry;
mod opening;
mod transfer;

mod device;

mod in_flight;
mod number;
mod report;
mod words;

pub(crate) use shell::Shell;
