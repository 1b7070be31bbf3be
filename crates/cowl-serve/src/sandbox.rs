//! What the process gives up before it talks to clients.
//!
//! Two layers, each where the kernel has it. Landlock: nothing of the file system can be opened but
//! what exports added later may use, and only the daemon's own sockets can be removed. seccomp:
//! system calls that serving needs, and no others (no programs are started, no connections made, no
//! other process is touched); with nothing to open later, opening is refused as well.
//!
//! What is open stays open. Threads that began before keep their Landlock rights, so serving
//! threads and those that decompress begin after; seccomp covers every thread.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus,
};
use rustix::io::Errno;

mod calls;

/// Whether the process gives up what it does not need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// As far as the kernel can.
    WherePossible,
    /// Wholly, or it does not serve.
    Required,
    /// Not at all.
    Off,
}

/// A sandbox that could not be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The kernel has no Landlock, or not enough of it.
    #[error("this kernel cannot keep the process from opening files (Landlock): {reason}")]
    Landlock {
        /// What it said.
        reason: String,
    },
    /// Whoever is not root unmounts with a program that has more rights, which no sandboxed process
    /// can start.
    #[error("only root can serve mounted files from inside the sandbox")]
    NeedsHelper,
    /// The kernel has no seccomp filters.
    #[error("this kernel does not filter system calls (seccomp): {reason}")]
    Seccomp {
        /// What it said.
        reason: String,
    },
}

/// What serving needs of the file system.
pub(crate) struct Needs<'a> {
    /// Opened later.
    pub(crate) allowed: &'a [PathBuf],
    /// Removed at the end.
    pub(crate) leftovers: &'a [PathBuf],
    /// Whether commands come.
    pub(crate) control: bool,
    /// Whether there are FUSE mounts, which are unmounted at the end.
    pub(crate) files: bool,
}

impl Sandbox {
    pub(crate) fn is_wanted(self) -> bool {
        self != Self::Off
    }

    /// Closes the sandbox around this thread and all that begin later.
    pub(crate) fn close(self, needs: &Needs<'_>) -> Result<(), SandboxError> {
        if !self.is_wanted() {
            return Ok(());
        }
        if needs.files && !rustix::process::getuid().is_root() {
            return self.judge("all", Err(SandboxError::NeedsHelper));
        }
        self.judge("landlock", restrict_files(needs))?;
        self.judge("seccomp", calls::restrict(needs))
    }

    fn judge(self, layer: &str, outcome: Result<(), SandboxError>) -> Result<(), SandboxError> {
        match outcome {
            Ok(()) => Ok(()),
            Err(error) if self == Self::WherePossible => {
                tracing::warn!(layer, %error, "serving without a part of the sandbox");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

fn restrict_files(needs: &Needs<'_>) -> Result<(), SandboxError> {
    let fail = |reason: String| SandboxError::Landlock { reason };
    let abi = ABI::V5;
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(Ruleset::create);
    let mut ruleset = ruleset.map_err(|error| fail(error.to_string()))?;
    let folders: BTreeSet<&Path> =
        needs.leftovers.iter().filter_map(|path| folder_of(path)).collect();
    let rules = [
        (needs.allowed.iter().map(PathBuf::as_path).collect::<Vec<_>>(), files(abi)),
        (folders.into_iter().collect(), AccessFs::RemoveFile.into()),
        // Each serving thread opens an end of the connection for itself.
        (
            if needs.files { vec![Path::new("/dev/fuse")] } else { Vec::new() },
            AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev,
        ),
    ];
    for (paths, access) in rules {
        for path in paths {
            let fd = PathFd::new(path).map_err(|error| fail(error.to_string()))?;
            let rule = PathBeneath::new(fd, access);
            ruleset = ruleset.add_rule(rule).map_err(|error| fail(error.to_string()))?;
        }
    }
    let status = ruleset.restrict_self().map_err(|error| fail(error.to_string()))?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err(fail(Errno::NOSYS.to_string())),
        _ => Ok(()),
    }
}

/// To open images that exist, and overlays that are thrown away.
fn files(abi: ABI) -> landlock::BitFlags<AccessFs> {
    AccessFs::from_read(abi) | AccessFs::WriteFile | AccessFs::Truncate
}

fn folder_of(path: &Path) -> Option<&Path> {
    let folder = path.parent()?;
    Some(if folder.as_os_str().is_empty() { Path::new(".") } else { folder })
}
