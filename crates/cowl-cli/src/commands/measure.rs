//! `measure`: how large an image file will be.

use std::ffi::OsString;

use cowl_format::ByteCount;
use cowl_qcow2::Preallocation;
use cowl_tools::{
    BlockStatus, MeasureError, MeasureReport, MeasureSource, MeasureTarget, Qcow2Target,
    TargetError,
};

use crate::commands::Verb;
use crate::creation_options::{self, CreationOptions};
use crate::disk;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::json;
use crate::number;
use crate::option::{self, Common, Flag, OutputFormat};
use crate::session::Session;
use crate::snapshot_name::SnapshotName;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::short(
        Flag::TargetFormat,
        'O',
        &["target-format"],
        Takes::Value("FMT"),
        "Format of the new image (raw).",
    ),
    option::FORMAT,
    option::IMAGE_OPTS,
    option::short(
        Flag::Options,
        'o',
        &["options"],
        Takes::Value("OPTIONS"),
        "Options of the new image, as for create.",
    ),
    option::short(
        Flag::Snapshot,
        'l',
        &["snapshot"],
        Takes::Value("SNAPSHOT"),
        "Measure this internal snapshot of the image.",
    ),
    option::OBJECT,
    option::OUTPUT,
    option::short(
        Flag::Size,
        's',
        &["size"],
        Takes::Value("SIZE"),
        "Measure an empty disk of this size instead of an image.",
    ),
    option::FORCE_SHARE,
    option::UNTRUSTED,
    option::FOLLOW_NBD,
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "measure",
    summary: "Calculate the size of a new image",
    usage: "[OPTIONS] (--size SIZE | IMAGE)",
    about: "The required size holds what the source has now; the fully allocated size holds \
            everything a \
            guest can ever write.",
    options: OPTIONS,
    examples: &["-O qcow2 --size 100G", "-O qcow2 -o cluster_size=2M disk.img"],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    source: Source,
    target: MeasureTarget,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    Size(u64),
    Image { name: ImageName, snapshot: Option<SnapshotName> },
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut common = Common::default();
    let (mut target, mut size, mut snapshot) = (None, None, None);
    let mut lists = Vec::new();
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        match given.id {
            Flag::TargetFormat => target = Some(given.text()),
            Flag::Options => lists.push(given.text()),
            Flag::Snapshot => snapshot = Some(SnapshotName::parse(&given.text())?),
            Flag::Size => size = Some(number::size("image size", &given.text())?),
            _ => common.take(&given)?,
        }
    }
    let list = creation_options::join(&lists).map_err(Failure::usage)?;
    let operands = parser.operands();
    let source = parse_source(&common, &operands, size, snapshot)?;
    let format = target.as_deref().unwrap_or("raw");
    if !["raw", "qcow2"].contains(&format) {
        return Err(Failure::usage(format!("Unknown file format '{format}'")).into());
    }
    let creation = CreationOptions::parse(format, &list).map_err(|message| {
        Failure::usage(message).within(format!("Invalid options for file format '{format}'"))
    })?;
    let target = match format {
        "qcow2" => MeasureTarget::Qcow2(qcow2_target(&creation).map_err(Failure::usage)?),
        _ => MeasureTarget::Raw,
    };
    Ok(Options { common, source, target })
}

fn parse_source(
    common: &Common,
    operands: &[OsString],
    size: Option<u64>,
    snapshot: Option<SnapshotName>,
) -> Result<Source, Failure> {
    let format = common.format.as_deref();
    match (operands, size) {
        ([_, _, ..], _) => Err(Failure::usage("At most one filename argument is allowed.")),
        ([], _) if common.image_opts || format.is_some() || snapshot.is_some() => {
            Err(Failure::usage("--image-opts, -f, and -l require a filename argument."))
        }
        ([], None) => Err(Failure::usage("Either --size N or one filename must be specified.")),
        ([_], Some(_)) => Err(Failure::usage("--size N cannot be used together with a filename.")),
        ([], Some(size)) => Ok(Source::Size(size)),
        ([operand], None) => {
            option::exclude_format_with_image_opts(common.image_opts, format)?;
            let name = ImageName::parse(operand, format, common.image_opts)?;
            Ok(Source::Image { name, snapshot })
        }
    }
}

