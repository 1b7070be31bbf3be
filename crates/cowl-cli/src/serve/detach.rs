//! `--fork`: the command returns when clients can come, and serving goes on in the background.
//!
//! The program starts itself once more; that one serves. It says on its standard output, which is
//! a pipe to the first one, when it is ready, and then lets go of all its streams.

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};

use crate::disk::system_words;
use crate::failure::{Failure, Kind};
use crate::session::Session;

/// Tells the second process which one it is.
const MARK: &str = "COWL_DETACHED";

/// What it says when it is ready.
const READY: &str = "ready\n";

/// Starts the serving process and waits until it is ready; the exit code is what to end with.
/// `None` in the serving process itself.
pub(crate) fn detach(session: &Session) -> Result<Option<u8>, Failure> {
    if std::env::var_os(MARK).is_some() {
        return Ok(None);
    }
    let fail = |error: std::io::Error| {
        let message = format!("Failed to fork: {}", system_words(&error));
        Failure::new(Kind::Io, message)
    };
    let program = std::env::current_exe().map_err(fail)?;
    let mut child = Command::new(program);
    child.arg0(&session.invoked_as).args(std::env::args_os().skip(1));
    child.env(MARK, "1").stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = child.spawn().map_err(fail)?;
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        let mut lines = BufReader::new(stdout);
        loop {
            said.clear();
            let count = lines.read_line(&mut said).map_err(fail)?;
            if said == READY {
                return Ok(Some(0));
            }
            if count == 0 {
                break;
            }
            session.output.text_now(&said);
        }
    }
    // It has said why.
    let status = child.wait().map_err(fail)?;
    Ok(Some(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1).max(1)))
}

/// Whether this is the serving process behind a command that returned.
pub(crate) fn is_detached() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Opened before the sandbox closes.
pub(super) struct Letting {
    null: std::fs::File,
}

impl Letting {
    /// Leaves the session of the terminal.
    pub(super) fn new() -> Result<Self, Failure> {
        let fail = |error: rustix::io::Errno| {
            let message = format!("Failed to go into the background: {error}");
            Failure::new(Kind::Io, message)
        };
        // A leader of its group stays where it is; nothing is lost by that.
        rustix::process::setsid().ok();
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        Ok(Self { null: null.map_err(fail)?.into() })
    }

    /// Says that clients can come, and lets go of the streams.
    pub(super) fn let_go(self, session: &Session) {
        session.output.text_now(READY);
        rustix::stdio::dup2_stdout(&self.null).ok();
        rustix::stdio::dup2_stderr(&self.null).ok();
    }
}
