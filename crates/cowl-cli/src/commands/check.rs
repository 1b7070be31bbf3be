//! `check`: whether the tables of an image agree with each other.

use std::ffi::OsString;
use std::sync::Arc;

use cowl::{CheckProgress, CheckReport, Error, Refusal};
use cowl_format::ByteCount;
use cowl_tools::{CheckSummary, HostFiles, Progress};

use crate::commands::Verb;
use crate::disk;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::json;
use crate::option::{self, Common, Flag, OutputFormat};
use crate::progress::{ProgressOptions, ProgressPrinter};
use crate::session::Session;
use crate::text;

const EXIT_CHECK_FAILED: u8 = 1;
const EXIT_CORRUPT: u8 = 2;
const EXIT_LEAKS: u8 = 3;
const EXIT_NO_CHECK: u8 = 63;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::QUIET,
    option::FORMAT,
    option::IMAGE_OPTS,
    option::SOURCE_CACHE,
    option::FORCE_SHARE,
    option::OUTPUT,
    option::short(
        Flag::Repair,
        'r',
        &["repair"],
        Takes::Value("leaks|all"),
        "Repair leaks, or everything. Not available in this version.",
    ),
    option::OBJECT,
    option::PROGRESS,
    option::UNTRUSTED,
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "check",
    summary: "Check that the tables of an image are sound",
    usage: "[OPTIONS] IMAGE",
    about: "Exit codes: 0 all is well, 1 the check could not be completed, 2 the image is corrupt, \
            3 \
            only leaked clusters were found, 63 the format cannot be checked.",
    options: OPTIONS,
    examples: &["disk.qcow2", "--output=json disk.qcow2"],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    image: ImageName,
    repair: bool,
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut common = Common::default();
    let mut repair = false;
    let mut cache = None;
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::Repair => repair = parse_repair(&given.text())?,
            Flag::SourceCache => cache = Some(given.text()),
            _ => common.take(&given)?,
        }
    }
    let operands = parser.operands();
    let [operand] = operands.as_slice() else {
        return Err(Failure::usage_with_help("Expecting one image file name").into());
    };
    if let Some(cache) = cache {
        option::source_cache(&cache)?;
    }
    let format = common.format.as_deref();
    option::exclude_format_with_image_opts(common.image_opts, format)?;
    let image = ImageName::parse(operand, format, common.image_opts)?;
    Ok(Options { common, image, repair })
}

fn parse_repair(value: &str) -> Result<bool, Failure> {
    match value {
        "leaks" | "all" => Ok(true),
        _ => Err(Failure::usage_with_help(format!(
            "--repair (-r) expects 'leaks' or 'all' not '{value}'"
        ))),
    }
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments)?;
    if options.repair {
        return Err(option::not_available("repair (-r)").into());
    }
    let report = check(&options, session)?;
    for finding in &report.findings {
        session.output.error_text(&format!("{}\n", finding.text));
    }
    if 0 < report.findings_not_listed {
        session.warn(&format!("{} more findings are not listed", report.findings_not_listed));
    }
    let mut summary = CheckSummary::new(options.image.display(), &report);
    if !session.is_drop_in() {
        summary.memory_bytes = Some(report.memory_bytes);
    }
    if !options.common.quiet {
        session.output.text(&match options.common.output {
            OutputFormat::Human => human(&summary),
            OutputFormat::Json => json::to_text(&summary),
        });
    }
    if 0 < summary.check_errors {
        return Err(Failure::new(Kind::Format, "Check failed").with_exit(EXIT_CHECK_FAILED).into());
    }
    Ok(exit_code(&summary))
}

fn check(options: &Options, session: &Session) -> Result<CheckReport, Failure> {
    let image = &options.image;
    let pool = disk::worker_pool()?;
    let printer = ProgressPrinter::start(
        ProgressOptions { mode: options.common.progress(), operation: "check", step: 1.0 },
        Arc::clone(&session.output),
    );
    let (format, sharing) = (disk::format(image), disk::sharing(&options.common));
    let report =
        cowl::check_with(&HostFiles, &image.path, format, sharing, Some(pool), &Tables(&printer));
    if report.is_ok() {
        printer.complete();
    }
    printer.end();
    report.map_err(|error| match error {
        Error::Refused { refusal: Refusal::NotInRaw { .. }, .. } => {
            let message = "This image format does not support checks";
            Failure::new(Kind::NotAvailable, message).with_exit(EXIT_NO_CHECK)
        }
        error => disk::failure(image, &error),
    })
}

/// The unit of a check is the table; each counts as one byte.
struct Tables<'a>(&'a ProgressPrinter);

