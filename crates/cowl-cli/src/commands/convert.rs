//! `convert`: copy images into a new one, in another format or with other options.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowl::{BlockDevice, Caching};
use cowl_format::ByteCount;
use cowl_storage::{Durability, Operation};
use cowl_tools::Disk;
use cowl_tools::{
    ConvertError, ConvertOptions, ConvertReport, ExistingTarget, TargetImage, ZeroDetection,
};

use crate::cache_mode;
use crate::commands::Verb;
use crate::creation_options::{self, CreationOptions};
use crate::disk::{self, system_words};
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Given, Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::new_image;
use crate::number;
use crate::option::{self, Common, Flag, extension, long, short};
use crate::option_list::{self, OptionList};
use crate::progress::{ProgressOptions, ProgressPrinter};
use crate::session::Session;
use crate::snapshot_name::SnapshotName;

const SECTOR_BYTES: u64 = 512;
const SPARSE_SIZE_MAX: u64 = 16 << 20;
const PARALLEL_MAX: u64 = 16;
const SPARSE_SIZE_DEFAULT: u64 = 4096;

/// Format names other than the short ones come in the order in which qemu-img knows them, which the
/// message about an ambiguous abbreviation shows.
const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    long(
        Flag::ImageOpts,
        &["source-image-opts", "image-opts"],
        Takes::Nothing,
        "Source names are lists such as driver=qcow2,file.filename=NAME.",
    ),
    short(
        Flag::Format,
        'f',
        &["source-format"],
        Takes::Value("FMT"),
        "Format of the sources. Without it the format is guessed from the first bytes.",
    ),
    short(
        Flag::SourceCache,
        'T',
        &["source-cache"],
        Takes::Value("CACHE"),
        "How sources are cached (writeback).",
    ),
    short(
        Flag::Snapshot,
        'l',
        &["snapshot"],
        Takes::Value("SNAPSHOT"),
        "Copy this internal snapshot of the source.",
    ),
    short(
        Flag::SparseSize,
        'S',
        &["sparse-size"],
        Takes::Value("SIZE"),
        "Shortest run of zeros that is left out of the target (4k); 0 writes everything.",
    ),
    long(
        Flag::Salvage,
        &["salvage"],
        Takes::Nothing,
        "Copy zeros where a source cannot be read, and go on.",
    ),
    long(
        Flag::TargetImageOpts,
        &["target-image-opts"],
        Takes::Nothing,
        "The target name is a list such as driver=qcow2,file.filename=NAME; requires -n.",
    ),
    long(
        Flag::TargetIsZero,
        &["target-is-zero"],
        Takes::Nothing,
        "The existing target reads as zeros already; requires -n.",
    ),
    option::OBJECT,
    short(
        Flag::TargetFormat,
        'O',
        &["output-format"],
        Takes::Value("FMT"),
        "Format of the target (raw).",
    ),
    short(
        Flag::Options,
        'o',
        &["options"],
        Takes::Value("OPTIONS"),
        "Options of the target's format, as key=value,...; -o help lists them. May be repeated.",
    ),
    short(
        Flag::TargetCache,
        't',
        &["output-cache"],
        Takes::Value("CACHE"),
        "How the target is cached (whichever way is faster; unsafe: not made durable).",
    ),
    short(
        Flag::OutOfOrder,
        'W',
        &["oob-writes"],
        Takes::Nothing,
        "Write in any order, which can be faster.",
    ),
    short(
        Flag::Backing,
        'B',
        &["backing"],
        Takes::Value("IMAGE"),
        "Make the target an overlay of this image and write only what differs.",
    ),
    short(
        Flag::BackingFormat,
        'F',
        &["backing-format"],
        Takes::Value("FMT"),
        "Format of that image; required with -B.",
    ),
    long(Flag::Bitmaps, &["bitmaps"], Takes::Nothing, "Copy persistent bitmaps too."),
    long(
        Flag::SkipBrokenBitmaps,
        &["skip-broken-bitmaps"],
        Takes::Nothing,
        "With --bitmaps: leave out inconsistent ones instead of failing.",
    ),
    short(Flag::Compress, 'c', &[], Takes::Nothing, "Compress the target (qcow2)."),
    short(
        Flag::CopyRange,
        'C',
        &["copy-range-offloading"],
        Takes::Nothing,
        "Let the host copy, where it can.",
    ),
    short(Flag::NoCreate, 'n', &[], Takes::Nothing, "Write into a target that exists."),
    option::FORCE_SHARE,
    short(Flag::Rate, 'r', &["rate"], Takes::Value("RATE"), "Copy at most so many bytes a second."),
    short(
        Flag::Parallel,
        'm',
        &["parallel"],
        Takes::Value("N"),
        "Requests at a time, 1 to 16 (8).",
    ),
    Opt { long: &[], ..short(Flag::Progress, 'p', &[], Takes::Nothing, "Show progress.") },
    option::PROGRESS,
    option::QUIET,
    extension(long(
        Flag::Verify,
        &["verify"],
        Takes::Nothing,
        "Read the target back and compare it with the source.",
    )),
    extension(long(Flag::Digest, &["digest"], Takes::Nothing, "Print the SHA-256 of the content.")),
    option::UNTRUSTED,
    option::FOLLOW_NBD,
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "convert",
    summary: "Copy an image into another format",
    usage: "[OPTIONS] SOURCE... TARGET",
    about: "Several sources are joined one after the other. The target appears under its name when \
            it is \
            complete and durable; a copy that fails leaves nothing behind that looks finished.",
    options: OPTIONS,
    examples: &[
        "-p -O qcow2 disk.img disk.qcow2",
        "-c -O qcow2 -o compression_type=zstd disk.qcow2 small.qcow2",
        "-O raw --digest --verify disk.qcow2 disk.img",
    ],
    run,
};

