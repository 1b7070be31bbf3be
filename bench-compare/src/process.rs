//! Other programs, and what they cost.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::sys;

/// What a finished program took.
pub(crate) struct Finished {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    pub(crate) output: String,
}

/// Runs a program to its end; an error when it fails.
pub(crate) fn run<A: AsRef<OsStr>>(program: &Path, arguments: &[A]) -> Result<Finished, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    sys::deepen_stack(&mut command);
    let described = || {
        let words: Vec<_> =
            arguments.iter().map(|word| word.as_ref().to_string_lossy().into_owned()).collect();
        format!("{} {}", program.display(), words.join(" "))
    };
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("{}: {error}", described()))?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    // The outputs are a few lines: neither can fill its pipe while the other is read.
    let read = |pipe: &mut dyn std::io::Read| {
        let mut text = String::new();
        pipe.read_to_string(&mut text).map(|_| text).unwrap_or_default()
    };
    let output = stdout.as_mut().map(|pipe| read(pipe)).unwrap_or_default();
    let errors = stderr.as_mut().map(|pipe| read(pipe)).unwrap_or_default();
    let (status, usage) =
        sys::wait(child.id()).map_err(|error| format!("{}: {error}", described()))?;
    let wall = start.elapsed();
    if status != 0 {
        return Err(format!("{} failed with status {status:#x}: {errors}", described()));
    }
    Ok(Finished { wall, cpu: usage.cpu, output })
}

/// Runs a program to its end, and gives the most memory that it held at once, in bytes.
///
/// The kernel's figure for a child that has ended starts with what its parent held; so the program
/// is looked at while it runs.
pub(crate) fn peak_memory<A: AsRef<OsStr>>(program: &Path, arguments: &[A]) -> Result<u64, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    sys::deepen_stack(&mut command);
    let failed = |error: std::io::Error| format!("{}: {error}", program.display());
    let mut child = command.spawn().map_err(failed)?;
    let mut peak = None;
    loop {
        match child.try_wait().map_err(failed)? {
            Some(status) if status.success() => break,
            Some(status) => return Err(format!("{} failed with {status}", program.display())),
            // It only grows; the last look counts, as the first ones may come before the program.
            None => peak = high_water(&child.id().to_string()).or(peak),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    peak.ok_or_else(|| format!("{} ended before its memory was seen", program.display()))
}

/// The most memory of a process so far, in bytes: of one by its number, or of this one, `self`.
pub(crate) fn high_water(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kibibytes << 10)
}

/// Processor time of a running process so far, all its threads included.
pub(crate) fn cpu_of(id: u32) -> Result<Duration, String> {
    /// What the kernel counts in here, whatever its own clock does.
    const TICKS_PER_SECOND: u64 = 100;
    let path = format!("/proc/{id}/stat");
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
    // The name of the program, in parentheses, may hold anything; fields 14 and 15 are behind it.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut numbers = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(user)), Some(Ok(system))) => {
            Ok(Duration::from_millis((user + system) * 1000 / TICKS_PER_SECOND))
        }
        _ => Err(format!("{path} is not understood")),
    }
}
