//! Commands that return when they have begun, while their work goes on in the background.
//!
//! The program starts itself once more, with the same words; that one works. What it says on its
//! standard output, which is a pipe to the first one, is passed on, until it says that it is ready
//! and lets go of all its streams.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};

use crate::disk::system_words;
use crate::failure::{Failure, Kind};
use crate::session::Session;

/// Tells the second process which one it is.
const MARK: &str = "COWL_IN_BACKGROUND";

/// The number of the process that sockets of a service manager are for.
const LISTEN_PID: &str = "LISTEN_PID";

/// What it says when it is ready.
const READY: &str = "ready\n";

/// Whether this is the process behind a command that returns.
pub(crate) fn is_background() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Starts that process and waits until it is ready. Gives the exit code to end with: zero, or its
/// own where it failed before, having said why.
pub(crate) fn run_in_background(session: &Session) -> Result<u8, Failure> {
    let fail = |error: std::io::Error| {
        let reason = system_words(&error);
        Failure::new(Kind::Io, format!("Could not start a process in the background: {reason}"))
    };
    let mut child = Command::new(std::env::current_exe().map_err(fail)?);
    // Messages carry the name that this process was called by.
    child.arg0(&session.invoked_as).args(std::env::args_os().skip(1));
    child.env(MARK, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    pass_sockets_on(&mut child);
    let mut child = child.spawn().map_err(fail)?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        while lines.read_line(&mut said).map_err(fail)? != 0 {
            if said == READY {
                return Ok(0);
            }
            session.output.text_now(&said);
            said.clear();
        }
    }
    let code = child.wait().map_err(fail)?.code();
    Ok(code.and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1))
}

/// Sockets of a service manager are for one process, by its number. The second one has the same
/// descriptors, and gets those sockets without a number, which nobody knows yet.
fn pass_sockets_on(child: &mut Command) {
    match std::env::var(LISTEN_PID) {
        Ok(number) if number == std::process::id().to_string() => child.env(LISTEN_PID, ""),
        Ok(number) if number.is_empty() => child,
        // They are somebody else's.
        _ => child.env_remove("LISTEN_FDS"),
    };
}

/// Whether sockets of a service manager are for this process.
pub(crate) fn has_sockets() -> bool {
    let ours = std::process::id().to_string();
    let number = std::env::var(LISTEN_PID);
    number.is_ok_and(|number| number == ours || (number.is_empty() && is_background()))
}

/// A process on its way to the background. What it needs is open already, so that no sandbox is in
/// its way later.
pub(crate) struct Leaving {
    null: std::fs::File,
}

impl Leaving {
    /// Leaves the session of the caller, so that what ends it does not end this process.
    pub(crate) fn begin() -> Result<Self, Failure> {
        let fail = |error: rustix::io::Errno| {
            let reason = system_words(&error.into());
            Failure::new(Kind::Io, format!("Could not go to the background: {reason}"))
        };
        // A leader of a group cannot; it has no caller to leave.
        rustix::process::setsid().ok();
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { null: null.map_err(fail)?.into() })
    }

    /// Tells the caller that all is ready, and lets go of everything that is his. A caller who is
    /// gone needs no word.
    pub(crate) fn tell_ready(self, session: &Session) {
        session.output.text_now(READY);
        rustix::stdio::dup2_stdout(&self.null).ok();
        rustix::stdio::dup2_stderr(&self.null).ok();
    }
}
