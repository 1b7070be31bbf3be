//! The rows about commands: convert, check, create, and the memory of a long read.
//!
//! Each runs as a program of its own, as users run it: starting and ending count.

use std::fs;
use std::path::{Path, PathBuf};

use crate::fixtures::{Fixtures, warm};
use crate::options::Options;
use crate::process;
use crate::raw_copy::{Copy, copy};
use crate::readers::walk_step;
use crate::row::{Bar, CLOSE, Contender, Group, Row, Sample, Unit};

const NO_CONVERT: &str = "the library has no convert";
const NO_COMPRESSION: &str = "does not write compressed clusters";
const NO_CHECK: &str = "the library has no check";
const NO_CREATE: &str = "formats empty images only";

pub(crate) fn groups(options: &Options) -> Vec<Group> {
    let size = if options.quick { "64 MiB" } else { "1 GiB" };
    let compress = |kind| format!("convert -c {kind}, {size} of binaries");
    let expand = |kind| format!("convert {kind} -> raw, {size}");
    vec![
        convert(
            ["convert", "convert-alike", "convert-durable"],
            format!("convert raw -> qcow2, {size}"),
            Kind::Plain,
            0.8,
        ),
        convert(
            ["convert-zlib", "convert-zlib-alike", "convert-zlib-durable"],
            compress("zlib"),
            Kind::Compress("zlib"),
            0.45,
        ),
        convert(
            ["convert-zstd", "convert-zstd-alike", "convert-zstd-durable"],
            compress("zstd"),
            Kind::Compress("zstd"),
            0.7,
        ),
        convert(
            ["expand-zlib", "expand-zlib-alike", "expand-zlib-durable"],
            expand("zlib"),
            Kind::Expand("zlib"),
            0.6,
        ),
        convert(
            ["expand-zstd", "expand-zstd-alike", "expand-zstd-durable"],
            expand("zstd"),
            Kind::Expand("zstd"),
            0.8,
        ),
        check(),
        create(),
        memory(),
    ]
}

fn row(key: &'static str, title: String, unit: Unit, ratio: f64) -> Row {
    Row { key, title, unit, bars: vec![Bar { reference: Contender::Qemu, ratio }] }
}

fn seconds(program: &Path, arguments: &[String]) -> Sample {
    Ok(vec![process::run(program, arguments)?.wall.as_secs_f64()])
}

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Removes what an earlier repetition left; nobody shall be slowed down by it.
fn remove(fixtures: &Fixtures, path: &Path) -> Result<(), String> {
    if path.exists() {
        fs::remove_file(path).ok();
    }
    fixtures.settle()
}

