//! What `mount` starts: an image served as a file, a loop device on it, the file system there.
//!
//! ```text
//!   cowl mount ──► the same program in the background ──► FUSE file ──► loop device ──► DIR
//!       ◄── "ready" over a pipe ──┘        ▲
//!   cowl mount --unmount ── socket ────────┘  ◄── how closing the image went
//! ```
//!
//! Everything is undone in the order opposite to that: file system, loop device (by itself, when
//! the last user leaves it), FUSE file, image. What ends it is a request over the socket, a
//! signal, or somebody's `umount DIR`.

mod control;
mod file_system;
mod host;
mod serving;

use std::path::{Path, PathBuf};

use crate::failure::{Failure, Kind};

pub(crate) use control::unmount;
pub(crate) use serving::{OpenError, no_ring, open, serve};

/// What of an image is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// The disk, as a plain file.
    Disk,
    /// The files of a file system on it.
    Files {
        /// On which partition; the whole disk without.
        partition: Option<u32>,
        /// Its type, if it is not to be guessed.
        file_system: Option<String>,
        /// Options for mount.
        options: Vec<String>,
    },
}

/// What is to be mounted, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Where.
    pub(crate) at: PathBuf,
    /// Whether nothing is to be changed.
    pub(crate) read_only: bool,
    /// Whether this process serves.
    pub(crate) foreground: bool,
    /// What is shown.
    pub(crate) view: View,
}

/// Says early what cannot work, before an image is opened.
pub(crate) fn check(plan: &Plan) -> Result<(), Failure> {
    let at = &plan.at;
    let metadata = std::fs::metadata(at).map_err(|error| about(at, "Could not find", &error))?;
    if plan.view == View::Disk {
        return Ok(());
    }
    if !metadata.is_dir() {
        let message = format!("'{}' is not a directory", at.display());
        return Err(Failure::new(Kind::Open, message).about(at));
    }
    if !rustix::process::geteuid().is_root() {
        let message = "Mounting the file system of an image takes a loop device, which only root \
                       can attach";
        let hint = "--fuse-only shows the disk as a plain file, without root";
        return Err(Failure::new(Kind::Open, message).hint(hint));
    }
    if !Path::new("/dev/loop-control").exists() {
        let message = "There are no loop devices here: /dev/loop-control is missing";
        let hint = "load the module loop; containers need the device given to them";
        return Err(Failure::new(Kind::Open, message).hint(hint));
    }
    Ok(())
}

/// A failure about a file, with what the system says.
fn about(path: &Path, what: &str, error: &std::io::Error) -> Failure {
    let reason = crate::disk::system_words(error);
    Failure::new(Kind::Open, format!("{what} '{}': {reason}", path.display())).about(path)
}
