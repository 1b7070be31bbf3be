//! From a name to an open file of a kind that storage can be on.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Access, Caching, Existence, FileKinds, FileOptions};

/// What kind of file it is, as far as the operations differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileKind {
    Regular,
    BlockDevice,
    /// `/dev/null` and its like: nothing stored, nothing to make durable.
    Character,
}

/// Opens the file, without waiting for the other end of a FIFO; not locked yet, not emptied yet.
pub(super) fn open_fd(path: &Path, options: FileOptions) -> Result<OwnedFd, Errno> {
    // Opening a FIFO would wait for its other end.
    if let Ok(facts) = rustix::fs::stat(path) {
        kind_of(FileType::from_raw_mode(facts.st_mode))?;
    }
    let mut flags = OFlags::CLOEXEC | OFlags::NOCTTY;
    flags |= match options.access {
        Access::ReadOnly => OFlags::RDONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    flags |= match options.existence {
        Existence::MustExist => OFlags::empty(),
        // Never O_TRUNC: the file is not ours before the lock is held.
        Existence::CreateOrKeep | Existence::CreateOrEmpty => OFlags::CREATE,
        Existence::MustBeNew => OFlags::CREATE | OFlags::EXCL,
    };
    flags |= match options.caching {
        Caching::PageCache | Caching::LargeWritesDirect => OFlags::empty(),
        Caching::Direct => OFlags::DIRECT,
    };
    if options.kinds == FileKinds::RegularOnly {
        // A FIFO put there meanwhile must not make us wait; regular files do not care.
        flags |= OFlags::NONBLOCK;
    }
    let mode = Mode::RUSR | Mode::WUSR | Mode::RGRP | Mode::ROTH;
    let fd = loop {
        match rustix::fs::open(path, flags, mode) {
            Err(Errno::INTR) => {}
            result => break result?,
        }
    };
    forget_access_times(&fd, flags);
    Ok(fd)
}

/// Reads leave the file's time of access alone, where the host allows that: to the owner and to
/// root. Asking after each read whether that time is due is 5 to 6 % of a read of 4 KiB from the
/// page cache.
///
/// Not by opening with `O_NOATIME`: that fails for the files of others, and where a new file
/// belongs to somebody else (on network file systems) it has been created by then.
fn forget_access_times(fd: &OwnedFd, flags: OFlags) {
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NOATIME).ok();
}

/// Whatever was opened, it is looked at now: a name can be exchanged, an open file cannot.
pub(super) fn refuse_special(fd: &OwnedFd) -> Result<(), std::io::Error> {
    let facts = rustix::fs::fstat(fd)?;
    match FileType::from_raw_mode(facts.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => Err(Errno::ISDIR.into()),
        _ => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

pub(super) fn is_emptied(options: FileOptions) -> bool {
    options.existence == Existence::CreateOrEmpty
}

/// The kind of a file of this type; an error for what has no bytes at places.
pub(super) fn kind_of(file_type: FileType) -> Result<FileKind, Errno> {
    match file_type {
        FileType::RegularFile => Ok(FileKind::Regular),
        FileType::BlockDevice => Ok(FileKind::BlockDevice),
        FileType::CharacterDevice => Ok(FileKind::Character),
        FileType::Directory => Err(Errno::ISDIR),
        _ => Err(Errno::SPIPE),
    }
}
