//! Which process holds a lock that belongs to an open file.
//!
//! The kernel names no process for such a lock, since several may share the open file. But each
//! shows the locks of its open files in `/proc/PID/fdinfo/FD`:
//!
//!   lock:  1: OFDLCK  ADVISORY  READ -1 fe:00:1441832 101 101
//!
//! Only used to word an error, so whatever cannot be read is passed over: other users' processes
//! can be seen by root alone.

use std::fmt;
use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, StatxFlags};

use crate::FileIdentity;

/// Processes that are named in one error; more help nobody.
const HOLDERS_MAX: usize = 8;

/// Open files of one process that are looked at: who has more of them is hardly the one, and must
/// not hide the others.
const FILES_PER_PROCESS_MAX: usize = 4096;

/// Open files that are looked at in all, so that the error comes within a fraction of a second on a
/// busy host, too.
const FILES_MAX: usize = 1 << 16;

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
    let mut files_left = FILES_MAX;
    processes
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| has_lock(*pid, identity, byte, &mut files_left))
        .take(HOLDERS_MAX)
        .map(LockHolder::of_process)
        .collect()
}

fn has_lock(pid: u32, identity: FileIdentity, byte: u8, files_left: &mut usize) -> bool {
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    for entry in files.take(FILES_PER_PROCESS_MAX).filter_map(Result::ok) {
        if *files_left == 0 {
            return false;
        }
        *files_left -= 1;
        // Which file it is, is cheap to ask; listing its locks is not, where many have it open.
        if is_file(&entry.path(), identity)
            && fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", entry.file_name().display()))
                .is_ok_and(|text| text.lines().any(|line| is_lock_on(line, identity.inode, byte)))
        {
            return true;
        }
    }
    false
}

/// The device number in the line is that of the file system, which `stat` does not always tell
/// (btrfs), so only the inode is compared; the file itself was looked at before.
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

fn is_file(link: &Path, identity: FileIdentity) -> bool {
    // Without asking a server that may not answer: somebody's open file on a dead NFS mount is not
    // ours.
    let flags = AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(rustix::fs::CWD, link, flags, StatxFlags::INO).is_ok_and(|facts| {
        let device = rustix::fs::makedev(facts.stx_dev_major, facts.stx_dev_minor);
        device == identity.device && facts.stx_ino == identity.inode
    })
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
