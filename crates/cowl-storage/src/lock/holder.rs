//! Which process holds a lock that belongs to an open file.
//!
//! The kernel names no process for such a lock, since several may share the open file. But each shows the
//! locks of its open files in `/proc/PID/fdinfo/FD`:
//!
//!   lock:  1: OFDLCK  ADVISORY  READ -1 fe:00:1441832 101 101
//!
//! Only used to word an error, so whatever cannot be read is passed over: other users' processes can be
//! seen by root alone.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::FileIdentity;

/// Processes that are named in one error; more help nobody.
const HOLDERS_MAX: usize = 8;

/// A process that holds an image lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockHolder {
    /// Its number.
    pub pid: u32,
    /// Its name, as `ps` shows it; empty where it cannot be read.
    pub command: String,
    /// Whether it is the asking process itself.
    pub is_self: bool,
}

impl LockHolder {
    pub(super) fn of_process(pid: u32) -> Self {
        let command = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        // The name is chosen by that process: nothing in it may act on a terminal.
        let command = command.trim_end().replace(char::is_control, "?");
        Self { pid, command, is_self: pid == std::process::id() }
    }
}

impl fmt::Display for LockHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_self {
            return write!(f, "this process ({})", self.pid);
        }
        match self.command.as_str() {
            "" => write!(f, "process {}", self.pid),
            command => write!(f, "process {} ({command})", self.pid),
        }
    }
}

/// The processes with a lock on `byte` of the file.
pub(super) fn find(identity: FileIdentity, byte: u8) -> Vec<LockHolder> {
    let Ok(processes) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| has_lock(*pid, identity, byte))
        .take(HOLDERS_MAX)
        .map(LockHolder::of_process)
        .collect()
}

fn has_lock(pid: u32, identity: FileIdentity, byte: u8) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        return false;
    };
    files.filter_map(Result::ok).any(|entry| {
        let locked = fs::read_to_string(entry.path())
            .is_ok_and(|text| text.lines().any(|line| is_lock_on(line, identity.inode, byte)));
        locked && is_file(Path::new(&format!("/proc/{pid}/fd")).join(entry.file_name()), identity)
    })
}

/// The device number in the line is that of the file system, which `stat` does not always tell (btrfs), so
/// only the inode is compared here and the file itself is looked at afterwards.
fn is_lock_on(line: &str, inode: u64, byte: u8) -> bool {
    let Some(rest) = line.strip_prefix("lock:") else {
        return false;
    };
    // number, kind, ADVISORY, READ or WRITE, pid, major:minor:inode, first, last
    let words: Vec<_> = rest.split_ascii_whitespace().collect();
    let [_, _, _, _, _, file, first, last] = words[..] else {
        return false;
    };
    let inode_matches = file.rsplit(':').next().and_then(|text| text.parse().ok()) == Some(inode);
    let first = first.parse::<u64>().ok();
    let last = if last == "EOF" { Some(u64::MAX) } else { last.parse().ok() };
    let covers = first.is_some_and(|first| first <= u64::from(byte))
        && last.is_some_and(|last| u64::from(byte) <= last);
    inode_matches && covers
}

fn is_file(link: std::path::PathBuf, identity: FileIdentity) -> bool {
    fs::metadata(link)
        .is_ok_and(|facts| facts.dev() == identity.device && facts.ino() == identity.inode)
}

#[cfg(test)]
mod tests {
    use super::is_lock_on;

    #[test]
    fn lock_lines_are_matched_by_inode_and_byte() {
        let line = "lock:\t1: OFDLCK  ADVISORY  READ -1 fe:00:1441832 101 101";
        assert!(is_lock_on(line, 1_441_832, 101));
        assert!(!is_lock_on(line, 1_441_832, 100));
        assert!(!is_lock_on(line, 7, 101));
        assert!(is_lock_on("lock:\t1: POSIX  ADVISORY  WRITE 77 fe:00:9 0 EOF", 9, 203));
        assert!(!is_lock_on("pos:\t0", 0, 0));
        assert!(!is_lock_on("lock:\t1: OFDLCK", 9, 203));
    }
}
