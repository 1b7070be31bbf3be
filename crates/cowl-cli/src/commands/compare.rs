//! `compare`: whether two images show the same disk.

use std::ffi::OsString;
use std::sync::Arc;

use cowl_tools::{CompareError, Comparison, Strictness};

use crate::commands::Verb;
use crate::disk;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::option::{self, Common, Flag};
use crate::progress::{ProgressOptions, ProgressPrinter};
use crate::session::Session;

const EXIT_DIFFERENT: u8 = 1;
const EXIT_OPEN_FAILED: u8 = 2;
const EXIT_STATUS_FAILED: u8 = 3;
const EXIT_READ_FAILED: u8 = 4;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::QUIET,
    option::PROGRESS_LETTER,
    option::short(
        Flag::FirstFormat,
        'f',
        &["a-format", "left-format"],
        Takes::Value("FMT"),
        "Format of the first image.",
    ),
    option::short(
        Flag::SecondFormat,
        'F',
        &["b-format", "right-format"],
        Takes::Value("FMT"),
        "Format of the second image.",
    ),
    option::IMAGE_OPTS,
    option::short(
        Flag::Strict,
        's',
        &["strict"],
        Takes::Nothing,
        "Different sizes are a difference, even when the longer image ends in zeros.",
    ),
    option::SOURCE_CACHE,
    option::FORCE_SHARE,
    option::OBJECT,
    option::UNTRUSTED,
    option::FOLLOW_NBD,
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "compare",
    summary: "Tell whether two images hold the same content",
    usage: "[OPTIONS] IMAGE1 IMAGE2",
    about: "The images may have different formats and stand on different backing files; what the \
            guest \
            would see is compared.\nExit codes: 0 the same, 1 different, 2 an image could not be \
            opened, \
            3 its tables could not be read, 4 its data could not be read.",
    options: OPTIONS,
    examples: &["disk.qcow2 disk.img", "-s -f raw -F qcow2 disk.img disk.qcow2"],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    images: [ImageName; 2],
    strict: bool,
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut common = Common::default();
    let mut strict = false;
    let (mut first_format, mut second_format, mut cache) = (None, None, None);
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::FirstFormat => first_format = Some(given.text()),
            Flag::SecondFormat => second_format = Some(given.text()),
            Flag::Strict => strict = true,
            Flag::SourceCache => cache = Some(given.text()),
            _ => common.take(&given)?,
        }
    }
    let operands = parser.operands();
    let [first, second] = operands.as_slice() else {
        return Err(Failure::usage_with_help("Expecting two image file names").into());
    };
    if let Some(cache) = cache {
        option::source_cache(&cache).map_err(unopened)?;
    }
    let image = |operand: &OsString, format: Option<String>| {
        let format = format.as_deref();
        option::exclude_format_with_image_opts(common.image_opts, format)?;
        ImageName::parse(operand, format, common.image_opts)
    };
    let first = image(first, first_format).map_err(unopened)?;
    let second = image(second, second_format).map_err(unopened)?;
    Ok(Options { common, images: [first, second], strict })
}

/// Here exit code 1 means "different".
fn unopened(failure: Failure) -> Failure {
    failure.with_exit(EXIT_OPEN_FAILED)
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments)?;
    let open = |image| disk::open(image, &options.common, None).map_err(unopened);
    let [first, second] = [open(&options.images[0])?, open(&options.images[1])?];
    let printer = ProgressPrinter::start(
        ProgressOptions { mode: options.common.progress(), operation: "compare", step: 2.0 },
        Arc::clone(&session.output),
    );
    let strictness = if options.strict { Strictness::Allocation } else { Strictness::Content };
    let result = cowl_tools::compare([&first, &second], strictness, &printer);
    if let Ok(comparison) = &result {
        if matches!(comparison, Comparison::Same { .. }) {
            printer.complete();
        }
        if !options.common.quiet {
            session.output.text(&human(comparison));
        }
    }
    // The result stands on the line of the progress, which ends behind it, as in qemu-img.
    printer.end();
    let comparison = result.map_err(|error| unread(&error, &options.images))?;
    Ok(exit_code(&comparison))
}

fn unread(error: &CompareError, images: &[ImageName; 2]) -> Failure {
    let name = |disk: usize| images[disk].display();
    let (disk, exit, message) = match error {
        CompareError::Status { disk, source } => {
            let (name, reason) = (name(*disk), disk::words(source));
            let message = format!("Sector allocation test failed for {name}: {reason}");
            (*disk, EXIT_STATUS_FAILED, message)
        }
        CompareError::Read { disk, at, source } => {
            let (name, reason) = (name(*disk), disk::words(source));
            let message = format!("Error while reading offset {at} of {name}: {reason}");
            (*disk, EXIT_READ_FAILED, message)
        }
    };
    Failure::new(Kind::Io, message).with_exit(exit).about(&images[disk].path)
}

fn exit_code(comparison: &Comparison) -> u8 {
    match comparison {
        Comparison::Same { .. } => 0,
        Comparison::Size | Comparison::Allocation { .. } | Comparison::Content { .. } => {
            EXIT_DIFFERENT
        }
    }
}

fn human(comparison: &Comparison) -> String {
    const SIZES_DIFFER: &str = "Warning: Image size mismatch!\n";
    match comparison {
        Comparison::Same { sizes_differ } => {
            let warning = if *sizes_differ { SIZES_DIFFER } else { "" };
            format!("{warning}Images are identical.\n")
        }
        Comparison::Size => "Strict mode: Image size mismatch!\n".into(),
        Comparison::Allocation { at } => {
            format!("Strict mode: Offset {at} block status mismatch!\n")
        }
        Comparison::Content { at, behind_shorter } => {
            let warning = if *behind_shorter { SIZES_DIFFER } else { "" };
            format!("{warning}Content mismatch at offset {at}!\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{exit_code, human, parse};
    use crate::failure::Stop;
    use cowl_tools::Comparison;
    use std::ffi::OsString;

    #[test]
    fn results_are_worded_as_qemu_img_words_them() {
        for (comparison, text, code) in [
            (Comparison::Same { sizes_differ: false }, "Images are identical.\n", 0),
            (
                Comparison::Same { sizes_differ: true },
                "Warning: Image size mismatch!\nImages are identical.\n",
                0,
            ),
            (Comparison::Size, "Strict mode: Image size mismatch!\n", 1),
            (
                Comparison::Allocation { at: 512 },
                "Strict mode: Offset 512 block status mismatch!\n",
                1,
            ),
            (
                Comparison::Content { at: 512, behind_shorter: false },
                "Content mismatch at offset 512!\n",
                1,
            ),
            (
                Comparison::Content { at: 512, behind_shorter: true },
                "Warning: Image size mismatch!\nContent mismatch at offset 512!\n",
                1,
            ),
        ] {
            assert_eq!((human(&comparison).as_str(), exit_code(&comparison)), (text, code));
        }
    }

    #[test]
    fn a_wrong_command_line_is_1_and_an_image_that_cannot_be_opened_is_2() {
        let failure = |arguments: &[&str]| {
            let arguments = arguments.iter().map(OsString::from).collect();
            let Err(Stop::Failed(failure)) = parse(arguments) else { panic!() };
            (failure.message, failure.exit)
        };
        assert_eq!(failure(&["a"]), ("Expecting two image file names".into(), 1));
        assert_eq!(failure(&["-T", "x", "a", "b"]), ("Invalid source cache option: x".into(), 2));
        assert_eq!(
            failure(&["-f", "nope", "a", "b"]),
            ("Could not open 'a': Unknown driver 'nope'".into(), 2)
        );
    }
}
