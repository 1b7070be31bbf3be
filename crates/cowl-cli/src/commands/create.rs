//! `create`: make a new image.

use std::ffi::OsString;
use std::path::Path;

use cowl::{BlockDevice, resolve_backing_name};
use cowl_format::ByteCount;
use cowl_tools::NewImage;

use crate::commands::Verb;
use crate::creation_options::{self, CreationOptions, OptionValue};
use crate::disk;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::new_image;
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
    about: "An image that exists is replaced. Without SIZE a new image upon another one gets its \
            size.",
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
    skips_backing: bool,
    size: Option<u64>,
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut common = Common::default();
    let mut lists: Vec<String> = Vec::new();
    let (mut backing, mut backing_format, mut skips_backing) = (None, None, false);
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::Options => {
                lists.push(given.text());
                check_list(&lists)?;
            }
            Flag::Backing => backing = Some(given.text()),
            Flag::BackingFormat => backing_format = Some(given.text()),
            Flag::BackingUnsafe => skips_backing = true,
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
    Ok(Options { common, path, format, list, backing, backing_format, skips_backing, size })
}

fn check_list(lists: &[String]) -> Result<(), Failure> {
    creation_options::join(lists).map(drop).map_err(Failure::usage)
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments)?;
    create(&options, session).map_err(|message| {
        let path = Path::new(&options.path);
        let message = format!("{}: {message}", path.display());
        Failure::new(Kind::Open, message).about(path)
    })?;
    Ok(0)
}

/// Makes the image. The error says why not; whoever calls adds the name of the image.
fn create(options: &Options, session: &Session) -> Result<(), String> {
    let format = options.format.as_str();
    if !["raw", "qcow2"].contains(&format) {
        return Err(format!("Unknown file format '{format}'"));
    }
    ImageName::new_file(&options.path)?;
    let mut list = options.list.clone();
    if format != "qcow2" && options.backing.is_some() {
        return Err(format!("Backing file not supported for file format '{format}'"));
    }
    if format != "qcow2" && options.backing_format.is_some() {
        return Err(format!("Backing file format not supported for file format '{format}'"));
    }
    list.set("backing_file", options.backing.as_deref());
    list.set("backing_fmt", options.backing_format.as_deref());
    let mut given = CreationOptions::parse(format, &list)?;
    if options.size.is_some() && given.number("size").is_some() {
        return Err("The image size must be specified only once".into());
    }
    let backing_size = check_backing(options, &given)?;
    let size = options.size.or(given.number("size")).or(backing_size);
    let size = size.ok_or("Image creation needs a size parameter")?;
    given.set("size", OptionValue::Size(size));
    if !options.common.quiet {
        session.output.text(&formatting(&options.path, format, &given));
    }
    let preallocation = new_image::preallocation(&given, format)?;
    let image = match format {
        "qcow2" => {
            NewImage::Qcow2 { options: Box::new(new_image::qcow2(&given, size)?), preallocation }
        }
        _ => NewImage::Raw { size: ByteCount::new(size), preallocation },
    };
    let target = ImageName::new_file(&options.path)?;
    cowl_tools::create(&target, &image).map_err(|error| new_image::words(&error, &target))
}

/// Looks at the backing file, unless told not to; its size.
fn check_backing(options: &Options, given: &CreationOptions) -> Result<Option<u64>, String> {
    const NO_FORMAT: &str = "Backing file specified without backing format";
    let Some(backing) = given.text("backing_file") else { return Ok(None) };
    let format = given.text("backing_fmt");
    if backing.is_empty() {
        return Err("Expected backing file name, got empty string".into());
    }
    let image = Path::new(&options.path);
    if Path::new(backing) == image {
        return Err(
            "Error: Trying to create an image with the same filename as the backing file".into()
        );
    }
    if options.skips_backing {
        return format.map(|_| None).ok_or_else(|| NO_FORMAT.into());
    }
    let unopened = |reason: String| format!("{reason}\nCould not open backing image.");
    if let Some(format) = format.filter(|format| !["raw", "qcow2"].contains(format)) {
        return Err(unopened(format!("Unknown driver '{format}'")));
    }
    let path = resolve_backing_name(image, backing.as_bytes())
        .map_err(|error| unopened(disk::words(&error)))?;
    let name = ImageName::local(path, format);
    let opened = disk::open_words(&name).map_err(unopened)?;
    match format {
        Some(_) => Ok(Some(opened.size().get().next_multiple_of(512))),
        None => Err(format!("{NO_FORMAT}\nDetected format of {}.", opened.format())),
    }
}

/// The line that says what is made: the options given, and those that always count.
fn formatting(path: &OsString, format: &str, given: &CreationOptions) -> String {
    let mut all = given.clone();
    if format == "qcow2" {
        for (name, value) in creation_options::QCOW2_DEFAULTS {
            if all.iter().all(|(given, _)| given != *name) {
                all.set(name, value.to_value());
            }
        }
    }
    let mut line = format!("Formatting '{}', fmt={format}", Path::new(path).display());
    for (name, value) in all.iter() {
        line.push_str(&format!(" {name}={}", value.to_string().replace(',', ",,")));
    }
    line.push('\n');
    line
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
        assert!(options.skips_backing && options.common.quiet);
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
