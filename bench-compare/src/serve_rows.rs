//! The rows about serving: fio and nbdcopy against qemu-nbd and `cowl serve`, on the same content.
//!
//! A sample starts the server, lets the client work, and stops it: only the client's time counts,
//! and the processor time of the server meanwhile.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::fixtures::{Fixtures, warm};
use crate::options::Options;
use crate::process;
use crate::row::{Bar, Contender, Group, Row, Unit};

const NO_SERVER: &str = "has no NBD server";

/// How long a server may take to start or to stop.
const PATIENCE: Duration = Duration::from_secs(30);

/// What fio does.
#[derive(Clone, Copy)]
struct Load {
    keys: [&'static str; 2],
    pattern: &'static str,
    block: &'static str,
    depth: u32,
    connections: u32,
    /// What cowl has to reach, as a part of qemu-nbd's requests a second.
    bar: f64,
}

const LOADS: [Load; 10] = [
    load(["serve-read-1-1", "serve-read-1-1-cpu"], "randread", 1, 1, 1.0),
    load(["serve-read-32-1", "serve-read-32-1-cpu"], "randread", 32, 1, 1.0),
    load(["serve-read-1-4", "serve-read-1-4-cpu"], "randread", 1, 4, 1.0),
    load(["serve-read-32-4", "serve-read-32-4-cpu"], "randread", 32, 4, 1.5),
    load(["serve-write-1-1", "serve-write-1-1-cpu"], "randwrite", 1, 1, 1.0),
    load(["serve-write-32-1", "serve-write-32-1-cpu"], "randwrite", 32, 1, 1.0),
    load(["serve-write-1-4", "serve-write-1-4-cpu"], "randwrite", 1, 4, 1.0),
    load(["serve-write-32-4", "serve-write-32-4-cpu"], "randwrite", 32, 4, 1.5),
    Load { block: "1m", ..load(["serve-seqread", "serve-seqread-cpu"], "read", 8, 1, 1.0) },
    Load { block: "1m", ..load(["serve-seqwrite", "serve-seqwrite-cpu"], "write", 8, 1, 1.0) },
];

const fn load(
    keys: [&'static str; 2],
    pattern: &'static str,
    depth: u32,
    connections: u32,
    bar: f64,
) -> Load {
    Load { keys, pattern, block: "4k", depth, connections, bar }
}

pub(crate) fn groups(options: &Options) -> Vec<Group> {
    let mut groups: Vec<_> = LOADS.into_iter().map(|load| group(load, options)).collect();
    groups.push(copy("serve-copy-out", "nbdcopy out of the export", Direction::Out));
    groups.push(copy("serve-copy-in", "nbdcopy into the export", Direction::In));
    groups
}

fn group(load: Load, options: &Options) -> Group {
    let Load { keys, pattern, block, depth, connections, bar } = load;
    let title = format!("NBD {block} {pattern}, depth {depth}, {connections} connections");
    let row = |key, title, unit, ratio| Row {
        key,
        title,
        unit,
        bars: vec![Bar { reference: Contender::Qemu, ratio }],
    };
    let mut group = Group::new(vec![
        row(keys[0], title.clone(), Unit::PerSecond, bar),
        row(keys[1], format!("{title}: processor time"), Unit::CpuMicroseconds, 1.0),
    ]);
    // fio counts whole seconds badly when there are few of them.
    let time = (options.sample * 3).max(Duration::from_secs(1));
    for contender in [Contender::Qemu, Contender::Cowl] {
        let cowl = options.cowl.clone();
        group.add(contender, move |fixtures| {
            let server = Server::start(contender, cowl.as_deref(), fixtures)?;
            let before = server.cpu()?;
            let requests = fio(load, time, &server.uri(), fixtures.data_bytes())?;
            let cpu = server.cpu()? - before;
            server.stop()?;
            let each = cpu.as_secs_f64() * 1e6 / requests.count;
            Ok(vec![requests.per_second, each])
        });
    }
    others_have_none(&mut group);
    group
}

fn others_have_none(group: &mut Group) {
    for contender in [Contender::Imago, Contender::Qcow2Rs] {
        group.leave_out(contender, NO_SERVER);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Out,
    In,
}

fn copy(key: &'static str, title: &'static str, direction: Direction) -> Group {
    let mut group = Group::new(vec![Row {
        key,
        title: title.to_owned(),
        unit: Unit::Seconds,
        bars: vec![Bar { reference: Contender::Qemu, ratio: 1.0 }],
    }]);
    for contender in [Contender::Qemu, Contender::Cowl] {
        group.add(contender, move |fixtures| {
            let raw = fixtures.binaries()?;
            warm(&raw)?;
            let server = Server::start(contender, None, fixtures)?;
            let (raw, uri) = (raw.to_string_lossy().into_owned(), server.uri());
            let arguments = match direction {
                Direction::Out => vec![uri, "null:".to_owned()],
                Direction::In => vec!["--flush".to_owned(), raw.clone(), uri],
            };
            let finished = process::run(Path::new("nbdcopy"), &arguments)?;
            let image = server.image.clone();
            server.stop()?;
            if direction == Direction::In {
                let image = image.to_string_lossy().into_owned();
                let same = ["compare", "-f", "raw", "-F", "qcow2", &raw, &image];
                process::run(Path::new("qemu-img"), &same)?;
            }
            Ok(vec![finished.wall.as_secs_f64()])
        });
    }
    others_have_none(&mut group);
    group
}

/// A serving process on an image of its own.
struct Server {
    child: Child,
    socket: PathBuf,
    image: PathBuf,
}

impl Server {
    fn start(
        contender: Contender,
        cowl: Option<&Path>,
        fixtures: &Fixtures,
    ) -> Result<Self, String> {
        let source = fixtures.plain()?;
        // Each writes to its own copy, the same one every time.
        let image = fixtures.path(&format!("serve-{}.qcow2", contender.name()));
        if !image.exists() {
            std::fs::copy(&source, &image).map_err(|error| error.to_string())?;
        }
        fixtures.settle()?;
        warm(&image)?;
        let socket = fixtures.path(&format!("serve-{}.socket", contender.name()));
        std::fs::remove_file(&socket).ok();
        let mut command = match contender {
            Contender::Qemu => {
                let mut command = Command::new("qemu-nbd");
                command.args(["-t", "--shared=16", "--aio=io_uring", "--cache=writeback"]);
                command.args(["--discard=unmap", "-f", "qcow2"]);
                command
            }
            _ => {
                let built = cowl.map_or_else(crate::cowl_program::build, |path| Ok(path.into()))?;
                let mut command = Command::new(built);
                command.args(["serve", "-q", "--log-level=error", "-f", "qcow2"]);
                command
            }
        };
        let command = command.arg("-k").arg(&socket).arg(&image).stdin(Stdio::null());
        let child = command.spawn().map_err(|error| format!("{command:?}: {error}"))?;
        let server = Self { child, socket, image };
        let start = Instant::now();
        while !server.socket.exists() {
            if PATIENCE < start.elapsed() {
                return Err(format!("{} does not start to serve", contender.name()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(server)
    }

    fn uri(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Processor time of the process so far.
    fn cpu(&self) -> Result<Duration, String> {
        process::cpu_of(self.child.id())
    }

    /// Ends it in order; its image has to be clean then.
    fn stop(mut self) -> Result<(), String> {
        process::run(Path::new("kill"), &["-TERM".to_owned(), self.child.id().to_string()])?;
        let status = self.child.wait().map_err(|error| error.to_string())?;
        if !status.success() {
            return Err(format!("the server ended with {status}"));
        }
        let image = self.image.to_string_lossy().into_owned();
        process::run(Path::new("qemu-img"), &["check", "-q", &image]).map(drop)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct Requests {
    per_second: f64,
    count: f64,
}

fn fio(load: Load, time: Duration, uri: &str, size: u64) -> Result<Requests, String> {
    let arguments = [
        "--name=serve".to_owned(),
        "--ioengine=nbd".to_owned(),
        format!("--uri={uri}"),
        format!("--rw={}", load.pattern),
        format!("--bs={}", load.block),
        format!("--iodepth={}", load.depth),
        format!("--numjobs={}", load.connections),
        format!("--size={size}"),
        "--time_based".to_owned(),
        format!("--runtime={}ms", time.as_millis()),
        "--group_reporting".to_owned(),
        "--norandommap".to_owned(),
        "--randrepeat=1".to_owned(),
        "--verify_state_save=0".to_owned(),
        "--output-format=json".to_owned(),
    ];
    let output = process::run(Path::new("fio"), &arguments)?.output;
    // fio may say something before its JSON.
    let json = output.find('{').map_or("", |at| &output[at..]);
    let report: serde_json::Value =
        serde_json::from_str(json).map_err(|error| format!("fio's report: {error}"))?;
    let kind = if load.pattern.ends_with("write") { "write" } else { "read" };
    let number = |name: &str| {
        let number = report["jobs"][0][kind][name].as_f64().filter(|&number| 0.0 < number);
        number.ok_or(format!("fio reports no {name}"))
    };
    Ok(Requests { per_second: number("iops")?, count: number("total_ios")? })
}
