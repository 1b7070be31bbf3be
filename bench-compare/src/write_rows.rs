//! The rows about writing.
//!
//! Each sample writes to an image of its own, made by QEMU, and every write needs a cluster that
//! the image does not have yet. All contenders write the same blocks in the same order. Afterwards
//! QEMU compares the whole disk with a raw file of what it has to hold.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;

use crate::fixtures::{Fixtures, warm};
use crate::options::Options;
use crate::process;
use crate::row::{Bar, CLOSE, Contender, Group, Row, Sample, Unit};
use crate::writers::{self, Flush, Writing};

const CLUSTER: u64 = 64 << 10;

/// Where in its cluster a scattered write goes: an overlay has to copy what is before and after.
const IN_CLUSTER: u64 = 24 << 10;

/// What the image shows before the first write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Zeros,
    /// The data of the plain image.
    Backing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// By a large step, as `qemu-img bench` can.
    Walk,
    Sequential,
}

#[derive(Clone, Copy)]
struct Plan {
    key: &'static str,
    /// Size of the disk, a power of two.
    size: u64,
    block: usize,
    count: u64,
    depth: u64,
    order: Order,
    flush: Flush,
    base: Base,
    /// See [`CLOSE`].
    times: usize,
}

impl Plan {
    fn writing(self, image: PathBuf) -> Writing {
        let Self { size, block, count, depth, flush, .. } = self;
        assert!(size.is_power_of_two());
        let (first, step) = match self.order {
            Order::Walk => (IN_CLUSTER, cluster_step(size)),
            Order::Sequential => (0, block as u64),
        };
        assert!(count <= size / CLUSTER);
        Writing { image, size, block, count, depth, first, step, flush }
    }
}

/// An odd number of clusters near the golden section of the size: a disk of a power of two sees
/// every cluster once before the first one comes again. `qemu-img bench` takes no step of 2 GiB.
fn cluster_step(size: u64) -> u64 {
    const STEP_MAX: u64 = 1 << 31;
    let pairs = (size.min(STEP_MAX) as f64 * 0.618) as u64 / (2 * CLUSTER);
    pairs * 2 * CLUSTER + CLUSTER
}

pub(crate) fn groups(options: &Options) -> Vec<Group> {
    let count = |full: u64| if options.quick { full / 16 } else { full };
    let random = Plan {
        key: "write-rand",
        size: 4 << 30,
        block: 4096,
        count: count(24_576),
        depth: 32,
        order: Order::Walk,
        flush: Flush::AtEnd,
        base: Base::Zeros,
        times: 1,
    };
    let sequential = Plan {
        key: "write-seq",
        size: 1 << 30,
        block: 64 << 10,
        count: count(16_384),
        depth: 8,
        order: Order::Sequential,
        // A gigabyte for the disk each time, whose speed changes from one to the next.
        times: CLOSE,
        ..random
    };
    let flushed = Plan {
        key: "write-flush",
        count: count(1_536),
        depth: 1,
        flush: Flush::AfterEach,
        ..random
    };
    let overlay = Plan {
        key: "write-overlay",
        size: options.data_bytes(),
        count: count(8_192),
        base: Base::Backing,
        ..random
    };
    let bar = |reference, ratio| Bar { reference, ratio };
    vec![
        group(
            random,
            "4K random allocating write, depth 32",
            vec![bar(Contender::Raw, 0.95), bar(Contender::Qemu, 2.5)],
        ),
        group(
            sequential,
            "64K sequential allocating write, depth 8",
            vec![bar(Contender::Raw, 1.0)],
        ),
        group(
            flushed,
            "4K allocating write + flush, depth 1",
            vec![bar(Contender::Qemu, 1.7), bar(Contender::Imago, 1.0)],
        ),
        group(
            overlay,
            "first touch of an overlay, 4K write, depth 32",
            vec![bar(Contender::Qemu, 1.2)],
        ),
    ]
}

fn group(plan: Plan, title: &str, bars: Vec<Bar>) -> Group {
    let row = Row { key: plan.key, title: title.to_owned(), unit: Unit::PerSecond, bars };
    let mut group = Group::new(vec![row]);
    group.repeat_times = plan.times;
    group.prepare = Box::new(move |fixtures| {
        if plan.base == Base::Backing {
            // Nobody shall be the one who reads it from the disk.
            warm(&fixtures.plain()?)?;
        }
        expected(fixtures, plan).map(|_| ())
    });
    match plan.base {
        Base::Zeros => add(&mut group, plan, Contender::Raw, writers::raw::by_its_best),
        Base::Backing => group.leave_out(Contender::Raw, "a raw file has no overlay"),
    }
    group.add(Contender::Qemu, move |fixtures| {
        let write = |writing: &Writing| writers::qemu::by_bench(&fixtures.qemu_img, writing);
        sample(fixtures, plan, Contender::Qemu, write)
    });
    add(&mut group, plan, Contender::Imago, writers::imago::by_futures);
    add(&mut group, plan, Contender::Qcow2Rs, writers::qcow2_rs::by_its_best);
    let barriers = Rc::new(Cell::new(0));
    let counted = Rc::clone(&barriers);
    group.add(Contender::Cowl, move |fixtures| {
        sample(fixtures, plan, Contender::Cowl, |writing| {
            let written = writers::cowl::by_its_best(writing)?;
            counted.set(written.barriers);
            Ok(vec![written.rate])
        })
    });
    group.note = Box::new(move || {
        let (barriers, count) = (barriers.get(), plan.count);
        let work = match plan.flush {
            Flush::AtEnd => "writes and the final flush",
            Flush::AfterEach => "writes, each with a flush",
        };
        (0 < barriers)
            .then(|| format!("{}: cowl made {barriers} barriers for {count} {work}", plan.key))
    });
    group
}

