//! The `cowl` command: reads the words, calls the tools, prints, and answers with an exit code.
//!
//! Called through a symbolic link named `qemu-img` it speaks under that name; nothing else changes.
//! Called as `qemu-io` it is the command `io` alone, and called as `qemu-nbd` an NBD server.
#![forbid(unsafe_code)]

mod background;
mod cache_mode;
mod commands;
mod creation_options;
mod disk;
mod export_list;
mod failure;
mod getopt;
mod help;
mod image_name;
mod interrupt;
mod io;
mod json;
mod mount;
mod nbd_name;
mod new_image;
mod number;
mod option;
mod option_list;
mod output;
mod progress;
mod secret_object;
mod serve;
mod session;
mod settings;
mod size;
mod snapshot_name;
mod text;

use std::ffi::OsString;
use std::process::ExitCode;

use crate::commands::Verb;
use crate::failure::{Failure, Kind, Stop, Voice};
use crate::getopt::{Opt, Parser, Takes};
use crate::option::Flag;
use crate::output::Output;
use crate::session::Session;

/// What may stand before the command.
const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::short(Flag::Version, 'V', &["version"], Takes::Nothing, "Show the version."),
    option::short(Flag::Trace, 'T', &["trace"], Takes::Value("TRACE"), "Not available."),
    option::ERRORS,
];

fn main() -> ExitCode {
    interrupt::watch();
    let mut arguments = std::env::args_os();
    let argv0 = arguments.next();
    let arguments: Vec<OsString> = arguments.collect();
    let session = Session::new(argv0, &arguments, Output::of_process());
    let code = run(arguments, &session);
    match session.output.finish() {
        Ok(()) => ExitCode::from(code),
        Err(error) => {
            let message = format!("Could not write to standard output: {error}");
            session.report("", &Failure::new(Kind::Output, message));
            ExitCode::from(code.max(1))
        }
    }
}

fn run(arguments: Vec<OsString>, session: &Session) -> u8 {
    if session.is_qemu_io() {
        return run_verb(&commands::IO, arguments, session);
    }
    if session.is_qemu_nbd() {
        return run_verb(&commands::QEMU_NBD, arguments, session);
    }
    let (verb, arguments) = match find_verb(arguments, session) {
        Ok(found) => found,
        Err(stop) => return answer(stop, None, session),
    };
    run_verb(verb, arguments, session)
}

fn run_verb(verb: &Verb, arguments: Vec<OsString>, session: &Session) -> u8 {
    match (verb.run)(arguments, session) {
        Ok(code) => code,
        Err(stop) => answer(stop, Some(verb), session),
    }
}

fn answer(stop: Stop, verb: Option<&Verb>, session: &Session) -> u8 {
    match stop {
        Stop::Help => {
            let text = verb.map_or_else(|| help::program(session), |v| help::verb(v, session));
            session.output.text(&text);
            0
        }
        Stop::Answer(text) => {
            session.output.text(&text);
            0
        }
        Stop::Failed(failure) => {
            let named = verb.filter(|_| !session.is_whole_program());
            session.report(named.map_or("", |verb| verb.name), &failure);
            failure.exit
        }
    }
}

fn find_verb(
    arguments: Vec<OsString>,
    session: &Session,
) -> Result<(&'static Verb, Vec<OsString>), Stop> {
    let mut parser = Parser::until_operand(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::Help => return Err(Stop::Help),
            Flag::Version => return Err(Stop::Answer(help::version(session))),
            Flag::Trace => return Err(option::not_available("tracing (-T)").into()),
            _ => option::Common::default().take(&given)?,
        }
    }
    let mut operands = parser.operands().into_iter();
    let Some(name) = operands.next() else {
        return Err(Failure::usage_with_help("Not enough arguments").into());
    };
    let name = name.to_string_lossy();
    if let Some(verb) = commands::find(&name) {
        return Ok((verb, operands.collect()));
    }
    if commands::NOT_AVAILABLE.contains(&name.as_ref()) {
        return Err(option::not_available(&format!("'{name}'")).into());
    }
    let message = format!("Command not found: {name}");
    Err(Failure { voice: Voice::ProgramWithHelp, ..Failure::usage(message) }.into())
}
