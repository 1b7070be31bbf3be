//! The process that serves after the command has returned.
//!
//! It is this program started again, which says over its standard output that all is mounted. Until
//! then what it has to say goes where the command's words go; afterwards it has no streams.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};

use crate::disk;
use crate::failure::{Failure, Kind};

/// Set for the process in the background.
const MARK: &str = "COWL_MOUNT_BACKGROUND";

const READY: &[u8] = b"ready\n";

/// Whether this process is the one in the background.
pub(crate) fn is_background() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts it with `arguments`, and returns when it serves, or with its exit code.
pub(crate) fn run_in_background(arguments: &[OsString]) -> Result<u8, Failure> {
    let not_started = |error: std::io::Error| {
        let reason = disk::system_words(&error);
        Failure::new(Kind::Io, format!("Could not start a process in the background: {reason}"))
    };
    let mut command = Command::new(std::env::current_exe().map_err(not_started)?);
    // Messages carry the name that this process was called by.
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    let mut child = command
        .arg("mount")
        .args(arguments)
        .env(MARK, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(not_started)?;
    let mut words = [0; READY.len()];
    let mut stdout = child.stdout.take();
    // All of them, or the end of a process that failed.
    let is_ready = stdout.as_mut().is_some_and(|stdout| stdout.read_exact(&mut words).is_ok());
    if is_ready && words == READY {
        return Ok(0);
    }
    let code = child.wait().map_err(not_started)?.code();
    Ok(code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1))
}

/// Leaves the session of the caller, so that what ends it does not end the mount.
pub(super) fn leave_session() {
    // A leader of a group cannot; it has no caller to leave.
    rustix::process::setsid().ok();
}

/// Tells the caller that all is mounted, and lets go of everything that is his.
pub(super) fn say_ready() -> std::io::Result<()> {
    let mut stdout = std::io::stdout();
    // A caller who is gone needs no word.
    stdout.write_all(READY).and_then(|()| stdout.flush()).ok();
    let nothing = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdout(&nothing)?;
    rustix::stdio::dup2_stderr(&nothing)?;
    std::env::set_current_dir("/")
}