/// What was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Options {
    common: Common,
    sources: Vec<ImageName>,
    target: OsString,
    target_format: Option<String>,
    target_image_opts: bool,
    target_is_zero: bool,
    list: OptionList,
    backing: Option<String>,
    backing_format: Option<String>,
    snapshot: Option<SnapshotName>,
    sparse_size: Option<u64>,
    rate: Option<u64>,
    parallel: Option<u64>,
    target_cache: Option<String>,
    source_cache: Option<String>,
    compress: bool,
    copy_range: bool,
    no_create: bool,
    out_of_order: bool,
    salvage: bool,
    bitmaps: bool,
    skip_broken_bitmaps: bool,
    verify: bool,
    digest: bool,
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut options = Options::default();
    let mut lists: Vec<String> = Vec::new();
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        if given.id == Flag::Options {
            lists.push(given.text());
            options.list = creation_options::join(&lists).map_err(Failure::usage)?;
        } else {
            options.take(&given)?;
        }
    }
    options.check_combinations(&lists)?;
    let mut operands = parser.operands();
    let target = if operands.len() < 2 { None } else { operands.pop() };
    if lists.iter().any(|list| option_list::asks_for_help(list)) {
        let format = options.target_format.as_deref().unwrap_or("raw");
        return Err(Stop::Answer(creation_options::help(format)));
    }
    options.target = target.ok_or_else(|| Failure::usage("Must specify image file name"))?;
    options.check_values(operands.len())?;
    let format = options.common.format.as_deref();
    for operand in &operands {
        let name = ImageName::parse(operand, format, options.common.image_opts)?;
        options.sources.push(name);
    }
    Ok(options)
}

impl Options {
    fn take(&mut self, given: &Given<Flag>) -> Result<(), Stop> {
        match given.id {
            Flag::TargetFormat => self.target_format = Some(given.text()),
            Flag::TargetImageOpts => self.target_image_opts = true,
            Flag::TargetIsZero => self.target_is_zero = true,
            Flag::Backing => self.backing = Some(given.text()),
            Flag::BackingFormat => self.backing_format = Some(given.text()),
            Flag::Snapshot => self.snapshot = Some(SnapshotName::parse(&given.text())?),
            Flag::SparseSize => self.sparse_size = Some(parse_sparse_size(&given.text())?),
            Flag::Rate => self.rate = Some(number::size("rate limit", &given.text())?),
            Flag::Parallel => {
                let what = "number of coroutines";
                self.parallel = Some(number::within(what, &given.text(), 1..=PARALLEL_MAX)?);
            }
            Flag::TargetCache => self.target_cache = Some(given.text()),
            Flag::SourceCache => self.source_cache = Some(given.text()),
            Flag::Compress => self.compress = true,
            Flag::CopyRange => self.copy_range = true,
            Flag::NoCreate => self.no_create = true,
            Flag::OutOfOrder => self.out_of_order = true,
            Flag::Salvage => self.salvage = true,
            Flag::Bitmaps => self.bitmaps = true,
            Flag::SkipBrokenBitmaps => self.skip_broken_bitmaps = true,
            Flag::Verify => self.verify = true,
            Flag::Digest => self.digest = true,
            _ => self.common.take(given)?,
        }
        Ok(())
    }

