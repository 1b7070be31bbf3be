//! A loop device on the served file, and the file system on that.
//!
//! The loop device is let go as soon as the file system is mounted: the kernel keeps it until the
//! file system is unmounted, by whomever, and detaches it then.

use std::path::Path;
use std::time::Duration;

use super::host;
use crate::failure::{Failure, Kind};

/// How long partitions take to show up at the most.
const PARTITION_ATTEMPTS: u32 = 100;
/// After how many the kernel is asked to look again.
const ATTEMPTS_PER_SCAN: u32 = 20;
const PARTITION_PAUSE: Duration = Duration::from_millis(20);

/// What to mount.
pub(super) struct FileSystem<'a> {
    pub(super) file: &'a Path,
    pub(super) at: &'a Path,
    pub(super) read_only: bool,
    pub(super) partition: Option<u32>,
    pub(super) kind: Option<&'a str>,
    pub(super) options: &'a [String],
}

/// A loop device that is detached when it is dropped, or when its last user goes.
struct Loop {
    device: String,
}

impl Loop {
    fn attach(file: &str, read_only: bool, partitions: bool) -> Result<Self, Failure> {
        // Direct: the pages of the file would only be cached twice.
        let mut arguments = vec!["--find", "--show", "--direct-io=on"];
        if read_only {
            arguments.push("--read-only");
        }
        if partitions {
            arguments.push("--partscan");
        }
        arguments.push(file);
        Ok(Self { device: host::run("losetup", &arguments)? })
    }

    fn partition(&self, number: u32) -> Result<String, Failure> {
        let path = format!("{}p{number}", self.device);
        for attempt in 1..=PARTITION_ATTEMPTS {
            if Path::new(&path).exists() {
                return Ok(path);
            }
            if attempt.is_multiple_of(ATTEMPTS_PER_SCAN) {
                // The kernel gives up on a device that somebody has open while it looks.
                host::run("blockdev", &["--rereadpt", &self.device]).ok();
            }
            std::thread::sleep(PARTITION_PAUSE);
        }
        Err(Failure::new(Kind::Open, format!("The disk has no partition {number}")))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        host::run("losetup", &["--detach", &self.device]).ok();
    }
}

impl FileSystem<'_> {
    /// Mounts it.
    pub(super) fn mount(&self) -> Result<(), Failure> {
        let text = |path: &Path| path.to_str().map(str::to_owned).ok_or_else(no_text);
        let (file, at) = (text(self.file)?, text(self.at)?);
        let device = Loop::attach(&file, self.read_only, self.partition.is_some())?;
        let source = match self.partition {
            Some(number) => device.partition(number)?,
            None => device.device.clone(),
        };
        let mut arguments = vec![if self.read_only { "--read-only" } else { "--rw" }];
        if let Some(kind) = self.kind {
            arguments.extend(["--types", kind]);
        }
        for options in self.options {
            arguments.extend(["--options", options]);
        }
        arguments.extend(["--", &source, &at]);
        host::run("mount", &arguments)?;
        Ok(())
    }
}

fn no_text() -> Failure {
    Failure::new(Kind::Open, "File names that are no text cannot be mounted")
}

/// Unmounts the file system at `at`.
pub(super) fn unmount(at: &Path) -> Result<(), Failure> {
    host::run("umount", &["--", at.to_str().ok_or_else(no_text)?])?;
    Ok(())
}
