//! The options that several commands share, and what each of them does when it is met.
//!
//! A command lists its options as a table of these constants; its parser matches on [`Flag`] and
//! leaves what it does not treat specially to [`Common::take`]. The order of a table is qemu-img's,
//! because the message about an ambiguous abbreviation shows it.

use crate::cache_mode;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Given, Opt, Takes};
use crate::secret_object::{self, SecretObject};

/// What an option means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flag {
    Address,
    Aio,
    AllocationDepth,
    Allow,
    AllowOther,
    Backing,
    BackingChain,
    BackingFormat,
    BackingUnsafe,
    Bitmap,
    Bitmaps,
    BlkFile,
    BufferSize,
    CacheSize,
    Command,
    Compress,
    Connect,
    Control,
    CopyOnRead,
    CopyRange,
    Count,
    Depth,
    Description,
    Descriptor,
    DetectZeroes,
    Digest,
    Discard,
    Disconnect,
    Duration,
    Errors,
    Export,
    ExportName,
    FileSystem,
    FirstFormat,
    FlushInterval,
    FollowNbd,
    ForceShare,
    Foreground,
    Fork,
    Format,
    Fuse,
    FuseOnly,
    Growable,
    HandshakeLimit,
    Help,
    ImageOpts,
    List,
    LoadSnapshot,
    LogFile,
    LogFormat,
    LogLevel,
    MaxLength,
    Metrics,
    Misalign,
    Mix,
    NativeAio,
    NoCache,
    NoCreate,
    NoDrain,
    Object,
    Offset,
    Options,
    OutOfOrder,
    Output,
    Parallel,
    Partition,
    Pattern,
    Persistent,
    PidFile,
    Port,
    PrintCapabilities,
    Progress,
    Queues,
    Quiet,
    Random,
    Rate,
    ReadOnly,
    Repair,
    Salvage,
    Sandbox,
    SecondFormat,
    Seed,
    SelinuxLabel,
    Serial,
    Shared,
    Size,
    SkipBrokenBitmaps,
    Snapshot,
    Socket,
    SocketActivation,
    SocketPath,
    SourceCache,
    SparseSize,
    StartOffset,
    StepSize,
    Strict,
    TargetCache,
    TargetFormat,
    TargetImageOpts,
    TargetIsZero,
    Temporary,
    Threads,
    Tls,
    TlsAuthz,
    TlsCertificates,
    TlsCreds,
    TlsHostname,
    TlsVerifyPeer,
    Trace,
    Unmount,
    Untrusted,
    Verbose,
    Verify,
    Version,
    Write,
}

/// An option with a long name only.
pub(crate) const fn long(
    id: Flag,
    names: &'static [&'static str],
    takes: Takes,
    help: &'static str,
) -> Opt<Flag> {
    Opt { id, short: None, long: names, takes, abbreviable: true, help }
}

/// An option with a letter.
pub(crate) const fn short(
    id: Flag,
    letter: char,
    names: &'static [&'static str],
    takes: Takes,
    help: &'static str,
) -> Opt<Flag> {
    Opt { id, short: Some(letter), long: names, takes, abbreviable: true, help }
}

/// An option that qemu-img does not have.
pub(crate) const fn extension(opt: Opt<Flag>) -> Opt<Flag> {
    Opt { abbreviable: false, ..opt }
}

pub(crate) const HELP: Opt<Flag> =
    short(Flag::Help, 'h', &["help"], Takes::Nothing, "Show this help.");
pub(crate) const FORMAT: Opt<Flag> = short(
    Flag::Format,
    'f',
    &["format"],
    Takes::Value("FMT"),
    "Format of the image, raw or qcow2. Without it the format is guessed from the first bytes.",
);
pub(crate) const IMAGE_OPTS: Opt<Flag> = long(
    Flag::ImageOpts,
    &["image-opts"],
    Takes::Nothing,
    "Image names are lists such as driver=qcow2,file.filename=NAME.",
);
pub(crate) const OBJECT: Opt<Flag> = long(
    Flag::Object,
    &["object"],
    Takes::Value("OBJECT"),
    "Define a secret: secret,id=ID,data=TEXT or secret,id=ID,file=NAME.",
);
pub(crate) const OUTPUT: Opt<Flag> = long(
    Flag::Output,
    &["output"],
    Takes::Value("human|json"),
    "Print for people (the default) or for machines.",
);
pub(crate) const FORCE_SHARE: Opt<Flag> = short(
    Flag::ForceShare,
    'U',
    &["force-share"],
    Takes::Nothing,
    "Open the image although another process may be writing to it.",
);
pub(crate) const QUIET: Opt<Flag> =
    short(Flag::Quiet, 'q', &["quiet"], Takes::Nothing, "Print errors only.");
