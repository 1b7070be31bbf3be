//! `map`: where the bytes of an image are stored.

use std::ffi::OsString;

use cowl_tools::MapEntry;

use crate::commands::Verb;
use crate::disk;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::number;
use crate::option::{self, Common, Flag, OutputFormat};
use crate::session::Session;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::FORMAT,
    option::IMAGE_OPTS,
    option::short(
        Flag::StartOffset,
        's',
        &["start-offset"],
        Takes::Value("OFFSET"),
        "Begin at this byte of the disk (0).",
    ),
    option::short(
        Flag::MaxLength,
        'l',
        &["max-length"],
        Takes::Value("LENGTH"),
        "Look at no more than so many bytes (all).",
    ),
    option::FORCE_SHARE,
    option::OUTPUT,
    option::OBJECT,
    option::UNTRUSTED,
    option::FOLLOW_NBD,
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "map",
    summary: "Show where the bytes of an image are stored",
    usage: "[OPTIONS] IMAGE",
    about: "For people: the runs that hold data, with their place in the file. For machines \
            (--output=json): every run, with the layer it comes from and whether it reads as zero.",
    options: OPTIONS,
    examples: &["disk.qcow2", "--output=json --start-offset=1G --max-length=64M disk.qcow2"],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    image: ImageName,
    start: u64,
    length: Option<u64>,
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut common = Common::default();
    let mut start = 0;
    let mut length = None;
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::StartOffset => start = number::size("start offset", &given.text())?,
            Flag::MaxLength => length = Some(number::size("max length", &given.text())?),
            _ => common.take(&given)?,
        }
    }
    let operands = parser.operands();
    let [operand] = operands.as_slice() else {
        return Err(Failure::usage_with_help("Expecting one image file name").into());
    };
    let format = common.format.as_deref();
    option::exclude_format_with_image_opts(common.image_opts, format)?;
    let image = ImageName::parse(operand, format, common.image_opts)?;
    Ok(Options { common, image, start, length })
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments)?;
    let disk = disk::open(&options.image, &options.common, None)?;
    // Written as it is found: a fragmented disk has more runs than fit in memory.
    match options.common.output {
        OutputFormat::Json => {
            session.output.text("[");
            let mut before = "";
            map(&disk, &options, |entry| {
                session.output.text(before);
                session.output.text(&json_line(&entry));
                before = ",\n";
                Ok(())
            })?;
            session.output.text("]\n");
        }
        OutputFormat::Human => {
            session.output.text(HEADING);
            map(&disk, &options, |entry| {
                session.output.text(&line(&entry)?);
                Ok(())
            })?;
        }
    }
    Ok(0)
}

/// Why going through the runs ended early.
enum Ended {
    Unreadable(cowl::Error),
    Unprintable(Failure),
}

impl From<cowl::Error> for Ended {
    fn from(error: cowl::Error) -> Self {
        Self::Unreadable(error)
    }
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Unprintable(failure)
    }
}

fn map(
    disk: &cowl_tools::Disk,
    options: &Options,
    print: impl FnMut(MapEntry) -> Result<(), Ended>,
) -> Result<(), Failure> {
    cowl_tools::map(disk, options.start, options.length, print).map_err(|ended| match ended {
        Ended::Unprintable(failure) => failure,
        Ended::Unreadable(error) => {
            let message = format!("Could not read file metadata: {}", disk::words(&error));
            Failure::new(Kind::Io, message).about(&options.image.path)
        }
    })
}

const HEADING: &str = "Offset          Length          Mapped to       File\n";

/// The line for people: only what holds data has one, and it must have a place.
fn line(entry: &MapEntry) -> Result<String, Failure> {
    let run = &entry.status;
    if !run.data || run.zero {
        return Ok(String::new());
    }
    let Some(offset) = run.offset else {
        let message = "File contains external, encrypted or compressed clusters.";
        return Err(Failure::new(Kind::Format, message).hint("--output=json shows all of them"));
    };
    let hex = |value: u64| if value == 0 { "0".into() } else { format!("{value:#x}") };
    Ok(format!(
        "{:<16}{:<16}{:<16}{}\n",
        hex(run.start),
        hex(run.length),
        hex(offset),
        entry.file.as_deref().unwrap_or_default()
    ))
}

/// One run a line, which is not how other JSON of ours is laid out, but how this one is known.
fn json_line(entry: &MapEntry) -> String {
    let run = &entry.status;
    let offset = run.offset.map(|offset| format!(", \"offset\": {offset}")).unwrap_or_default();
    format!(
        "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": \
         {}, \"compressed\": {}{offset}}}",
        run.start, run.length, run.depth, run.present, run.zero, run.data, run.compressed
    )
}

#[cfg(test)]
mod tests {
    use super::{json_line, line};
    use cowl_tools::{BlockStatus, MapEntry};

    fn data(start: u64, offset: Option<u64>) -> MapEntry {
        let status = BlockStatus {
            start,
            length: 0x20000,
            depth: 0,
            present: true,
            zero: false,
            data: true,
            compressed: offset.is_none(),
            offset,
        };
        MapEntry { status, file: Some("c.qcow2".into()) }
    }

    #[test]
    fn people_see_what_holds_data() {
        let text = line(&data(0, Some(0x50000))).unwrap();
        assert_eq!(text, "0               0x20000         0x50000         c.qcow2\n");
        let mut zero = data(0, Some(0));
        zero.status.zero = true;
        assert_eq!(line(&zero).unwrap(), "");
    }

    #[test]
    fn data_without_a_place_cannot_be_shown_to_people() {
        assert!(line(&data(0, None)).is_err());
    }

    #[test]
    fn machines_see_one_run_a_line() {
        let stored = "{ \"start\": 0, \"length\": 131072, \"depth\": 0, \"present\": true, \
                      \"zero\": false, \"data\": true, \"compressed\": false, \"offset\": 327680}";
        assert_eq!(json_line(&data(0, Some(327_680))), stored);
        assert!(json_line(&data(0, None)).ends_with("\"compressed\": true}"));
    }
}
