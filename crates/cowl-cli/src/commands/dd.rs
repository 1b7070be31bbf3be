//! `dd`: copy a range of an image, with the operands of dd.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use cowl_tools::{ConvertError, CountFrom, DdBlocks, DdTarget, disk_size};

use crate::commands::Verb;
use crate::disk;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::new_image;
use crate::number;
use crate::option::{self, Common, Flag};
use crate::progress::{ProgressOptions, ProgressPrinter};
use crate::session::Session;

const BLOCK_SIZE_DEFAULT: u64 = 512;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::FORMAT,
    option::IMAGE_OPTS,
    option::short(
        Flag::TargetFormat,
        'O',
        &["output-format"],
        Takes::Value("FMT"),
        "Format of the new image (raw).",
    ),
    option::FORCE_SHARE,
    option::OBJECT,
    option::PROGRESS,
    option::UNTRUSTED,
    option::FOLLOW_NBD,
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "dd",
    summary: "Copy a range of an image into a new one",
    usage: "[OPTIONS] if=INPUT of=OUTPUT [bs=SIZE] [count=N] [skip=N]",
    about: "The output is always made anew. count= and skip= are in blocks of 512 bytes, or of bs= \
            bytes.",
    options: OPTIONS,
    examples: &["if=disk.qcow2 of=first.img bs=1M count=16"],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    input: ImageName,
    output: OsString,
    output_format: String,
    block_size: u64,
    count: Option<u64>,
    skip: u64,
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut common = Common::default();
    let mut output_format = None;
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::TargetFormat => output_format = Some(given.text()),
            _ => common.take(&given)?,
        }
    }
    let operands = Operands::parse(parser.operands())?;
    let (Some(input), Some(output)) = (operands.input, operands.output) else {
        return Err(Failure::usage("Must specify both input and output files").into());
    };
    let format = common.format.as_deref();
    option::exclude_format_with_image_opts(common.image_opts, format)?;
    let output_format = output_format.unwrap_or("raw".into());
    let input = ImageName::parse(&input, format, common.image_opts)?;
    Ok(Options {
        common,
        input,
        output,
        output_format,
        block_size: operands.block_size.unwrap_or(BLOCK_SIZE_DEFAULT),
        count: operands.count,
        skip: operands.skip.unwrap_or(0),
    })
}

#[derive(Default)]
struct Operands {
    input: Option<OsString>,
    output: Option<OsString>,
    block_size: Option<u64>,
    count: Option<u64>,
    skip: Option<u64>,
}

impl Operands {
    fn parse(given: Vec<OsString>) -> Result<Self, Failure> {
        const BLOCK_SIZE_MAX: u64 = i32::MAX as u64;
        let mut operands = Self::default();
        for operand in given {
            let (key, value) = split(operand)?;
            let text = value.to_string_lossy();
            match key.as_str() {
                "if" => operands.input = Some(value),
                "of" => operands.output = Some(value),
                "bs" => {
                    operands.block_size = Some(number::within("bs", &text, 1..=BLOCK_SIZE_MAX)?);
                }
                "count" => operands.count = Some(number::size("count", &text)?),
                "skip" => operands.skip = Some(number::size("skip", &text)?),
                _ => return Err(unrecognized(&key)),
            }
        }
        Ok(operands)
    }
}

/// Splits at the first `=`; the value is a file name, so its bytes stay as they are.
fn split(operand: OsString) -> Result<(String, OsString), Failure> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let bytes = operand.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(at) => {
            let key = String::from_utf8_lossy(&bytes[..at]).into_owned();
            Ok((key, OsString::from_vec(bytes[at + 1..].to_vec())))
        }
        None => Err(unrecognized(&operand.to_string_lossy())),
    }
}

fn unrecognized(operand: &str) -> Failure {
    Failure::usage(format!("unrecognized operand {operand}"))
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments)?;
    let source = disk::open(&options.input, &options.common, None)?;
    let kind = match options.output_format.as_str() {
        "raw" => DdTarget::Raw,
        "qcow2" => DdTarget::Qcow2,
        _ => return Err(Failure::usage("Unknown file format").into()),
    };
    let target = ImageName::new_file(&options.output)
        .map_err(|reason| Failure::usage(reason).about(Path::new(&options.output)))?;
    // A script that says qemu-img gets what qemu-img does, which is hardly what anybody wants.
    let count_from = if session.is_drop_in() { CountFrom::Start } else { CountFrom::BehindSkip };
    let (size, skip, count) = (options.block_size, options.skip, options.count);
    let range = DdBlocks { size, skip, count, count_from }.range(disk_size(&source));
    if range.skips_too_far {
        let message = format!("{}: cannot skip to specified offset", options.input.display());
        let failure = Failure::new(Kind::Io, message).about(&options.input.path);
        if !session.is_drop_in() {
            return Err(failure.into());
        }
        session.report("dd", &failure);
    }
    let printer = ProgressPrinter::start(
        ProgressOptions { mode: options.common.progress(), operation: "dd", step: 1.0 },
        Arc::clone(&session.output),
    );
    let result = cowl_tools::dd(&source, range, &target, kind, &printer);
    if result.is_ok() {
        printer.complete();
    }
    printer.end();
    result.map_err(|error| failure(&error, &options))?;
    Ok(0)
}

fn failure(error: &ConvertError, options: &Options) -> Failure {
    let target = Path::new(&options.output);
    let message = match error {
        ConvertError::Read { source, .. } => {
            format!("error while reading from input image file: {}", disk::words(source))
        }
        ConvertError::Target(error) => {
            creation_failed(target, &new_image::storage_words(error, target))
        }
        ConvertError::Create(error) => creation_failed(target, &new_image::words(error, target)),
        other => creation_failed(target, &other.to_string()),
    };
    Failure::new(Kind::Io, message).about(target)
}

fn creation_failed(target: &Path, reason: &str) -> String {
    format!("{}: error while creating output image: {reason}", target.display())
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
    fn operands_are_those_of_dd() {
        let options = parse(arguments("if=a -O qcow2 of=b bs=1M count=3 skip=2 bs=4k")).unwrap();
        assert_eq!(options.input.display(), "a");
        assert_eq!(options.output, "b");
        assert_eq!(options.output_format, "qcow2");
        assert_eq!((options.block_size, options.count, options.skip), (4096, Some(3), 2));
    }

    #[test]
    fn mistakes_are_told_in_the_words_of_qemu_img() {
        for (text, message) in [
            ("if=a", "Must specify both input and output files"),
            ("foo", "unrecognized operand foo"),
            ("seek=1 if=a of=b", "unrecognized operand seek"),
            ("bs=0 if=a of=b", "Invalid bs specified. Must be between 1 and 2147483647."),
            ("bs=x if=a of=b", "Invalid bs specified: 'x'."),
            ("if= of=b", "Could not open '': The 'file' block driver requires a file name"),
        ] {
            let Err(Stop::Failed(failure)) = parse(arguments(text)) else { panic!("{text}") };
            assert_eq!(failure.message, message);
        }
    }
}