#[derive(Clone, Copy)]
enum Kind {
    Plain,
    Compress(&'static str),
    Expand(&'static str),
}

impl Kind {
    fn source(self, fixtures: &Fixtures) -> Result<PathBuf, String> {
        match self {
            Self::Plain | Self::Compress(_) => fixtures.binaries(),
            Self::Expand(kind) => fixtures.compressed(kind),
        }
    }

    /// The command line that qemu-img and cowl share.
    fn arguments(self, source: &Path, target: &Path) -> Vec<String> {
        let mut all = words(match self {
            Self::Plain => "convert -f raw -O qcow2",
            Self::Compress("zlib") => "convert -f raw -O qcow2 -c -o compression_type=zlib",
            Self::Compress(_) => "convert -f raw -O qcow2 -c -o compression_type=zstd",
            Self::Expand(_) => "convert -f qcow2 -O raw",
        });
        all.push(source.to_string_lossy().into_owned());
        all.push(target.to_string_lossy().into_owned());
        all
    }

    fn formats(self) -> (&'static str, &'static str) {
        match self {
            Self::Plain | Self::Compress(_) => ("raw", "qcow2"),
            Self::Expand(_) => ("qcow2", "raw"),
        }
    }
}

fn target(fixtures: &Fixtures, key: &str, contender: Contender) -> PathBuf {
    fixtures.path(&format!("{key}.{}.target", contender.name()))
}

/// The rows of one convert: as users type it, which makes only cowl's target durable; and twice
/// with both doing the same.
fn convert(keys: [&'static str; 3], title: String, kind: Kind, ratio: f64) -> Group {
    let alike = "  neither flushed at the end (-t unsafe)".to_owned();
    let durable = "  both flushed at the end (-t writeback)".to_owned();
    let [key, key_alike, key_durable] = keys;
    let rows = vec![
        row(key, title, Unit::Seconds, ratio),
        row(key_alike, alike, Unit::Seconds, ratio),
        row(key_durable, durable, Unit::Seconds, ratio),
    ];
    let mut group = Group::new(rows);
    group.repeat_max = 3;
    if matches!(kind, Kind::Plain) {
        // A second each, most of it the disk's, whose speed changes from one to the next.
        (group.repeat_times, group.repeat_max) = (CLOSE, 9);
    }
    group.prepare = Box::new(move |fixtures| warm(&kind.source(fixtures)?));
    match kind {
        Kind::Plain => group.add(Contender::Raw, move |fixtures| by_copying(fixtures, key)),
        _ => group.leave_out(Contender::Raw, "nothing to compare with"),
    }
    group.add(Contender::Qemu, move |fixtures| {
        let target = target(fixtures, key, Contender::Qemu);
        remove(fixtures, &target)?;
        let mut arguments = kind.arguments(&kind.source(fixtures)?, &target);
        // What its users are told to add where there is work for more than one core.
        if !matches!(kind, Kind::Plain) {
            arguments.splice(1..1, words("-m 16 -W"));
        }
        // It flushes nothing unless asked: the same run counts in two rows.
        let default = seconds(&fixtures.qemu_img, &arguments)?;
        remove(fixtures, &target)?;
        arguments.splice(1..1, words("-t writeback"));
        let durable = seconds(&fixtures.qemu_img, &arguments)?;
        Ok([default.clone(), default, durable].concat())
    });
    group.leave_out(Contender::Imago, NO_CONVERT);
    match kind {
        Kind::Compress(_) => group.leave_out(Contender::Qcow2Rs, NO_COMPRESSION),
        Kind::Expand("zstd") => {
            group.leave_out(Contender::Qcow2Rs, "does not read zstd clusters");
        }
        _ => group.add(Contender::Qcow2Rs, move |fixtures| by_rqcow2(fixtures, key, kind)),
    }
    group.add(Contender::Cowl, move |fixtures| {
        let target = target(fixtures, key, Contender::Cowl);
        let source = kind.source(fixtures)?;
        remove(fixtures, &target)?;
        let mut arguments = kind.arguments(&source, &target);
        // It flushes unless told not to: the same run counts in two rows.
        let default = seconds(&fixtures.cowl, &arguments)?;
        remove(fixtures, &target)?;
        arguments.splice(1..1, words("-t unsafe"));
        let alike = seconds(&fixtures.cowl, &arguments)?;
        Ok([default.clone(), alike, default].concat())
    });
    group.verify = Box::new(move |fixtures| verify(fixtures, key, kind));
    group
}

/// The disk's part of a convert that ends with a flush, and the kernel's of one that does not.
fn by_copying(fixtures: &Fixtures, key: &str) -> Sample {
    let (source, target) = (fixtures.binaries()?, target(fixtures, key, Contender::Raw));
    remove(fixtures, &target)?;
    let durable = copy(&source, &target, Copy::Durable)?;
    remove(fixtures, &target)?;
    let alike = copy(&source, &target, Copy::Unflushed)?;
    Ok(vec![durable, alike, durable])
}

fn by_rqcow2(fixtures: &Fixtures, key: &str, kind: Kind) -> Sample {
    let target = target(fixtures, key, Contender::Qcow2Rs);
    remove(fixtures, &target)?;
    let (from, to) = kind.formats();
    let source = kind.source(fixtures)?;
    let arguments = [
        "convert".to_owned(),
        "-f".to_owned(),
        from.to_owned(),
        "-O".to_owned(),
        to.to_owned(),
        "-o".to_owned(),
        target.to_string_lossy().into_owned(),
        source.to_string_lossy().into_owned(),
    ];
    // Whether it flushes is its own affair; it has no such option.
    seconds(&fixtures.rqcow2, &arguments).map(|numbers| numbers.repeat(3))
}

/// Every target that is there has to read as its source does. qemu-img is the judge.
fn verify(fixtures: &Fixtures, key: &str, kind: Kind) -> Result<(), String> {
    let (from, to) = kind.formats();
    let source = kind.source(fixtures)?.to_string_lossy().into_owned();
    for contender in Contender::ALL {
        let target = target(fixtures, key, contender);
        if !target.exists() {
            continue;
        }
        let path = target.to_string_lossy().into_owned();
        let compare = ["compare", "-f", from, "-F", to, &source, &path];
        process::run(&fixtures.qemu_img, &compare)
            .map_err(|error| format!("{} did not do the work: {error}", contender.name()))?;
        fs::remove_file(&target).ok();
    }
    Ok(())
}

fn check() -> Group {
    let title = "check, 1 TiB of preallocated metadata".to_owned();
    let mut group = Group::new(vec![row("check", title, Unit::Seconds, 0.33)]);
    group.prepare = Box::new(|fixtures| warm(&fixtures.huge()?));
    let arguments = |fixtures: &Fixtures| {
        fixtures.huge()?;
        Ok::<_, String>(words(&format!("check -f qcow2 {}", fixtures.text("huge.qcow2"))))
    };
    group.leave_out(Contender::Raw, "nothing to compare with");
    group.add(Contender::Qemu, move |fixtures| seconds(&fixtures.qemu_img, &arguments(fixtures)?));
    group.leave_out(Contender::Imago, NO_CHECK);
    group.add(Contender::Qcow2Rs, |fixtures| {
        let huge = fixtures.huge()?.to_string_lossy().into_owned();
        seconds(&fixtures.rqcow2, &["check".to_owned(), huge])
    });
    group.add(Contender::Cowl, move |fixtures| seconds(&fixtures.cowl, &arguments(fixtures)?));
    group
}

fn create() -> Group {
    let title = "create 1 TiB with metadata".to_owned();
    let mut group = Group::new(vec![row("create", title, Unit::Seconds, 0.33)]);
    let work = |fixtures: &Fixtures, contender: Contender, program: &Path| {
        let target = target(fixtures, "create", contender);
        remove(fixtures, &target)?;
        let mut arguments = words("create -q -f qcow2 -o preallocation=metadata");
        arguments.push(target.to_string_lossy().into_owned());
        arguments.push(fixtures.huge_bytes.to_string());
        seconds(program, &arguments)
    };
    group.leave_out(Contender::Raw, "nothing to compare with");
    group.add(Contender::Qemu, move |fixtures| work(fixtures, Contender::Qemu, &fixtures.qemu_img));
    group.leave_out(Contender::Imago, "its files are not comparable: 1 TiB is written whole");
    group.leave_out(Contender::Qcow2Rs, NO_CREATE);
    group.add(Contender::Cowl, move |fixtures| work(fixtures, Contender::Cowl, &fixtures.cowl));
    group.verify = Box::new(|fixtures| {
        for contender in [Contender::Cowl, Contender::Qemu] {
            let made = target(fixtures, "create", contender);
            if made.exists() {
                let path = made.to_string_lossy().into_owned();
                process::run(&fixtures.qemu_img, &["check", "-q", "-f", "qcow2", &path])?;
                fs::remove_file(made).ok();
            }
        }
        Ok(())
    });
    group
}

fn memory() -> Group {
    let title = "peak memory, 1 TiB under random load".to_owned();
    let mut group = Group::new(vec![row("memory", title, Unit::Mebibytes, 1.0)]);
    group.repeat_max = 3;
    group.prepare = Box::new(|fixtures| warm(&fixtures.huge()?));
    let mebibytes = |bytes: u64| vec![bytes as f64 / f64::from(1 << 20)];
    group.leave_out(Contender::Raw, "holds no tables");
    group.add(Contender::Qemu, move |fixtures| {
        let huge = fixtures.huge()?.to_string_lossy().into_owned();
        let step = walk_step(fixtures.huge_bytes);
        let text = format!("bench -f qcow2 -t writeback -i io_uring -s 4096 -d 32 -S {step}");
        let mut arguments = words(&text);
        arguments.extend(["-c".to_owned(), "300000".to_owned(), huge]);
        Ok(mebibytes(process::peak_memory(&fixtures.qemu_img, &arguments)?))
    });
    group.leave_out(Contender::Imago, "its cache has a fixed size of 128 tables, 8 MiB");
    group.leave_out(Contender::Qcow2Rs, "its caches are sized by the image's slices");
    group.add(Contender::Cowl, move |fixtures| {
        let huge = fixtures.huge()?.to_string_lossy().into_owned();
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        Ok(mebibytes(process::peak_memory(&own, &["--child-read".to_owned(), huge])?))
    });
    group
}