fn qcow2_target(options: &CreationOptions) -> Result<Qcow2Target, String> {
    let mut target = Qcow2Target {
        cluster_size: options.number("cluster_size").unwrap_or(65536),
        refcount_bits: options.number("refcount_bits").unwrap_or(16),
        extended_l2: options.switch("extended_l2").unwrap_or(false),
        version_3: true,
        preallocation: Preallocation::Off,
        has_backing: options.text("backing_file").is_some(),
    };
    // What is wrong with the clusters is told before what is wrong with the version.
    match target.validate() {
        Err(error @ (TargetError::ClusterSize | TargetError::ClusterSizeForExtendedL2)) => {
            return Err(error.to_string());
        }
        _ => target.version_3 = is_version_3(options.text("compat"))?,
    }
    target.validate().map_err(|error| error.to_string())?;
    target.preallocation = preallocation(options.text("preallocation"))?;
    if options.text("encrypt.format") == Some("luks") {
        return Err("Encryption is not available in this version".into());
    }
    Ok(target)
}

fn is_version_3(compat: Option<&str>) -> Result<bool, String> {
    match compat {
        None | Some("1.1" | "v3") => Ok(true),
        Some("0.10" | "v2") => Ok(false),
        Some(other) => Err(format!("Invalid compatibility level: '{other}'")),
    }
}

fn preallocation(value: Option<&str>) -> Result<Preallocation, String> {
    match value {
        None | Some("off") => Ok(Preallocation::Off),
        Some("metadata") => Ok(Preallocation::Metadata),
        Some("falloc") => Ok(Preallocation::Falloc),
        Some("full") => Ok(Preallocation::Full),
        Some(other) => Err(format!("invalid parameter value: {other}")),
    }
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments)?;
    let report = measure(&options)?;
    session.output.text(&match options.common.output {
        OutputFormat::Human => human(&report),
        OutputFormat::Json => json::to_text(&report),
    });
    Ok(0)
}

fn measure(options: &Options) -> Result<MeasureReport, Failure> {
    match &options.source {
        Source::Size(size) => {
            let source: MeasureSource<std::iter::Empty<Result<BlockStatus, TargetError>>> =
                MeasureSource::Size(ByteCount::new(*size));
            let report = cowl_tools::measure(options.target, source);
            report.map_err(|error| Failure::usage(error.to_string()))
        }
        Source::Image { name, snapshot } => {
            let disk = disk::open(name, &options.common, snapshot.as_ref())?;
            let report = cowl_tools::measure_image(options.target, &disk);
            report.map_err(|error| match error {
                MeasureError::Target(error) => Failure::usage(error.to_string()),
                MeasureError::Source(error) => {
                    let message = format!("Unable to get block status: {}", disk::words(&error));
                    Failure::new(Kind::Io, message).about(&name.path)
                }
            })
        }
    }
}

fn human(report: &MeasureReport) -> String {
    let mut text = format!(
        "required size: {}\nfully allocated size: {}\n",
        report.required, report.fully_allocated
    );
    if let Some(bitmaps) = report.bitmaps {
        text.push_str(&format!("bitmaps size: {bitmaps}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{human, parse};
    use crate::failure::Stop;
    use cowl_tools::MeasureReport;
    use std::ffi::OsString;

    fn message(arguments: &[&str]) -> String {
        let arguments = arguments.iter().map(OsString::from).collect();
        let Err(Stop::Failed(failure)) = parse(arguments) else { panic!() };
        failure.message
    }

    #[test]
    fn a_size_and_an_image_exclude_each_other() {
        let one_of_both = "Either --size N or one filename must be specified.";
        assert_eq!(message(&[]), one_of_both);
        assert_eq!(
            message(&["--size=1G", "a"]),
            "--size N cannot be used together with a filename."
        );
        assert_eq!(message(&["a", "b"]), "At most one filename argument is allowed.");
        assert_eq!(
            message(&["--size=1G", "-l", "x"]),
            "--image-opts, -f, and -l require a filename argument."
        );
    }

    #[test]
    fn targets_that_cannot_be_are_refused() {
        let target = |options| message(&["--size=1G", "-O", "qcow2", "-o", options]);
        assert_eq!(target("compat=0.9"), "Invalid compatibility level: '0.9'");
        assert_eq!(target("preallocation=foo"), "invalid parameter value: foo");
        assert!(target("compat=0.10,refcount_bits=8").contains("(use compat=1.1 or greater)"));
        assert!(target("encrypt.format=luks").contains("not available"));
        assert_eq!(message(&["--size=1G", "-O", "nope"]), "Unknown file format 'nope'");
    }

    #[test]
    fn bitmaps_are_mentioned_where_they_can_be() {
        let report = MeasureReport { bitmaps: None, required: 1, fully_allocated: 2 };
        assert_eq!(human(&report), "required size: 1\nfully allocated size: 2\n");
        let report = MeasureReport { bitmaps: Some(0), ..report };
        assert!(human(&report).ends_with("bitmaps size: 0\n"));
    }
}