fn add(group: &mut Group, plan: Plan, contender: Contender, write: fn(&Writing) -> Sample) {
    group.add(contender, move |fixtures| sample(fixtures, plan, contender, write));
}

/// Makes a fresh image, writes to it, and looks at the result; only the writing is measured.
fn sample(
    fixtures: &Fixtures,
    plan: Plan,
    contender: Contender,
    write: impl Fn(&Writing) -> Sample,
) -> Sample {
    let format = if contender == Contender::Raw { "raw" } else { "qcow2" };
    let target = create(fixtures, plan, contender, format)?;
    let result = write(&plan.writing(target.clone()));
    let verified = match &result {
        Ok(_) => verify(fixtures, plan, &target, format),
        Err(_) => Ok(()),
    };
    fs::remove_file(&target).map_err(|error| error.to_string())?;
    verified.and(result)
}

fn create(
    fixtures: &Fixtures,
    plan: Plan,
    contender: Contender,
    format: &str,
) -> Result<PathBuf, String> {
    let target = fixtures.path(&format!("{}.{}.target", plan.key, contender.name()));
    let (path, size) = (target.to_string_lossy(), plan.size.to_string());
    let mut arguments = vec!["create", "-q", "-f", format];
    // An absolute name: one of the libraries takes it relative to where it runs.
    let backing = fs::canonicalize(fixtures.plain_path()).unwrap_or_default();
    let backing = backing.to_string_lossy();
    if plan.base == Base::Backing {
        arguments.extend(["-b", &backing, "-F", "qcow2"]);
    }
    arguments.extend([path.as_ref(), size.as_str()]);
    process::run(&fixtures.qemu_img, &arguments)?;
    fixtures.settle()?;
    Ok(target)
}

/// Nobody is fast by doing nothing, or by leaving a damaged image: QEMU is the judge.
fn verify(fixtures: &Fixtures, plan: Plan, target: &Path, format: &str) -> Result<(), String> {
    let path = target.to_string_lossy();
    if format == "qcow2" {
        // Clusters that nobody uses cost space and harm nothing.
        const LEAKS_ONLY: i32 = 3;
        let (status, said) = judge(fixtures, &["check", "-q", "-f", "qcow2", &path])?;
        if status != 0 && status != LEAKS_ONLY {
            return Err(format!("the image is damaged after the writes: {said}"));
        }
    }
    let expected = expected(fixtures, plan)?;
    let expected = expected.to_string_lossy();
    match judge(fixtures, &["compare", "-f", format, "-F", "raw", &path, &expected])? {
        (0, _) => Ok(()),
        (_, said) => Err(format!("the image does not hold what was written: {said}")),
    }
}

/// The exit status of qemu-img, and the first line that it said.
fn judge(fixtures: &Fixtures, arguments: &[&str]) -> Result<(i32, String), String> {
    let output = Command::new(&fixtures.qemu_img)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| error.to_string())?;
    let status = output.status.code().ok_or("qemu-img was killed")?;
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said).lines().next().unwrap_or_default().to_owned();
    Ok((status, said))
}

/// A raw file of what the disk has to hold in the end.
fn expected(fixtures: &Fixtures, plan: Plan) -> Result<PathBuf, String> {
    let path = fixtures.path(&format!("{}.{}.expected", plan.key, plan.count));
    if !path.exists() {
        let unfinished = fixtures.path(&format!("{}.unfinished", plan.key));
        if plan.base == Base::Backing {
            fs::copy(fixtures.binaries()?, &unfinished).map_err(|error| error.to_string())?;
        } else if unfinished.exists() {
            fs::remove_file(&unfinished).map_err(|error| error.to_string())?;
        }
        let write = || {
            let file =
                OpenOptions::new().write(true).create(true).truncate(false).open(&unfinished)?;
            file.set_len(plan.size)?;
            let writing = plan.writing(PathBuf::new());
            let payload = writing.payload();
            for at in writing.offsets() {
                file.write_all_at(&payload, at)?;
            }
            fs::rename(&unfinished, &path)
        };
        write().map_err(|error: std::io::Error| error.to_string())?;
    }
    Ok(path)
}