    /// Options that exclude or require each other, in the order in which qemu-img complains.
    fn check_combinations(&self, lists: &[String]) -> Result<(), Failure> {
        let rules = [
            (
                self.skip_broken_bitmaps && !self.bitmaps,
                "Use of --skip-broken-bitmaps requires --bitmaps",
            ),
            (self.compress && self.copy_range, "Cannot enable copy offloading when -c is used"),
            (
                self.sparse_size.is_some() && self.copy_range,
                "Cannot enable copy offloading when -S is used",
            ),
            (self.salvage && self.copy_range, "Cannot use copy offloading in salvaging mode"),
            (
                self.target_image_opts && !self.no_create,
                "--target-image-opts requires use of -n flag",
            ),
            (self.no_create && !lists.is_empty(), "-o has no effect when skipping image creation"),
            (self.target_is_zero && !self.no_create, "--target-is-zero requires use of -n flag"),
            (
                self.target_image_opts && self.target_format.is_some(),
                "--image-opts and --format are mutually exclusive",
            ),
        ];
        match rules.iter().find(|(broken, _)| *broken) {
            Some((_, message)) => Err(Failure::usage(*message)),
            None => Ok(()),
        }
    }

    fn check_values(&self, source_count: usize) -> Result<(), Failure> {
        if let Some(cache) = &self.source_cache {
            option::source_cache(cache)?;
        }
        if self.snapshot.is_some() && 1 < source_count {
            return Err(Failure::usage("No support for concatenating multiple snapshot"));
        }
        if let Some(cache) = &self.target_cache {
            let message = format!("Invalid cache option: {cache}");
            cache_mode::validate(cache).map_err(|_| Failure::usage(message))?;
        }
        let format = self.common.format.as_deref();
        option::exclude_format_with_image_opts(self.common.image_opts, format)
    }
}

fn parse_sparse_size(text: &str) -> Result<u64, Failure> {
    let size = number::size("buffer size for sparse output", text)?;
    if size % SECTOR_BYTES != 0 || SPARSE_SIZE_MAX < size {
        return Err(Failure::usage(format!(
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up \
             to \
             {SPARSE_SIZE_MAX}. Select 0 to disable sparse detection (fully allocates output)."
        )));
    }
    Ok(size)
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments)?;
    let caching = match options.source_cache.as_deref().map(cache_mode::parse) {
        Some(Ok(mode)) if mode.direct => Caching::Direct,
        _ => Caching::PageCache,
    };
    let open = |name: &ImageName| {
        disk::open_cached(name, &options.common, options.snapshot.as_ref(), caching)
    };
    let sources: Vec<Disk> = options.sources.iter().map(open).collect::<Result<_, _>>()?;
    let target = Target::new(&options, &sources)?;
    let printer = ProgressPrinter::start(
        ProgressOptions { mode: options.common.progress(), operation: "convert", step: 1.0 },
        Arc::clone(&session.output),
    );
    let how = how(&options, &target)?;
    let result = cowl_tools::convert(&sources, &target.path, &how, &printer);
    if result.is_ok() {
        printer.complete();
    }
    printer.end();
    let report = result.map_err(|error| failure(&error, &target))?;
    tell(&report, &options, session);
    Ok(0)
}

fn tell(report: &ConvertReport, options: &Options, session: &Session) {
    for part in &report.salvaged {
        session.warn(&format!(
            "error while reading offset {}: {} ({} bytes are zeros in the target)",
            part.at, part.reason, part.length
        ));
    }
    if let Some(digest) = report.digest {
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        // As sha256sum prints it, so that the line can be checked later.
        let target = Path::new(&options.target).display();
        session.output.text(&format!("{hex}  {target}\n"));
    }
}

/// Where the copy goes.
struct Target {
    path: PathBuf,
    format: String,
    image: TargetImage,
    has_backing: bool,
    /// Whether it must exist already.
    exists: bool,
}

impl Target {
    fn new(options: &Options, sources: &[Disk]) -> Result<Self, Failure> {
        let (path, format) = match options.target_image_opts {
            false => {
                let format = options.target_format.clone().unwrap_or("raw".into());
                (Self::path(options, &format)?, format)
            }
            true => {
                let name = ImageName::parse(&options.target, None, true)?;
                let format = name.format.clone().unwrap_or("raw".into());
                (name.path, format)
            }
        };
        if !["raw", "qcow2"].contains(&format.as_str()) {
            return Err(Failure::usage(format!("Unknown file format '{format}'")));
        }
        let given = creation(options, &format).map_err(Failure::usage)?;
        check_backing(options, &given).map_err(Failure::usage)?;
        check_compression(options, &format, &given).map_err(Failure::usage)?;
        check_backing_opens(options, &path, &given)?;
        if options.bitmaps {
            return Err(option::not_available("copying bitmaps (--bitmaps)"));
        }
        let sizes = sources.iter().map(|disk| disk.size().get().next_multiple_of(SECTOR_BYTES));
        // A size among the options is ignored: a copy is as large as what is copied.
        let size = sizes.sum();
        let has_backing = given.text("backing_file").is_some();
        let image = image(&given, &format, size).map_err(|reason| {
            let message = format!("{}: error while converting {format}: {reason}", path.display());
            Failure::usage(message).about(&path)
        })?;
        Ok(Self { path, format, image, has_backing, exists: options.no_create })
    }

