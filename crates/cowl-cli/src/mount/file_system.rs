//! A loop device on the served file, and the file system on that.
//!
//! The loop device is let go as soon as the file system is mounted: the kernel keeps it until the
//! file system is unmounted, by whomever, and detaches it then.

use std::path::Path;

use super::host;
use crate::failure::{Failure, Kind};

/// What partition tables count in, in bytes.
const SECTOR: u64 = 512;

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
    fn attach(file: &str, read_only: bool, part: Option<Part>) -> Result<Self, Failure> {
        // Direct: the pages of the file would only be cached twice.
        let mut arguments = vec!["--find", "--show", "--direct-io=on"];
        if read_only {
            arguments.push("--read-only");
        }
        let place = part.map(|part| {
            [format!("--offset={}", part.start), format!("--sizelimit={}", part.length)]
        });
        arguments.extend(place.iter().flatten().map(String::as_str));
        arguments.push(file);
        Ok(Self { device: host::run("losetup", &arguments)? })
    }
}

/// Where a partition is, in bytes. Not every kernel looks for partitions on loop devices.
#[derive(Clone, Copy)]
struct Part {
    start: u64,
    length: u64,
}

impl Part {
    fn find(file: &str, number: u32) -> Result<Self, Failure> {
        let missing = || Failure::new(Kind::Open, format!("The disk has no partition {number}"));
        let nr = number.to_string();
        let columns = ["--show", "--noheadings", "--bytes", "--output", "START,SIZE"];
        let arguments = [&columns[..], &["--nr", &nr, "--", file]].concat();
        let line = host::run("partx", &arguments).map_err(|_| missing())?;
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(sector)), Some(Ok(length))) => {
                let start = sector.checked_mul(SECTOR).ok_or_else(missing)?;
                Ok(Self { start, length })
            }
            _ => Err(missing()),
        }
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
        let part = self.partition.map(|number| Part::find(&file, number)).transpose()?;
        let device = Loop::attach(&file, self.read_only, part)?;
        let mut arguments = vec![if self.read_only { "--read-only" } else { "--rw" }];
        if let Some(kind) = self.kind {
            arguments.extend(["--types", kind]);
        }
        for options in self.options {
            arguments.extend(["--options", options]);
        }
        arguments.extend(["--", &device.device, &at]);
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
