//! `tour`: everything at work in a temporary folder, with each command shown.

use std::ffi::OsString;

use crate::commands::Verb;
use crate::failure::{Failure, Stop};
use crate::getopt::{Opt, Parser};
use crate::option::{self, Common, Flag};
use crate::session::Session;

const OPTIONS: &[Opt<Flag>] = &[option::HELP, option::ERRORS];

pub(super) const VERB: Verb = Verb {
    name: "tour",
    summary: "Show in ten seconds what the other commands do",
    usage: "",
    about: "Makes an image and an overlay in a temporary folder, converts, compresses, checks and \
            compares them, and shows each command with what it prints. Nothing is left behind.",
    options: OPTIONS,
    examples: &[""],
    run,
};

fn parse(arguments: Vec<OsString>) -> Result<Common, Stop> {
    let mut common = Common::default();
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        common.take(&given)?;
    }
    match parser.operands().first() {
        None => Ok(common),
        Some(surplus) => {
            let message = format!("Unexpected argument: {}", surplus.to_string_lossy());
            Err(Failure::usage_with_help(message).into())
        }
    }
}

fn run(arguments: Vec<OsString>, _session: &Session) -> Result<u8, Stop> {
    parse(arguments)?;
    Err(option::not_available("'tour'").into())
}