impl CheckProgress for Tables<'_> {
    fn tables(&self, _: u64, total: u64) {
        self.0.total(ByteCount::new(total));
        self.0.advance(ByteCount::new(1));
    }
}

fn exit_code(report: &CheckSummary) -> u8 {
    match report {
        CheckSummary { corruptions: 1.., .. } => EXIT_CORRUPT,
        CheckSummary { leaks: 1.., .. } => EXIT_LEAKS,
        _ => 0,
    }
}

fn human(report: &CheckSummary) -> String {
    let mut text = String::new();
    if report.corruptions == 0 && report.leaks == 0 && report.check_errors == 0 {
        text.push_str("No errors were found on the image.\n");
    }
    if 0 < report.corruptions {
        text.push_str(&format!(
            "\n{} errors were found on the image.\nData may be corrupted, or further writes to the \
             image may corrupt it.\n",
            report.corruptions
        ));
    }
    if 0 < report.leaks {
        text.push_str(&format!(
            "\n{} leaked clusters were found on the image.\nThis means waste of disk space, but no \
             harm to data.\n",
            report.leaks
        ));
    }
    if 0 < report.check_errors {
        text.push_str(&format!(
            "\n{} internal errors have occurred during the check.\n",
            report.check_errors
        ));
    }
    if 0 < report.total_clusters && 0 < report.allocated_clusters {
        text.push_str(&format!(
            "{}/{} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters\n",
            report.allocated_clusters,
            report.total_clusters,
            percent(report.allocated_clusters, report.total_clusters),
            percent(report.fragmented_clusters, report.allocated_clusters),
            percent(report.compressed_clusters, report.allocated_clusters)
        ));
    }
    if 0 < report.image_end_offset {
        text.push_str(&format!("Image end offset: {}\n", report.image_end_offset));
    }
    if let Some(bytes) = report.memory_bytes {
        text.push_str(&format!("Memory for counting: {}\n", text::size(bytes)));
    }
    text
}

#[expect(clippy::cast_precision_loss, reason = "two decimals are printed")]
fn percent(part: u64, whole: u64) -> f64 {
    part as f64 * 100.0 / whole as f64
}

#[cfg(test)]
mod tests {
    use super::{exit_code, human, parse};
    use crate::failure::Stop;
    use cowl_tools::CheckSummary;
    use std::ffi::OsString;

    fn clean() -> CheckSummary {
        CheckSummary {
            total_clusters: 16,
            allocated_clusters: 3,
            image_end_offset: 524_288,
            ..CheckSummary::default()
        }
    }

    #[test]
    fn a_sound_image_is_told_so() {
        let expected = "No errors were found on the image.\n\
                        3/16 = 18.75% allocated, 0.00% fragmented, 0.00% compressed clusters\n\
                        Image end offset: 524288\n";
        assert_eq!(human(&clean()), expected);
        let with_memory = CheckSummary { memory_bytes: Some(2 << 20), ..clean() };
        assert_eq!(human(&with_memory), format!("{expected}Memory for counting: 2 MiB\n"));
        assert_eq!(human(&CheckSummary::default()), "No errors were found on the image.\n");
    }

    #[test]
    fn findings_are_counted_in_paragraphs() {
        let report =
            CheckSummary { corruptions: 1, leaks: 2, check_errors: 3, ..Default::default() };
        let expected = "\n1 errors were found on the image.\nData may be corrupted, or further \
                        writes to the image may corrupt it.\n\n2 leaked clusters were found on the \
                        image.\nThis means waste of disk space, but no harm to data.\n\n3 internal \
                        errors have occurred during the check.\n";
        assert_eq!(human(&report), expected);
    }

    #[test]
    fn the_exit_code_tells_the_worst_finding() {
        let code = |corruptions, leaks| exit_code(&CheckSummary { corruptions, leaks, ..clean() });
        assert_eq!([code(0, 0), code(0, 1), code(1, 0), code(1, 1)], [0, 3, 2, 2]);
    }

    #[test]
    fn options_are_validated_before_the_image_is_touched() {
        let message = |arguments: &[&str]| {
            let arguments = arguments.iter().map(OsString::from).collect();
            let Err(Stop::Failed(failure)) = parse(arguments) else { panic!() };
            failure.message
        };
        assert_eq!(
            message(&["-r", "foo", "a"]),
            "--repair (-r) expects 'leaks' or 'all' not 'foo'"
        );
        assert_eq!(message(&["-T", "foo", "a"]), "Invalid source cache option: foo");
        assert_eq!(message(&["-T", "foo"]), "Expecting one image file name");
    }
}
