//! One file per verb: its options, and how its result is printed.

mod bench;
mod check;
mod compare;
mod convert;
mod create;
mod dd;
mod info;
mod io;
mod map;
mod measure;
mod mount;
mod qemu_nbd;
mod serve;
mod tour;

pub(crate) use info::format_specific;
pub(crate) use io::VERB as IO;
pub(crate) use qemu_nbd::VERB as QEMU_NBD;

use std::ffi::OsString;

use crate::failure::Stop;
use crate::getopt::Opt;
use crate::option::Flag;
use crate::session::Session;

/// A verb.
pub(crate) struct Verb {
    /// What is typed.
    pub(crate) name: &'static str,
    /// What it does, in one line.
    pub(crate) summary: &'static str,
    /// The operands.
    pub(crate) usage: &'static str,
    /// What else is good to know.
    pub(crate) about: &'static str,
    /// All options.
    pub(crate) options: &'static [Opt<Flag>],
    /// Arguments after the verb.
    pub(crate) examples: &'static [&'static str],
    /// Carries it out; the number is the exit code.
    pub(crate) run: fn(Vec<OsString>, &Session) -> Result<u8, Stop>,
}

/// All verbs, in the order of the help.
pub(crate) const VERBS: &[&Verb] = &[
    &tour::VERB,
    &create::VERB,
    &info::VERB,
    &convert::VERB,
    &check::VERB,
    &compare::VERB,
    &map::VERB,
    &measure::VERB,
    &dd::VERB,
    &serve::VERB,
    &io::VERB,
    &bench::VERB,
    &mount::VERB,
];

/// Verbs of qemu-img that this version lacks.
pub(crate) const NOT_AVAILABLE: &[&str] =
    &["amend", "bitmap", "commit", "rebase", "resize", "snapshot"];

/// The verb called `name`.
pub(crate) fn find(name: &str) -> Option<&'static Verb> {
    VERBS.iter().copied().find(|verb| verb.name == name)
}