    /// The file that is meant.
    fn path(options: &Options, format: &str) -> Result<PathBuf, Failure> {
        if options.no_create {
            return Ok(ImageName::parse(&options.target, Some(format), false)?.path);
        }
        ImageName::new_file(&options.target)
            .map_err(|reason| Failure::usage(reason).about(Path::new(&options.target)))
    }
}

/// The options of the new image, those with letters of their own included.
fn creation(options: &Options, format: &str) -> Result<CreationOptions, String> {
    let mut list = options.list.clone();
    let given = CreationOptions::parse(format, &list)?;
    if options.no_create {
        // Nothing is created, so a backing file is no option of the target.
        return Ok(given);
    }
    if format != "qcow2" && options.backing.is_some() {
        return Err(format!("Backing file not supported for file format '{format}'"));
    }
    if format != "qcow2" && options.backing_format.is_some() {
        return Err(format!("Backing file format not supported for file format '{format}'"));
    }
    if options.backing.is_none() && options.backing_format.is_none() {
        return Ok(given);
    }
    list.set("backing_file", options.backing.as_deref());
    list.set("backing_fmt", options.backing_format.as_deref());
    CreationOptions::parse(format, &list)
}

/// The backing file has to open from where the target will be; its name is relative to that.
fn check_backing_opens(
    options: &Options,
    target: &Path,
    given: &CreationOptions,
) -> Result<(), Failure> {
    let Some(backing) = given.text("backing_file").filter(|_| !options.no_create) else {
        return Ok(());
    };
    let opened = cowl::resolve_backing_name(target, backing.as_bytes())
        .map_err(|error| disk::words(&error))
        .and_then(|path| {
            disk::open_words(&ImageName::local(path, given.text("backing_fmt"))).map(drop)
        });
    opened.map_err(|reason| {
        let target = target.display();
        Failure::usage(format!("Could not open '{target}': Could not open backing file: {reason}"))
    })
}

fn check_backing(options: &Options, given: &CreationOptions) -> Result<(), &'static str> {
    let backing = given.text("backing_file");
    if (backing.is_some() || options.backing.is_some()) && 1 < options.sources.len() {
        return Err("Having a backing file for the target makes no sense when concatenating \
                    multiple input images");
    }
    match (backing, given.text("backing_fmt")) {
        (Some(_), None) => Err("Use of backing file requires explicit backing format"),
        _ => Ok(()),
    }
}

fn check_compression(
    options: &Options,
    format: &str,
    given: &CreationOptions,
) -> Result<(), &'static str> {
    if !options.compress {
        return Ok(());
    }
    if format != "qcow2" {
        return Err("Compression not supported for this file format");
    }
    if given.switch("encryption") == Some(true) || given.text("encrypt.format").is_some() {
        return Err("Compression and encryption not supported at the same time");
    }
    match given.text("preallocation") {
        None | Some("off") => Ok(()),
        Some(_) => Err("Compression and preallocation not supported at the same time"),
    }
}

fn image(given: &CreationOptions, format: &str, size: u64) -> Result<TargetImage, String> {
    let preallocation = new_image::preallocation(given, format)?;
    if format == "raw" {
        return Ok(TargetImage::Raw { preallocation });
    }
    let create = new_image::qcow2(given, size)?;
    if create.backing.is_none() && create.backing_format.is_some() {
        return Err("Backing format cannot be used without backing file".into());
    }
    Ok(TargetImage::Qcow2 { create: Box::new(create), preallocation })
}

