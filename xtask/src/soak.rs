//! A long mixed load on one serving process: NBD, a mounted file and a virtual machine's rings at
//! once, clients killed in the middle of their work. Nothing may grow, and the image ends clean.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::command::{cargo, exists, root, run};
use crate::say;

/// What a process may hold more at the end than after the warm-up, in KiB: allocators and caches
/// settle slowly, and a leak of one request's memory a second is a multiple of it.
const GROWTH_MAX_KIB: u64 = 48 << 10;

/// Descriptors likewise: a client more that comes or goes while it is counted.
const DESCRIPTORS_GROWTH_MAX: usize = 8;

/// The part of the time after which the first sample counts.
const WARM_UP: u32 = 4;

/// How often to look.
const PACE: Duration = Duration::from_secs(5);

/// How long a client works before it is killed or has to be done.
const TURN_SECONDS: u64 = 12;

pub(crate) fn run_soak(arguments: &[String]) -> Result<(), String> {
    let minutes: f64 = match arguments {
        [] => 15.0,
        [flag, minutes] if flag == "--minutes" => {
            minutes.parse().map_err(|_| format!("'{minutes}' is no number of minutes"))?
        }
        _ => return Err("soak takes --minutes N".to_owned()),
    };
    for program in ["fio", "qemu-img", "kill"] {
        if !exists(program) {
            return Err(format!("{program} is not installed"));
        }
    }
    run(cargo().args(["build", "--release", "--package", "cowl-cli"]))?;
    let load = ["build", "--release", "--package", "cowl-vhost-user", "--example", "load"];
    run(cargo().args(load))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root().join("target"), PathBuf::from);
    let folder = target.join("soak");
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let outcome = soak(&folder, &target.join("release"), Duration::from_secs_f64(minutes * 60.0));
    fs::remove_dir_all(&folder).ok();
    outcome
}

fn soak(folder: &Path, programs: &Path, time: Duration) -> Result<(), String> {
    let image = folder.join("disk.qcow2");
    run(Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]).arg(&image).arg("2G"))?;
    fs::write(folder.join("file"), b"").map_err(|error| error.to_string())?;
    let log = fs::File::create(folder.join("log")).map_err(|error| error.to_string())?;
    let server = Command::new(programs.join("cowl"))
        .args(["serve", "-q", "-k", "socket", "--log-level=warn"])
        .args(["--export", "image=disk.qcow2,vhost-user=vhost,fuse=file"])
        .current_dir(folder)
        .stderr(log)
        .spawn();
    let mut server = Killed(server.map_err(|error| format!("cowl serve: {error}"))?);
    let start = Instant::now();
    while !folder.join("socket").exists() || !folder.join("vhost").exists() {
        if Duration::from_secs(30) < start.elapsed() {
            return Err("cowl serve does not start".to_owned());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // The file is there from when it has the disk's size.
    let samples = load(folder, programs, server.0.id(), start, time)?;
    run(Command::new("kill").args(["-TERM", &server.0.id().to_string()]))?;
    let status = server.0.wait().map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("the server ended with {status}"));
    }
    run(Command::new("qemu-img").arg("check").arg(&image))?;
    let log = fs::read_to_string(folder.join("log")).unwrap_or_default();
    say(&format!("the server's log, {} lines:\n{}", log.lines().count(), first_lines(&log)));
    judge(&samples)
}

fn first_lines(text: &str) -> String {
    text.lines().take(10).map(|line| format!("  {line}\n")).collect()
}

/// What the server held at a moment.
#[derive(Clone, Copy, Debug)]
struct Sample {
    seconds: u64,
    resident_kib: u64,
    descriptors: usize,
}

