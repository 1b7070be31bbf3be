//! `tour`: everything at work in a temporary folder, with each command shown.

use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

use cowl_tools::{Tour, TourStep};

use crate::commands::Verb;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser};
use crate::option::{self, Common, Flag};
use crate::session::Session;

const OPTIONS: &[Opt<Flag>] = &[option::HELP, option::ERRORS];

pub(super) const VERB: Verb = Verb {
    name: "tour",
    summary: "Show in ten seconds what the other commands do",
    usage: "",
    about: "Makes an image and an overlay in a temporary folder, converts, compresses, checks and \
            compares them, and shows each command with what it prints; then cuts the power of a \
            simulated machine that writes to one. Nothing is left behind.",
    options: OPTIONS,
    examples: &[""],
    run,
};

/// What the last part shows.
const POWER_CUTS: &str = "
# Guests write to that last image, and the power fails: at any moment, any of the
# writes that no flush had covered are lost. (cargo xtask sim does it for hours.)
";

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

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    parse(arguments)?;
    let failed = |error: &dyn std::fmt::Display| Failure::new(Kind::Io, format!("tour: {error}"));
    let program = std::env::current_exe().map_err(|error| failed(&error))?;
    let tour = Tour::prepare(&program).map_err(|error| failed(&error))?;
    for step in tour.steps() {
        show(step, &program, tour.folder(), session)?;
    }
    let files = tour.stored_files().map_err(|error| failed(&error))?;
    session.output.text("\n# The files, read through the compressed image:\n");
    for file in &files {
        let verdict = if file.intact { "intact" } else { "DIFFERENT" };
        session.output.text(&format!("{:>10} bytes  {:<16} {verdict}\n", file.bytes, file.name));
    }
    if files.iter().any(|file| !file.intact) {
        return Err(failed(&"a file is not what was put in").into());
    }
    session.output.text_now(POWER_CUTS);
    let cuts = tour.power_cuts().map_err(|error| failed(&error))?;
    if let Some(violation) = &cuts.violation {
        return Err(failed(&format_args!("a power cut left an illegal image: {violation}")).into());
    }
    session.output.text(&format!(
        "{} requests, {} images left by power cuts: all open, check, and hold what was flushed\n",
        cuts.requests, cuts.crash_states
    ));
    let name = &session.program;
    session.output.text(&format!(
        "\nThe folder is gone again. '{name} --help' lists the commands, and '{name} COMMAND \
         --help' \
         explains one.\n"
    ));
    Ok(0)
}

/// Runs one command as the user would, and shows it with what it prints.
fn show(step: &TourStep, program: &Path, folder: &Path, session: &Session) -> Result<(), Failure> {
    let words = step.arguments.join(" ");
    session.output.text_now(&format!("\n# {}\n$ {} {words}\n", step.title, session.program));
    let output = Command::new(program).args(step.arguments).current_dir(folder).output();
    let output = output.map_err(|error| Failure::new(Kind::Io, format!("tour: {error}")))?;
    session.output.text_now(&String::from_utf8_lossy(&output.stdout));
    if output.status.success() {
        return Ok(());
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    Err(Failure::new(Kind::Io, format!("tour: '{words}' failed: {}", reason.trim_end())))
}
