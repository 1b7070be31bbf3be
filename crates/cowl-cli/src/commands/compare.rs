//! `compare`: whether two images show the same disk.

use std::ffi::OsString;

use cowl_tools::{CompareReport, SizeMismatch};

use crate::commands::Verb;
use crate::failure::{Failure, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::option::{self, Common, Flag};
use crate::session::Session;

const EXIT_DIFFERENT: u8 = 1;
const EXIT_OPEN_FAILED: u8 = 2;

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
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "compare",
    summary: "Tell whether two images hold the same content",
    usage: "[OPTIONS] IMAGE1 IMAGE2",
    about: "The images may have different formats and stand on different backing files; what the guest \
            would see is compared.\nExit codes: 0 the same, 1 different, 2 an image could not be opened, \
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
    let report = compare(&options)?;
    if !options.common.quiet {
        session.output.text(&human(&report));
    }
    Ok(exit_code(&report))
}

fn compare(_options: &Options) -> Result<CompareReport, Stop> {
    Err(option::not_available("'compare'").into())
}

fn exit_code(report: &CompareReport) -> u8 {
    match report {
        CompareReport { size: Some(SizeMismatch::Strict), .. } => EXIT_DIFFERENT,
        CompareReport { mismatch_at: Some(_), .. } => EXIT_DIFFERENT,
        _ => 0,
    }
}

fn human(report: &CompareReport) -> String {
    let warning = match report.size {
        Some(SizeMismatch::Strict) => return "Strict mode: Image size mismatch!\n".into(),
        Some(SizeMismatch::Tolerated) => "Warning: Image size mismatch!\n",
        None => "",
    };
    match report.mismatch_at {
        Some(offset) => format!("{warning}Content mismatch at offset {offset}!\n"),
        None => format!("{warning}Images are identical.\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::{exit_code, human, parse};
    use crate::failure::Stop;
    use cowl_tools::{CompareReport, SizeMismatch};
    use std::ffi::OsString;

    #[test]
    fn results_are_worded_as_qemu_img_words_them() {
        for (size, mismatch_at, text, code) in [
            (None, None, "Images are identical.\n", 0),
            (None, Some(512), "Content mismatch at offset 512!\n", 1),
            (
                Some(SizeMismatch::Tolerated),
                None,
                "Warning: Image size mismatch!\nImages are identical.\n",
                0,
            ),
            (Some(SizeMismatch::Strict), None, "Strict mode: Image size mismatch!\n", 1),
        ] {
            let report = CompareReport { size, mismatch_at };
            assert_eq!((human(&report).as_str(), exit_code(&report)), (text, code));
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
