//! Other programs, and what they and we cost.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What a finished program took.
pub(crate) struct Finished {
    pub(crate) wall: Duration,
    pub(crate) cpu: Duration,
    /// The most memory it held at once, in bytes.
    pub(crate) memory: u64,
    pub(crate) output: String,
}

/// Runs a program to its end; an error when it fails.
pub(crate) fn run<A: AsRef<OsStr>>(program: &Path, arguments: &[A]) -> Result<Finished, String> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // SAFETY: between fork and exec it makes one system call and allocates nothing.
    unsafe { command.pre_exec(deepen_stack) };
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
    let mut status = 0;
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    let id = libc::pid_t::try_from(child.id()).expect("a process number");
    // SAFETY: the child is ours and not waited for yet; both pointers are to live values.
    let waited = unsafe { libc::wait4(id, &mut status, 0, usage.as_mut_ptr()) };
    let wall = start.elapsed();
    // SAFETY: zeroed at first and filled by the kernel: integers throughout.
    let usage = unsafe { usage.assume_init() };
    if waited != id || status != 0 {
        return Err(format!("{} failed: {errors}", described()));
    }
    let memory = u64::try_from(usage.ru_maxrss).unwrap_or(0) * 1024;
    Ok(Finished { wall, cpu: cpu_of(&usage), memory, output })
}

/// `qemu-img bench` recurses once for each request that completes at once, and runs into the end of
/// its stack on hot files.
fn deepen_stack() -> std::io::Result<()> {
    const STACK_BYTES: libc::rlim_t = 4 << 30;
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a live value.
    unsafe { libc::getrlimit(libc::RLIMIT_STACK, &mut limit) };
    limit.rlim_cur = STACK_BYTES.min(limit.rlim_max);
    // SAFETY: as above. Where it fails, the old limit stays.
    unsafe { libc::setrlimit(libc::RLIMIT_STACK, &limit) };
    Ok(())
}

fn cpu_of(usage: &libc::rusage) -> Duration {
    let time = |value: libc::timeval| {
        let seconds = u64::try_from(value.tv_sec).unwrap_or(0);
        Duration::from_secs(seconds) + Duration::from_micros(value.tv_usec.unsigned_abs())
    };
    time(usage.ru_utime) + time(usage.ru_stime)
}

/// Processor time of this process so far, all threads and kernel workers included.
pub(crate) fn own_cpu() -> Duration {
    let mut usage = MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a live value that the kernel fills.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) };
    // SAFETY: zeroed at first and filled by the kernel: integers throughout.
    cpu_of(&unsafe { usage.assume_init() })
}