fn how(options: &Options, target: &Target) -> Result<ConvertOptions, Failure> {
    let cache = options.target_cache.as_deref().map(cache_mode::parse).and_then(Result::ok);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let asked = options.parallel.and_then(|count| usize::try_from(count).ok());
    Ok(ConvertOptions {
        target: target.image.clone(),
        existing: match (options.no_create, options.target_is_zero) {
            (false, _) => ExistingTarget::Replace,
            (true, false) => ExistingTarget::Overwrite,
            (true, true) => ExistingTarget::OverwriteZeroed,
        },
        compress: options.compress,
        only_top_layer: target.has_backing,
        zeros: match options.sparse_size.unwrap_or(SPARSE_SIZE_DEFAULT) {
            0 => ZeroDetection::Off,
            size => ZeroDetection::Runs(ByteCount::new(size)),
        },
        threads: asked.unwrap_or(cores),
        rate_max: options.rate.filter(|rate| *rate != 0),
        salvage: options.salvage,
        copy_range: options.copy_range,
        caching: match cache {
            Some(mode) if mode.direct => Caching::Direct,
            Some(_) => Caching::PageCache,
            None => Caching::LargeWritesDirect,
        },
        durability: match cache {
            Some(mode) if mode.unsafe_flush => Durability::Unsafe,
            _ => Durability::Durable,
        },
        verify: options.verify,
        digest: options.digest,
    })
}

fn failure(error: &ConvertError, target: &Target) -> Failure {
    let path = target.path.display();
    let converting =
        |reason: String| format!("{path}: error while converting {}: {reason}", target.format);
    let message = match error {
        ConvertError::Read { at, source } => {
            format!("error while reading at byte {at}: {}", disk::words(source))
        }
        ConvertError::Target(error) if target.exists && error.operation() == Operation::Open => {
            let reason = system_words(error.io_error());
            format!("Could not open '{path}': Could not open '{path}': {reason}")
        }
        ConvertError::Target(error) => converting(new_image::storage_words(error, &target.path)),
        ConvertError::Create(error) => converting(new_image::words(error, &target.path)),
        ConvertError::TargetTooSmall { .. } => "output file is smaller than input file".into(),
        ConvertError::Existing(error) => {
            format!("Could not open '{path}': {}", disk::words(error))
        }
        other => converting(other.to_string()),
    };
    Failure::new(Kind::Io, message).about(&target.path)
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::failure::Stop;
    use crate::option::ProgressMode;
    use std::ffi::OsString;

    fn arguments(text: &str) -> Vec<OsString> {
        text.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn a_full_command_line_is_understood() {
        let text = "-pf raw -O qcow2 -c -o compat=v3 -m 4 -W -S 64k a b target --verify -r 1M";
        let options = parse(arguments(text)).unwrap();
        let sources: Vec<_> = options.sources.iter().map(|s| s.display()).collect();
        assert_eq!(sources, ["a", "b"]);
        assert_eq!(options.target, "target");
        assert_eq!(options.common.progress(), ProgressMode::Percent);
        assert_eq!((options.parallel, options.sparse_size), (Some(4), Some(65536)));
        assert!(options.compress && options.out_of_order && options.verify);
    }

    #[test]
    fn machine_progress_needs_its_full_name_and_p_still_means_parallel() {
        let options = parse(arguments("--progress=jsonl --p 2 a b")).unwrap();
        assert_eq!(options.common.progress(), ProgressMode::JsonLines);
        assert_eq!(options.parallel, Some(2));
    }

    #[test]
    fn mistakes_are_told_in_the_words_of_qemu_img() {
        for (text, message) in [
            ("a", "Must specify image file name"),
            ("-m 17 a b", "Invalid number of coroutines specified. Must be between 1 and 16."),
            ("-m x a b", "Invalid number of coroutines specified: 'x'."),
            ("-t x a b", "Invalid cache option: x"),
            ("-T x a b", "Invalid source cache option: x"),
            ("--target-is-zero a b", "--target-is-zero requires use of -n flag"),
            ("--target-image-opts a b", "--target-image-opts requires use of -n flag"),
            ("-C -c a b", "Cannot enable copy offloading when -c is used"),
            ("-C -S 4k a b", "Cannot enable copy offloading when -S is used"),
            ("--skip-broken-bitmaps a b", "Use of --skip-broken-bitmaps requires --bitmaps"),
            ("-n -o x=1 a b", "-o has no effect when skipping image creation"),
            ("-l x a b c", "No support for concatenating multiple snapshot"),
            ("-o x, a b", "Invalid option list: x,"),
        ] {
            let Err(Stop::Failed(failure)) = parse(arguments(text)) else { panic!("{text}") };
            assert_eq!(failure.message, message, "{text}");
        }
        let Err(Stop::Failed(failure)) = parse(arguments("-S 1000 a b")) else { panic!() };
        assert!(failure.message.starts_with("Invalid buffer size for sparse output specified. "));
    }
}
