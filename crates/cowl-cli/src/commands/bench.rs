//! `bench`: how fast an image answers.

use std::ffi::OsString;
use std::time::Duration;

use cowl::{Access, Caching, Format, Writeback};
use cowl_tools::{
    BENCH_THREADS_MAX, BenchDriver, BenchError, BenchFlush, BenchOptions, BenchOrder, BenchReport,
    BenchTarget, BenchWork,
};
use serde_json::json;

use crate::cache_mode::{self, CacheMode};
use crate::commands::Verb;
use crate::disk;
use crate::failure::{Failure, Kind, Stop};
use crate::getopt::{Opt, Parser, Takes};
use crate::image_name::{ImageName, could_not_open};
use crate::number;
use crate::option::{self, Common, Flag, OutputFormat};
use crate::session::Session;
use crate::text;

const COUNT_DEFAULT: u64 = 75_000;
const DEPTH_DEFAULT: u32 = 64;
const LENGTH_DEFAULT: u64 = 4096;
const INT_MAX: u64 = i32::MAX as u64;

/// A day: who measures longer has other tools.
const SECONDS_MAX: u64 = 86_400;

const OPTIONS: &[Opt<Flag>] = &[
    option::HELP,
    option::QUIET,
    option::FORMAT,
    option::IMAGE_OPTS,
    option::short(
        Flag::SourceCache,
        't',
        &["cache"],
        Takes::Value("CACHE"),
        "none, writeback (the default), writethrough, directsync or unsafe.",
    ),
    option::short(
        Flag::Count,
        'c',
        &["count"],
        Takes::Value("COUNT"),
        "Make so many requests (75000; with --duration any number).",
    ),
    option::short(
        Flag::Depth,
        'd',
        &["depth"],
        Takes::Value("DEPTH"),
        "Keep so many requests in flight (64), for each thread.",
    ),
    option::short(
        Flag::Offset,
        'o',
        &["offset"],
        Takes::Value("OFFSET"),
        "Begin at this byte of the disk (0).",
    ),
    option::short(
        Flag::BufferSize,
        's',
        &["buffer-size"],
        Takes::Value("SIZE"),
        "Bytes of a request (4096).",
    ),
    option::short(
        Flag::StepSize,
        'S',
        &["step-size"],
        Takes::Value("SIZE"),
        "How far each request is behind the one before (as long as a request).",
    ),
    option::short(
        Flag::Aio,
        'i',
        &["aio"],
        Takes::Value("AIO"),
        "io_uring (the default where DEPTH is above 1), threads, or native, which needs -t none \
         and is a ring too.",
    ),
    option::short(Flag::NativeAio, 'n', &["native"], Takes::Nothing, "The same as -i native."),
    option::short(Flag::Write, 'w', &["write"], Takes::Nothing, "Write instead of reading."),
    option::long(
        Flag::Pattern,
        &["pattern"],
        Takes::Value("BYTE"),
        "The byte that is written (0).",
    ),
    option::long(
        Flag::FlushInterval,
        &["flush-interval"],
        Takes::Value("COUNT"),
        "Flush after so many requests.",
    ),
    option::long(
        Flag::NoDrain,
        &["no-drain"],
        Takes::Nothing,
        "Flush without waiting for the requests in flight.",
    ),
    option::FORCE_SHARE,
    option::extension(option::long(
        Flag::Random,
        &["random"],
        Takes::Nothing,
        "Make requests anywhere on the disk, at multiples of their size.",
    )),
    option::extension(option::long(
        Flag::Mix,
        &["mix"],
        Takes::Value("PERCENT"),
        "Read with so many requests of a hundred and write with the others.",
    )),
    option::extension(option::long(
        Flag::Seed,
        &["seed"],
        Takes::Value("NUMBER"),
        "Begin --random and --mix with this number (0); the same number repeats a run.",
    )),
    option::extension(option::long(
        Flag::Threads,
        &["threads"],
        Takes::Value("COUNT"),
        "Make requests from so many threads at once (1).",
    )),
    option::extension(option::long(
        Flag::Duration,
        &["duration"],
        Takes::Value("SECONDS"),
        "End after this time.",
    )),
    option::extension(option::OUTPUT),
    option::UNTRUSTED,
    option::ERRORS,
];

pub(super) const VERB: Verb = Verb {
    name: "bench",
    summary: "Measure how fast an image answers",
    usage: "[OPTIONS] IMAGE",
    about: "Reads the image, one request behind the other, or with -w overwrites it. Latencies are \
            those of single requests; a flush is none.",
    options: OPTIONS,
    examples: &[
        "disk.qcow2",
        "--random --duration=10 --threads=2 -d 32 -t none disk.qcow2",
        "--random --mix=70 --output=json -c 100000 scratch.img",
    ],
    run,
};

