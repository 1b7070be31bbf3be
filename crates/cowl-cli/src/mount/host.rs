//! Programs of the host, and where a mount keeps what it needs while it lasts.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::failure::{Failure, Kind};

/// Folders where programs of the administrator are, which not every `PATH` has.
const SYSTEM_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";

/// Runs a program of the host to its end; what it prints, or what went wrong in words.
pub(super) fn run(program: &str, arguments: &[&str]) -> Result<String, Failure> {
    let path = std::env::var("PATH").unwrap_or_default();
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", format!("{path}:{SYSTEM_PATH}"))
        .stdin(Stdio::null())
        .output();
    let output = match output {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Failure::new(Kind::Open, format!("{program} is not installed")));
        }
        Err(error) => return Err(Failure::new(Kind::Io, format!("{program}: {error}"))),
    };
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let words = String::from_utf8_lossy(&output.stderr);
    let words = words.trim().replace('\n', "; ");
    let words = words.strip_prefix(&format!("{program}: ")).unwrap_or(&words);
    Err(Failure::new(Kind::Io, format!("{program} failed: {words}")))
}

/// Where the folders of all mounts of this user are.
pub(super) fn run_folder() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/run/cowl/mounts");
    }
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(folder) => Path::new(&folder).join("cowl/mounts"),
        None => {
            let user = rustix::process::geteuid().as_raw();
            // One folder: whoever owns a parent could exchange it.
            std::env::temp_dir().join(format!("cowl-mounts-{user}"))
        }
    }
}

/// The folder of one mount; goes when it is dropped.
pub(super) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// A new folder, for this process.
    pub(super) fn new() -> io::Result<Self> {
        let all = run_folder();
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&all)?;
        check_owner(&all)?;
        let path = all.join(std::process::id().to_string());
        // A process of the same number ended without cleaning up.
        fs::remove_dir_all(&path).ok();
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self { path })
    }

    /// What is in it under this name.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Removes the folder of a mount. What is still mounted in it stays, and is seen.
pub(super) fn remove(folder: &Path) {
    for name in [DISK, TARGET, SOCKET] {
        fs::remove_file(folder.join(name)).ok();
    }
    fs::remove_dir(folder).ok();
}

/// Takes what a process that was killed has left mounted out of the tree.
pub(super) fn unmount_dead(at: &Path) {
    let Some(at) = at.to_str() else { return };
    if run("umount", &["--lazy", "--", at]).is_err() {
        run("fusermount3", &["-u", "-z", "--", at]).ok();
    }
}

/// The mount point of the disk, while its files are shown elsewhere.
pub(super) const DISK: &str = "disk";

/// The name of the mount point that the user gave.
pub(super) const TARGET: &str = "target";

/// Where the serving process listens.
pub(super) const SOCKET: &str = "socket";

/// Refuses a folder that somebody else laid out, in a place where anybody can.
fn check_owner(folder: &Path) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::symlink_metadata(folder)?.uid();
    match owner == rustix::process::geteuid().as_raw() {
        true => Ok(()),
        false => Err(io::ErrorKind::PermissionDenied.into()),
    }
}
