//! `convert`: copy images into a new one, in another format or with other options.

use std::ffi::OsString;

use crate::cache_mode;
use crate::commands::Verb;
use crate::creation_options;
use crate::failure::{Failure, Stop};
use crate::getopt::{Given, Opt, Parser, Takes};
use crate::image_name::ImageName;
use crate::number;
use crate::option::{self, Common, Flag, extension, long, short};
use crate::option_list::{self, OptionList};
use crate::session::Session;
use crate::snapshot_name::SnapshotName;

const SECTOR_BYTES: u64 = 512;
const SPARSE_SIZE_MAX: u64 = 16 << 20;
const PARALLEL_MAX: u64 = 16;

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
        "How the target is cached (unsafe: made durable once, at the end).",
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
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "convert",
    summary: "Copy an image into another format",
    usage: "[OPTIONS] SOURCE... TARGET",
    about: "Several sources are joined one after the other. The target appears under its name when it is \
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
            "Invalid buffer size for sparse output specified. Valid sizes are multiples of 512 up to \
             {SPARSE_SIZE_MAX}. Select 0 to disable sparse detection (fully allocates output)."
        )));
    }
    Ok(size)
}

fn run(arguments: Vec<OsString>, _session: &Session) -> Result<u8, Stop> {
    let _options = parse(arguments)?;
    Err(option::not_available("'convert'").into())
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