/// What was asked for, as it was typed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Typed {
    common: Common,
    cache: Option<CacheMode>,
    aio: Option<Aio>,
    count: Option<u64>,
    depth: Option<u64>,
    offset: Option<u64>,
    length: Option<u64>,
    step: Option<u64>,
    write: bool,
    pattern: u8,
    flush_interval: u64,
    no_drain: bool,
    random: bool,
    read_percent: Option<u32>,
    seed: Option<u64>,
    threads: Option<u64>,
    seconds: Option<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Aio {
    Threads,
    Native,
    Ring,
}

/// What was asked for, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Options {
    common: Common,
    image: ImageName,
    bench: BenchOptions,
    driver: BenchDriver,
    caching: Caching,
    writeback: Writeback,
    /// Whether only we can say this; then the answer is ours too.
    is_extended: bool,
}

impl Typed {
    fn take(&mut self, flag: Flag, text: &str) -> Result<bool, Failure> {
        match flag {
            Flag::SourceCache => {
                let mode = cache_mode::parse(text);
                self.cache = Some(mode.map_err(|_| Failure::usage("Invalid cache mode"))?);
            }
            Flag::Count => self.count = Some(number::count("request count", text, 1..=INT_MAX)?),
            Flag::Depth => self.depth = Some(number::count("queue depth", text, 1..=INT_MAX)?),
            Flag::Offset => self.offset = Some(number::size("offset", text)?),
            Flag::BufferSize => {
                self.length = Some(number::within("buffer size", text, 1..=INT_MAX)?);
            }
            Flag::StepSize => self.step = Some(number::within("step size", text, 0..=INT_MAX)?),
            Flag::Aio => self.aio = Some(parse_aio(text)?),
            Flag::NativeAio => self.aio = Some(Aio::Native),
            Flag::Write => self.write = true,
            Flag::Pattern => {
                let byte = number::count("pattern byte", text, 0..=255)?;
                self.pattern = u8::try_from(byte).expect("the range is that of a byte");
            }
            Flag::FlushInterval => {
                self.flush_interval = number::count("flush interval", text, 0..=INT_MAX)?;
            }
            Flag::NoDrain => self.no_drain = true,
            Flag::Random => self.random = true,
            Flag::Mix => {
                let percent = number::count("percentage", text, 0..=100)?;
                self.read_percent = u32::try_from(percent).ok();
            }
            Flag::Seed => self.seed = Some(number::count("seed", text, 0..=i64::MAX as u64)?),
            Flag::Threads => {
                let most = u64::from(BENCH_THREADS_MAX);
                self.threads = Some(number::count("number of threads", text, 1..=most)?);
            }
            Flag::Duration => {
                self.seconds = Some(number::count("duration", text, 1..=SECONDS_MAX)?);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Options that contradict each other.
    fn check(&self) -> Result<(), Failure> {
        let writes = self.write || self.read_percent.is_some();
        let depth = self.depth.unwrap_or(DEPTH_DEFAULT.into());
        let message = if 0 < self.flush_interval && !writes {
            "--flush-interval is only available in write tests"
        } else if 0 < self.flush_interval && self.flush_interval < depth {
            "Flush interval can't be smaller than depth"
        } else if self.write && self.read_percent.is_some() {
            "--mix and --write are mutually exclusive"
        } else if self.seed.is_some() && !self.random && self.read_percent.is_none() {
            "--seed has an effect with --random or --mix only"
        } else if self.random && (self.offset.is_some() || self.step.is_some()) {
            "--random chooses the places; --offset and --step-size cannot"
        } else {
            return Ok(());
        };
        Err(Failure::usage(message))
    }

    fn is_extended(&self) -> bool {
        self.random
            || self.read_percent.is_some()
            || self.threads.is_some()
            || self.seconds.is_some()
            || self.common.output == OutputFormat::Json
    }

    fn driver(&self, depth: u32) -> BenchDriver {
        match self.aio {
            Some(Aio::Threads) => BenchDriver::Threads,
            Some(Aio::Native | Aio::Ring) => BenchDriver::Ring,
            // One at a time, the plain call is the fastest.
            None if depth == 1 => BenchDriver::Threads,
            None => BenchDriver::Ring,
        }
    }

    fn bench(&self, depth: u32) -> BenchOptions {
        let length = self.length.unwrap_or(LENGTH_DEFAULT);
        let seed = self.seed.unwrap_or(0);
        let order = match self.random {
            true => BenchOrder::Random { seed },
            false => BenchOrder::Sequential {
                offset: self.offset.unwrap_or(0),
                step: self.step.filter(|step| 0 < *step).unwrap_or(length),
            },
        };
        let work = match self.read_percent {
            Some(read_percent) => BenchWork::Mixed { read_percent, seed },
            None if self.write => BenchWork::Write,
            None => BenchWork::Read,
        };
        let count = match self.seconds {
            Some(_) => self.count,
            None => Some(self.count.unwrap_or(COUNT_DEFAULT)),
        };
        let threads = self.threads.unwrap_or(1);
        BenchOptions {
            count,
            duration: self.seconds.map(Duration::from_secs),
            threads: u32::try_from(threads).expect("the range was checked"),
            depth,
            length,
            order,
            work,
            pattern: self.pattern,
            write_through: self.cache.is_some_and(|mode| mode.writethrough),
            flush: self.flush(),
        }
    }

    fn is_unsafe(&self) -> bool {
        self.cache.is_some_and(|mode| mode.unsafe_flush)
    }

    fn flush(&self) -> Option<BenchFlush> {
        let flush = BenchFlush { every: self.flush_interval, drain: !self.no_drain };
        (0 < flush.every && !self.is_unsafe()).then_some(flush)
    }
}

fn parse_aio(text: &str) -> Result<Aio, Failure> {
    match text {
        "threads" => Ok(Aio::Threads),
        "native" => Ok(Aio::Native),
        "io_uring" => Ok(Aio::Ring),
        _ => Err(Failure::usage(format!("Invalid aio option: {text}"))),
    }
}

fn parse(arguments: Vec<OsString>) -> Result<Options, Stop> {
    let mut typed = Typed::default();
    let mut parser = Parser::new(OPTIONS, arguments);
    while let Some(given) = parser.next()? {
        if !typed.take(given.id, &given.text())? {
            typed.common.take(&given)?;
        }
    }
    let operands = parser.operands();
    let [operand] = operands.as_slice() else {
        return Err(Failure::usage_with_help("Expecting one image file name").into());
    };
    typed.check()?;
    let format = typed.common.format.as_deref();
    option::exclude_format_with_image_opts(typed.common.image_opts, format)?;
    let image = ImageName::parse(operand, format, typed.common.image_opts)?;
    let depth = u32::try_from(typed.depth.unwrap_or(DEPTH_DEFAULT.into()));
    let depth = depth.expect("the range was checked");
    let is_direct = typed.cache.is_some_and(|mode| mode.direct);
    let (bench, driver) = (typed.bench(depth), typed.driver(depth));
    check_lanes(&bench, driver)?;
    let contradiction = match bench.work {
        BenchWork::Write | BenchWork::Mixed { .. } if typed.common.force_share => {
            Some("force-share=on can only be used with read-only images")
        }
        _ if typed.aio == Some(Aio::Native) && !is_direct => Some(
            "aio=native was specified, but it requires cache.direct=on, which was not specified.",
        ),
        _ => None,
    };
    if let Some(reason) = contradiction {
        return Err(could_not_open(&image.given, reason).into());
    }
    let caching = if is_direct { Caching::Direct } else { Caching::PageCache };
    let writeback = if typed.is_unsafe() { Writeback::ByHost } else { Writeback::Early };
    let is_extended = typed.is_extended();
    Ok(Options { common: typed.common, image, bench, driver, caching, writeback, is_extended })
}

/// Every lane has a buffer, and with the plain driver a thread.
fn check_lanes(bench: &BenchOptions, driver: BenchDriver) -> Result<(), Failure> {
    const BUFFERS_MAX: u64 = 8 << 30;
    let asked = u64::from(bench.threads) * u64::from(bench.depth);
    let lanes = bench.count.map_or(asked, |count| asked.min(count));
    if driver == BenchDriver::Threads && u64::from(BENCH_THREADS_MAX) < lanes {
        let message = format!("-i threads would need {lanes} threads, at most {BENCH_THREADS_MAX}");
        return Err(Failure::usage(message));
    }
    if BUFFERS_MAX < lanes.saturating_mul(bench.length) {
        let most = text::size(BUFFERS_MAX);
        return Err(Failure::usage(format!("The buffers would need more than {most} of memory")));
    }
    Ok(())
}

fn run(arguments: Vec<OsString>, session: &Session) -> Result<u8, Stop> {
    let options = parse(arguments)?;
    let bench = &options.bench;
    let writes = bench.work != BenchWork::Read;
    let open = cowl::OpenOptions {
        access: if writes { Access::ReadWrite } else { Access::ReadOnly },
        writeback: options.writeback,
        ..disk::options(&options.image, &options.common, None, options.caching)?
    };
    let target = BenchTarget::open(&options.image.path, &open, options.driver)
        .map_err(|error| disk::failure(&options.image, &error))?;
    if target.driver() != options.driver {
        check_lanes(bench, target.driver())?;
        session.warn("this host gives no io_uring; threads make the requests");
    }
    if writes && open.format.is_none() && target.format() == Format::Raw {
        session.warn_of_guess(&options.image.given);
    }
    let json = options.common.output == OutputFormat::Json;
    // qemu-img takes -q and prints all the same.
    let silent = options.common.quiet && !session.is_drop_in();
    if !json && !silent {
        session.output.text_now(&heading(bench));
    }
    let report = target.run(bench).map_err(|error| failed(&error, &options.image))?;
    let driver = target.driver();
    if writes {
        target.close().map_err(|error| {
            let message = format!("Could not close the image: {}", disk::words(&error));
            Failure::new(Kind::Io, message).about(&options.image.path)
        })?;
    }
    if json {
        session.output.text(&crate::json::to_text(&machine(&report, bench, driver)));
    } else if !silent {
        session
            .output
            .text(&format!("Run completed in {:.3} seconds.\n", report.elapsed.as_secs_f64()));
        if options.is_extended || !session.is_drop_in() {
            session.output.text(&human(&report));
        }
    }
    Ok(0)
}

/// What will be done, in the words of qemu-img as far as it has any.
fn heading(bench: &BenchOptions) -> String {
    let count = bench.count.map_or(String::new(), |count| format!("{count} "));
    let (random, place) = match bench.order {
        BenchOrder::Sequential { offset, step } => {
            ("", format!("starting at offset {offset}, step size {step}"))
        }
        BenchOrder::Random { seed } => ("random ", format!("anywhere, seed {seed}")),
    };
    let work = match bench.work {
        BenchWork::Read => "read".to_owned(),
        BenchWork::Write => "write".to_owned(),
        BenchWork::Mixed { read_percent, .. } => format!("mixed ({read_percent}% read)"),
    };
    let threads = match bench.threads {
        1 => String::new(),
        threads => format!(" on each of {threads} threads"),
    };
    let (length, depth) = (bench.length, bench.depth);
    let mut text = format!(
        "Sending {count}{random}{work} requests, {length} bytes each, {depth} in \
         parallel{threads} ({place})\n"
    );
    if let Some(BenchFlush { every, .. }) = bench.flush {
        text.push_str(&format!("Sending flush every {every} requests\n"));
    }
    text
}

fn human(report: &BenchReport) -> String {
    let latency = &report.latency;
    let microseconds = |took: Duration| format!("{:.1}", took.as_secs_f64() * 1e6);
    let [p50, p90, p99, p999, max] =
        [latency.p50, latency.p90, latency.p99, latency.p999, latency.max].map(microseconds);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate")]
    let rate = report.bytes_per_second() as u64;
    format!(
        "{} requests ({} reads, {} writes, {} flushes), {:.0} IOPS, {}/s\n\
         Latency in microseconds: p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}, max {max}\n",
        report.requests,
        report.reads,
        report.writes,
        report.flushes,
        report.requests_per_second(),
        text::size(rate),
    )
}

fn machine(report: &BenchReport, bench: &BenchOptions, driver: BenchDriver) -> serde_json::Value {
    let latency = &report.latency;
    let nanoseconds = |took: Duration| u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    json!({
        "driver": match driver {
            BenchDriver::Threads => "threads",
            BenchDriver::Ring => "io_uring",
        },
        "threads": bench.threads,
        "depth": bench.depth,
        "buffer-size": bench.length,
        "requests": report.requests,
        "reads": report.reads,
        "writes": report.writes,
        "flushes": report.flushes,
        "bytes": report.bytes,
        "seconds": report.elapsed.as_secs_f64(),
        "iops": report.requests_per_second(),
        "bytes-per-second": report.bytes_per_second(),
        "latency-ns": {
            "p50": nanoseconds(latency.p50),
            "p90": nanoseconds(latency.p90),
            "p99": nanoseconds(latency.p99),
            "p99.9": nanoseconds(latency.p999),
            "max": nanoseconds(latency.max),
        },
    })
}

fn failed(error: &BenchError, image: &ImageName) -> Failure {
    const EIO: i32 = 5;
    let system = |errno| disk::system_words(&std::io::Error::from_raw_os_error(errno));
    let message = match error {
        BenchError::Request(error) => format!("Failed request: {}", system(error.errno())),
        BenchError::PastEnd => format!("Failed request: {}", system(EIO)),
        BenchError::Start(error) => format!("Could not start: {}", disk::system_words(error)),
    };
    let failure = Failure::new(Kind::Io, message).about(&image.path);
    match error {
        BenchError::PastEnd => failure.hint(error.to_string()),
        _ => failure,
    }
}
