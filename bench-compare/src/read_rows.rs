//! The rows about reading.

use std::path::PathBuf;

use crate::fixtures::{Fixtures, warm};
use crate::options::Options;
use crate::readers::{self, Order, Reading};
use crate::row::{Bar, CLOSE, Contender, Group, Row, Sample, Unit};

/// Which image, and how it is read.
#[derive(Clone, Copy)]
struct Plan {
    image: fn(&Fixtures) -> Result<PathBuf, String>,
    raw: fn(&Fixtures) -> Result<PathBuf, String>,
    order: Order,
    depth: u64,
    threads: u64,
    direct: bool,
}

impl Plan {
    fn reading(
        self,
        fixtures: &Fixtures,
        image: PathBuf,
        sample: std::time::Duration,
    ) -> Result<Reading, String> {
        // The huge image is named by its size; all others hold the data.
        let is_huge = image.file_name().is_some_and(|name| name.to_string_lossy().contains("huge"));
        let size = if is_huge { fixtures.huge_bytes } else { fixtures.data_bytes() };
        let Self { order, depth, threads, direct, .. } = self;
        Ok(Reading { image, size, order, depth, threads, direct, sample })
    }
}

const PLAIN: Plan = Plan {
    image: Fixtures::plain,
    // The floor reads the image file itself, headers and all: the same pages, however the page
    // cache laid them out.
    raw: Fixtures::plain,
    order: Order::Random,
    depth: 1,
    threads: 1,
    direct: false,
};

pub(crate) fn groups(options: &Options) -> Vec<Group> {
    vec![
        hot(options, "hot-d1", "4K randread, hot, depth 1", Plan { depth: 1, ..PLAIN }),
        hot(options, "hot-d32", "4K randread, hot, depth 32", Plan { depth: 32, ..PLAIN }),
        hot(options, "hot-2t", "4K randread, hot, 2 threads", Plan { threads: 2, ..PLAIN }),
        direct(options),
        huge(options),
        compressed(options, "zlib-rand", "4K randread, zlib clusters, depth 32", zlib, 32),
        compressed(options, "zstd-rand", "4K randread, zstd clusters, depth 32", zstd, 32),
        compressed(options, "zstd-own", "  written by cowl, in blocks of 16 KiB", own, 32),
        compressed(options, "zlib-seq", "4K sequential read, zlib clusters", zlib, 1),
    ]
}

fn zlib(fixtures: &Fixtures) -> Result<PathBuf, String> {
    fixtures.compressed("zlib")
}

fn zstd(fixtures: &Fixtures) -> Result<PathBuf, String> {
    fixtures.compressed("zstd")
}

fn own(fixtures: &Fixtures) -> Result<PathBuf, String> {
    fixtures.compressed_by_cowl()
}

fn row(key: &'static str, title: &str, reference: Contender, ratio: f64) -> Row {
    let bars = vec![Bar { reference, ratio }];
    Row { key, title: title.to_owned(), unit: Unit::PerSecond, bars }
}

/// Adds a contender that reads the image.
fn add(
    group: &mut Group,
    contender: Contender,
    plan: Plan,
    options: &Options,
    read: fn(&Fixtures, &Reading) -> Sample,
) {
    let sample = options.sample;
    let path = if contender == Contender::Raw { plan.raw } else { plan.image };
    group.add(contender, move |fixtures| {
        let reading = plan.reading(fixtures, path(fixtures)?, sample)?;
        read(fixtures, &reading)
    });
}

fn warm_both(plan: Plan) -> impl Fn(&Fixtures) -> Result<(), String> {
    move |fixtures| {
        warm(&(plan.raw)(fixtures)?)?;
        warm(&(plan.image)(fixtures)?)
    }
}

fn qemu(fixtures: &Fixtures, reading: &Reading) -> Sample {
    readers::qemu::by_bench(&fixtures.qemu_img, reading)
}