pub(crate) const PROGRESS_LETTER: Opt<Flag> = short(
    Flag::Progress,
    'p',
    &["progress"],
    Takes::OptionalValue("HOW"),
    "Show how far the work is; --progress=jsonl writes one JSON object a line to stderr.",
);
/// For commands that have no `-p` in qemu-img.
pub(crate) const PROGRESS: Opt<Flag> = extension(long(
    Flag::Progress,
    &["progress"],
    Takes::OptionalValue("HOW"),
    "Show how far the work is; --progress=jsonl writes one JSON object a line to stderr.",
));
pub(crate) const ERRORS: Opt<Flag> = extension(long(
    Flag::Errors,
    &["errors"],
    Takes::Value("text|json"),
    "Report a failure as text (the default) or as one JSON object on stderr.",
));
pub(crate) const UNTRUSTED: Opt<Flag> = extension(long(
    Flag::Untrusted,
    &["untrusted"],
    Takes::Nothing,
    "The image comes from a stranger: open no other file that it names.",
));
pub(crate) const FOLLOW_NBD: Opt<Flag> = extension(long(
    Flag::FollowNbd,
    &["follow-nbd"],
    Takes::Nothing,
    "Images may name exports of NBD servers (nbd://..., nbd+unix://...) as their backing files.",
));
pub(crate) const SOURCE_CACHE: Opt<Flag> = short(
    Flag::SourceCache,
    'T',
    &["cache"],
    Takes::Value("CACHE"),
    "How the image is cached: none, writeback (default), writethrough, directsync or unsafe.",
);

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OutputFormat {
    #[default]
    Human,
    Json,
}

/// How progress is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum ProgressMode {
    #[default]
    Off,
    Percent,
    JsonLines,
}

/// The values of the options every command treats alike.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Common {
    pub(crate) format: Option<String>,
    pub(crate) image_opts: bool,
    pub(crate) force_share: bool,
    pub(crate) quiet: bool,
    pub(crate) untrusted: bool,
    /// Images may name exports of NBD servers as their backing files.
    pub(crate) follows_nbd: bool,
    pub(crate) output: OutputFormat,
    pub(crate) progress: ProgressMode,
    pub(crate) secrets: Vec<SecretObject>,
}

impl Common {
    /// Takes in one option. A flag that arrives here without an arm is a hole in a command's
    /// parser, not a mistake of the user.
    pub(crate) fn take(&mut self, given: &Given<Flag>) -> Result<(), Stop> {
        match given.id {
            Flag::Help => return Err(Stop::Help),
            Flag::Format => self.format = Some(given.text()),
            Flag::ImageOpts => self.image_opts = true,
            Flag::ForceShare => self.force_share = true,
            Flag::Quiet => self.quiet = true,
            Flag::Untrusted => self.untrusted = true,
            Flag::FollowNbd => self.follows_nbd = true,
            Flag::Output => self.output = parse_output(&given.text())?,
            Flag::Progress => self.progress = parse_progress(given)?,
            Flag::Errors => parse_errors(&given.text())?,
            Flag::Object => secret_object::add(&mut self.secrets, &given.text())?,
            flag => unreachable!("{flag:?} is in the table but the command does not handle it"),
        }
        Ok(())
    }

    /// How progress is to be shown after all options are known: `-q` wins over `-p`.
    pub(crate) fn progress(&self) -> ProgressMode {
        match self.progress {
            ProgressMode::Percent if self.quiet => ProgressMode::Off,
            mode => mode,
        }
    }
}

/// `--image-opts` states the format itself.
pub(crate) fn exclude_format_with_image_opts(
    image_opts: bool,
    format: Option<&str>,
) -> Result<(), Failure> {
    if image_opts && format.is_some() {
        return Err(Failure::usage("--image-opts and --format are mutually exclusive"));
    }
    Ok(())
}

/// Checks the value of a cache option for the source of data.
pub(crate) fn source_cache(value: &str) -> Result<(), Failure> {
    cache_mode::validate(value)
        .map_err(|_| Failure::usage(format!("Invalid source cache option: {value}")))
}

fn parse_output(value: &str) -> Result<OutputFormat, Failure> {
    match value {
        "human" => Ok(OutputFormat::Human),
        "json" => Ok(OutputFormat::Json),
        _ => Err(Failure::usage_with_help(format!(
            "--output expects 'human' or 'json' not '{value}'"
        ))),
    }
}

fn parse_progress(given: &Given<Flag>) -> Result<ProgressMode, Failure> {
    match given.value.as_ref().map(|_| given.text()).as_deref() {
        None => Ok(ProgressMode::Percent),
        Some("jsonl") => Ok(ProgressMode::JsonLines),
        Some(other) => {
            Err(Failure::usage_with_help(format!("--progress expects 'jsonl' not '{other}'")))
        }
    }
}

/// The value was already obeyed when the session began; here it is only checked.
fn parse_errors(value: &str) -> Result<(), Failure> {
    match value {
        "text" | "json" => Ok(()),
        _ => Err(Failure::usage_with_help(format!(
            "--errors expects 'text' or 'json' not '{value}'"
        ))),
    }
}

/// What this version does not do, said clearly.
pub(crate) fn not_available(what: &str) -> Failure {
    Failure::new(Kind::NotAvailable, format!("{what} is not available in this version"))
}
