//! `create`: make a new image.

use std::ffi::OsString;

use crate::commands::Verb;
use crate::creation_options;
use crate::failure::{Failure, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::number;
use crate::option::{self, Common, Flag};
use crate::option_list::{self, OptionList};
use crate::session::Session;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::QUIET,
    option::OBJECT,
    option::short(
        Flag::Format,
        'f',
        &["format"],
        Takes::Value("FMT"),
        "Format of the new image (raw).",
    ),
    option::short(
        Flag::Options,
        'o',
        &["options"],
        Takes::Value("OPTIONS"),
        "Options of the format, as key=value,...; -o help lists them. May be repeated.",
    ),
    option::short(
        Flag::Backing,
        'b',
        &["backing"],
        Takes::Value("IMAGE"),
        "Build upon this image: it is never written, changes go to the new one.",
    ),
    option::short(
        Flag::BackingFormat,
        'F',
        &["backing-format"],
        Takes::Value("FMT"),
        "Format of that image. Required with -b, for a guess could be wrong in dangerous ways.",
    ),
    option::short(
        Flag::BackingUnsafe,
        'u',
        &["backing-unsafe"],
        Takes::Nothing,
        "Do not look at the backing file, which may not exist yet; then SIZE is required.",
    ),
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "create",
    summary: "Make a new image",
    usage: "[OPTIONS] IMAGE [SIZE]",
    about: "An image that exists is replaced. Without SIZE a new image upon another one gets its size.",
    options: OPTIONS,
    examples: &[
        "-f qcow2 disk.qcow2 20G",
        "-f qcow2 -b disk.qcow2 -F qcow2 overlay.qcow2",
        "-f qcow2 -o cluster_size=2M,preallocation=metadata disk.qcow2 1T",
    ],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    path: OsString,
    format: String,
    list: OptionList,
    backing: Option<String>,
    backing_format: Option<String>,
    backing_unsafe: bool,
    size: Option<u64>,
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut common = Common::default();
    let mut lists: Vec<String> = Vec::new();
    let (mut backing, mut backing_format, mut backing_unsafe) = (None, None, false);
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::Options => {
                lists.push(given.text());
                check_list(&lists)?;
            }
            Flag::Backing => backing = Some(given.text()),
            Flag::BackingFormat => backing_format = Some(given.text()),
            Flag::BackingUnsafe => backing_unsafe = true,
            _ => common.take(&given)?,
        }
    }
    let format = common.format.clone().unwrap_or("raw".into());
    if lists.iter().any(|list| option_list::asks_for_help(list)) {
        return Err(Stop::Answer(creation_options::help(&format)));
    }
    let mut operands = parser.operands().into_iter();
    let Some(path) = operands.next() else {
        return Err(Failure::usage_with_help("Expecting image file name").into());
    };
    let size = operands.next().map(|size| number::size("image size", &size.to_string_lossy()));
    let size = size.transpose()?;
    if let Some(surplus) = operands.next() {
        let message = format!("Unexpected argument: {}", surplus.to_string_lossy());
        return Err(Failure::usage_with_help(message).into());
    }
    let list = creation_options::join(&lists).map_err(Failure::usage)?;
    Ok(Options { common, path, format, list, backing, backing_format, backing_unsafe, size })
}

fn check_list(lists: &[String]) -> Result<(), Failure> {
    creation_options::join(lists).map(drop).map_err(Failure::usage)
}

fn run(arguments: Vec<OsString>, _session: &Session) -> Result<u8, Stop> {
    let _options = parse(arguments)?;
    Err(option::not_available("'create'").into())
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::failure::Stop;
    use std::ffi::OsString;

    fn arguments(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_full_command_line_is_understood() {
        let options =
            parse(arguments("-f qcow2 -o compat=v3 x -b base -F raw 1.5k -o lazy_refcounts -uq"));
        let options = options.unwrap();
        assert_eq!(options.path, "x");
        assert_eq!(options.size, Some(1536));
        assert_eq!(options.list.iter().count(), 2);
        assert_eq!(options.backing.as_deref(), Some("base"));
        assert!(options.backing_unsafe && options.common.quiet);
    }

    #[test]
    fn mistakes_are_told_in_the_words_of_qemu_img() {
        for (text, message) in [
            ("-f qcow2", "Expecting image file name"),
            ("-f qcow2 x 1 2", "Unexpected argument: 2"),
            ("-f qcow2 x abc", "Invalid image size specified: 'abc'."),
            (
                "-f qcow2 x 8E",
                "Invalid image size specified. Must be between 0 and 9223372036854775807.",
            ),
            ("-o ,x y", "Invalid option list: ,x"),
        ] {
            let Err(Stop::Failed(failure)) = parse(arguments(text)) else { panic!("{text}") };
            assert_eq!(failure.message, message);
        }
    }

    #[test]
    fn the_list_of_options_is_an_answer_and_no_failure() {
        let Err(Stop::Answer(text)) = parse(arguments("-f qcow2 -o help")) else { panic!() };
        assert!(text.starts_with("Supported qcow2 options:\n"));
    }
}