fn hot(options: &Options, key: &'static str, title: &str, plan: Plan) -> Group {
    let mut group = Group::new(vec![row(key, title, Contender::Raw, 0.85)]);
    // A neighbour of this machine takes more of a sample than what is asked for.
    group.repeat_times = 2 * CLOSE;
    group.prepare = Box::new(warm_both(plan));
    // Pages that are there: no ring is faster than a loop of system calls.
    add(&mut group, Contender::Raw, plan, options, |_, reading| readers::raw::by_pread(reading));
    if plan.threads == 1 {
        add(&mut group, Contender::Qemu, plan, options, qemu);
    } else {
        group.leave_out(Contender::Qemu, "qemu-img bench has one thread");
    }
    add(&mut group, Contender::Imago, plan, options, |_, reading| {
        readers::imago::by_futures(reading)
    });
    if plan.threads == 1 {
        add(&mut group, Contender::Qcow2Rs, plan, options, |_, reading| {
            readers::qcow2_rs::by_its_best(reading)
        });
    } else {
        group.leave_out(Contender::Qcow2Rs, "an open image belongs to one thread");
    }
    add(&mut group, Contender::Cowl, plan, options, |_, reading| match reading.depth {
        1 => readers::cowl::by_blocking_calls(reading),
        _ => readers::cowl::by_ring(reading),
    });
    group
}

fn direct(options: &Options) -> Group {
    let plan = Plan { depth: 32, direct: true, ..PLAIN };
    let mut cpu = row("direct-cpu", "  processor time for each", Contender::Raw, 1.15);
    cpu.unit = Unit::CpuMicroseconds;
    let title = "4K randread, O_DIRECT, depth 32";
    let mut group = Group::new(vec![row("direct-d32", title, Contender::Raw, 0.97), cpu]);
    // The device's speed changes by more than what is asked for.
    group.repeat_times = 2 * CLOSE;
    group.prepare = Box::new(|fixtures| {
        fixtures.plain()?;
        Ok(())
    });
    add(&mut group, Contender::Raw, plan, options, |_, reading| readers::raw::by_ring(reading));
    add(&mut group, Contender::Qemu, plan, options, qemu);
    add(&mut group, Contender::Imago, plan, options, |_, reading| {
        readers::imago::by_futures(reading)
    });
    add(&mut group, Contender::Qcow2Rs, plan, options, |_, reading| {
        readers::qcow2_rs::by_its_best(reading)
    });
    add(&mut group, Contender::Cowl, plan, options, |_, reading| readers::cowl::by_ring(reading));
    group
}

fn huge(options: &Options) -> Group {
    let plan = Plan {
        image: Fixtures::huge,
        raw: Fixtures::huge_raw,
        depth: 32,
        order: Order::Walk,
        ..PLAIN
    };
    let title = "4K scattered read over 1 TiB, default cache";
    let mut group = Group::new(vec![row("tib", title, Contender::Qemu, 1.2)]);
    group.prepare = Box::new(warm_both(plan));
    add(&mut group, Contender::Raw, plan, options, |_, reading| readers::raw::by_pread(reading));
    add(&mut group, Contender::Qemu, plan, options, qemu);
    add(&mut group, Contender::Imago, plan, options, |_, reading| {
        readers::imago::by_futures(reading)
    });
    add(&mut group, Contender::Qcow2Rs, plan, options, |_, reading| {
        readers::qcow2_rs::by_its_best(reading)
    });
    add(&mut group, Contender::Cowl, plan, options, |_, reading| readers::cowl::by_ring(reading));
    group
}

fn compressed(
    options: &Options,
    key: &'static str,
    title: &str,
    image: fn(&Fixtures) -> Result<PathBuf, String>,
    depth: u64,
) -> Group {
    let order = if depth == 1 { Order::Sequential } else { Order::Random };
    let plan = Plan { image, raw: image, depth, order, ..PLAIN };
    let ratio = if depth == 1 { 10.0 } else { 2.0 };
    let mut group = Group::new(vec![row(key, title, Contender::Qemu, ratio)]);
    group.prepare = Box::new(warm_both(plan));
    // Nobody who uses these libraries is faster, unless a cluster is asked for twice.
    add(&mut group, Contender::Raw, plan, options, |_, reading| readers::library::alone(reading));
    add(&mut group, Contender::Qemu, plan, options, qemu);
    if key.starts_with("zstd") {
        group.leave_out(Contender::Imago, "does not read zstd clusters");
        group.leave_out(Contender::Qcow2Rs, "does not read zstd clusters");
    } else {
        add(&mut group, Contender::Imago, plan, options, |_, reading| {
            readers::imago::by_futures(reading)
        });
        add(&mut group, Contender::Qcow2Rs, plan, options, |_, reading| {
            readers::qcow2_rs::by_its_best(reading)
        });
    }
    add(&mut group, Contender::Cowl, plan, options, |_, reading| match reading.depth {
        1 => readers::cowl::by_blocking_calls(reading),
        _ => readers::cowl::by_ring(reading),
    });
    group
}