/// Keeps clients of all kinds at work until `time` is over.
fn load(
    folder: &Path,
    programs: &Path,
    server: u32,
    start: Instant,
    time: Duration,
) -> Result<Vec<Sample>, String> {
    let mut samples = Vec::new();
    let (mut done, mut killed) = (0, 0);
    let mut places = Client::ALL.map(|kind| (kind, None::<(Killed, Instant, bool)>));
    let mut turn = 0_u64;
    let mut looked = Instant::now();
    while start.elapsed() < time {
        for (kind, place) in &mut places {
            if let Some((client, since, shall_die)) = place {
                let ended = client.0.try_wait().map_err(|error| error.to_string())?;
                let is_due = *shall_die && Duration::from_secs(TURN_SECONDS / 2) < since.elapsed();
                match ended {
                    Some(status) if status.success() => done += 1,
                    Some(status) => {
                        return Err(format!("{kind:?}: the client ended with {status}"));
                    }
                    None if is_due => {
                        client.0.kill().map_err(|error| error.to_string())?;
                        client.0.wait().map_err(|error| error.to_string())?;
                        killed += 1;
                    }
                    None => continue,
                }
            }
            turn += 1;
            let client = kind.start(folder, programs)?;
            // Every third is killed in the middle of its work.
            *place = Some((Killed(client), Instant::now(), turn.is_multiple_of(3)));
        }
        if PACE < looked.elapsed() {
            looked = Instant::now();
            let sample = sample(server, start)?;
            samples.push(sample);
            if samples.len().is_multiple_of(12) {
                let Sample { seconds, resident_kib, descriptors } = sample;
                say(&format!(
                    "{seconds} s: {resident_kib} KiB, {descriptors} descriptors, {done} clients \
                     done, {killed} killed\n"
                ));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    say(&format!("{done} clients ended their work, {killed} were killed\n"));
    Ok(samples)
}

/// A kind of client.
#[derive(Clone, Copy, Debug)]
enum Client {
    Nbd,
    NbdTrim,
    File,
    Machine,
}

impl Client {
    const ALL: [Self; 4] = [Self::Nbd, Self::NbdTrim, Self::File, Self::Machine];

    fn start(self, folder: &Path, programs: &Path) -> Result<Child, String> {
        let seconds = TURN_SECONDS.to_string();
        let mut command = match self {
            Self::Machine => {
                let mut command = Command::new(programs.join("examples/load"));
                command.args(["vhost", "write", "2", "16", &seconds, "2048", "4096"]);
                command
            }
            _ => {
                let mut command = Command::new("fio");
                command.args(["--name=soak", "--time_based", "--output=/dev/null"]);
                command.args([&format!("--runtime={seconds}"), "--randrepeat=0"]);
                command
            }
        };
        let uri = format!("--uri=nbd+unix:///?socket={}", folder.join("socket").display());
        match self {
            Self::Machine => {}
            Self::Nbd => {
                command.args(["--ioengine=nbd", &uri, "--rw=randrw", "--bsrange=512-256k"]);
                command.args(["--iodepth=16", "--numjobs=2", "--size=1g", "--fsync=100"]);
            }
            Self::NbdTrim => {
                command.args(["--ioengine=nbd", &uri, "--rw=trimwrite", "--bs=64k"]);
                command.args(["--iodepth=4", "--offset=1g", "--size=512m"]);
            }
            Self::File => {
                command.args(["--ioengine=psync", "--filename=file", "--rw=randrw", "--bs=16k"]);
                command.args(["--offset=1536m", "--size=512m", "--fsync=50"]);
            }
        }
        let quiet = command.current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.spawn().map_err(|error| format!("{quiet:?}: {error}"))
    }
}

/// A process that does not outlive its owner.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn sample(server: u32, start: Instant) -> Result<Sample, String> {
    let gone = |error: std::io::Error| format!("the server is gone: {error}");
    let status = fs::read_to_string(format!("/proc/{server}/status")).map_err(gone)?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
    Ok(Sample {
        seconds: start.elapsed().as_secs(),
        resident_kib: resident.ok_or("the kernel does not say what the server holds")?,
        descriptors: fs::read_dir(format!("/proc/{server}/fd")).map_err(gone)?.count(),
    })
}

/// Medians of the first and the last third after the warm-up: single samples meet clients that come
/// and go.
fn judge(samples: &[Sample]) -> Result<(), String> {
    let settled = &samples[samples.len() / WARM_UP as usize..];
    let third = settled.len() / 3;
    if third == 0 {
        return Err("too short to tell anything: give it more minutes".to_owned());
    }
    let (early, late) = (&settled[..third], &settled[settled.len() - third..]);
    let median = |samples: &[Sample], of: fn(&Sample) -> u64| {
        let mut values: Vec<_> = samples.iter().map(of).collect();
        values.sort_unstable();
        values[values.len() / 2]
    };
    let resident = [early, late].map(|part| median(part, |sample| sample.resident_kib));
    let descriptors = [early, late].map(|part| median(part, |sample| sample.descriptors as u64));
    say(&format!("resident KiB {resident:?}, descriptors {descriptors:?}, early and late\n"));
    if resident[0] + GROWTH_MAX_KIB < resident[1] {
        return Err("memory grew".to_owned());
    }
    if descriptors[0] + (DESCRIPTORS_GROWTH_MAX as u64) < descriptors[1] {
        return Err("descriptors leaked".to_owned());
    }
    Ok(())
}
