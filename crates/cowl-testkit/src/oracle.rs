//! The installed qemu-img and qemu-io: whatever they say is right.
//!
//! Where they are missing a test that needs them skips itself, loudly; `COWL_REQUIRE_ORACLE=1`
//! makes that a failure, so that CI cannot pass without having compared anything.

use std::path::Path;
use std::process::Command;

/// A program of QEMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `qemu-img`
    Img,
    /// `qemu-io`
    Io,
}

impl Tool {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Img => "qemu-img",
            Self::Io => "qemu-io",
        }
    }
}

/// What a program said and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Standard output; bytes that are no UTF-8 are replaced.
    pub stdout: String,
    /// Standard error, likewise.
    pub stderr: String,
    /// Exit code, or the negative number of the signal that ended it.
    pub code: i32,
}

impl Output {
    /// Runs `command` to its end.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn of(command: &mut Command) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let status = output.status;
        Self {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: status.code().unwrap_or_else(|| -status.signal().unwrap_or(0)),
        }
    }

    /// The same, having ended well.
    ///
    /// # Panics
    /// When it did not.
    #[must_use]
    pub fn expect_success(self, what: &str) -> Self {
        assert!(self.code == 0, "{what} ended with {}: {}", self.code, self.stderr);
        self
    }
}

/// Whether the oracle is installed. Says so when not, and panics when it is required.
///
/// # Panics
/// When it is missing and `COWL_REQUIRE_ORACLE=1`.
#[must_use]
pub fn is_available() -> bool {
    let works = |tool: Tool| {
        Command::new(tool.name()).arg("--version").output().is_ok_and(|o| o.status.success())
    };
    if works(Tool::Img) && works(Tool::Io) {
        return true;
    }
    let required = std::env::var_os("COWL_REQUIRE_ORACLE").is_some_and(|value| value == "1");
    assert!(!required, "COWL_REQUIRE_ORACLE=1 but qemu-img or qemu-io is missing");
    #[expect(clippy::print_stderr, reason = "a skipped comparison must be seen")]
    {
        eprintln!("SKIP: qemu-img or qemu-io is not installed; nothing was compared");
    }
    false
}

/// Runs `tool` in `directory`.
///
/// # Panics
/// When it cannot be started.
pub fn run<S: AsRef<std::ffi::OsStr>>(tool: Tool, directory: &Path, arguments: &[S]) -> Output {
    // Messages and dates must not depend on who runs the tests.
    let mut command = Command::new(tool.name());
    Output::of(command.args(arguments).current_dir(directory).env("LC_ALL", "C"))
}
