//! Image locks, compatible with QEMU's.
//!
//! Who opens an image says what it uses and what it refuses to others, one byte of the file each,
//! as an open-file-description lock. All locks are read locks, so taking them never fails among
//! well-behaved programs; whether somebody's use meets somebody else's refusal is found out by
//! asking afterwards.
//!
//!   byte 100 + n   "I use permission n"
//!   byte 200 + n   "I let nobody else use permission n"
//!
//!   n: 0 consistent read, 1 write, 2 write unchanged, 3 resize
//!
//! | mode                       | uses | refuses | then asks        |
//! |----------------------------|------|---------|------------------|
//! | [`LockMode::ReadWrite`]    | 0 1 3| 1 3     | 200 201 203, 101 103 |
//! | [`LockMode::ReadOnly`]     | 0    | 1 3     | 200, 101 103     |
//! | [`LockMode::Info`]         |      | 1 3     | 101 103          |
//! | [`LockMode::ForceShare`]   | 0    |         | 200              |
//! | [`LockMode::Create`]       | 1 3  | 3       | 201 203, 103     |
//! | [`LockMode::ReadWriteShared`] | 0 1 3 | 3    | 200 201 203, 103 |
//! | [`LockMode::ReadOnlyShared`]  | 0  | 3      | 200, 103         |
//!
//! First lock, then ask: of two openers at the same time at least one sees the other. A kernel or
//! file system without such locks gives none, as with QEMU.
//!
//! The locks belong to the open file and end with it at the latest. Who closes a file gives them up
//! before: a ring lets go of the file only some time after it has told that a request is done, and
//! whoever opens it in between would meet the lock of nobody.

mod conflict;
mod holder;

use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

pub use conflict::LockConflict;
pub use holder::LockHolder;

use crate::{FileIdentity, Operation, StorageError};

/// Byte of "I use permission 0".
const USES_BASE: u8 = 100;

/// Byte of "I refuse permission 0".
const REFUSES_BASE: u8 = 200;

/// What one opener of an image may do, or deny to others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Permission {
    /// Reading content that nobody changes underneath.
    ConsistentRead,
    /// Changing the content.
    Write,
    /// Writing what is there already.
    WriteUnchanged,
    /// Changing the length.
    Resize,
}

impl Permission {
    /// QEMU's word for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConsistentRead => "consistent read",
            Self::Write => "write",
            Self::WriteUnchanged => "write unchanged",
            Self::Resize => "resize",
        }
    }

    const fn number(self) -> u8 {
        match self {
            Self::ConsistentRead => 0,
            Self::Write => 1,
            Self::WriteUnchanged => 2,
            Self::Resize => 3,
        }
    }

    const fn uses_byte(self) -> u8 {
        USES_BASE + self.number()
    }

    const fn refuses_byte(self) -> u8 {
        REFUSES_BASE + self.number()
    }
}

/// As what a file is opened; decides which locks are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LockMode {
    /// No lock: whoever asks for this knows that others may write at the same time.
    None,
    /// An image that is written to; nobody else may write.
    ReadWrite,
    /// An image that is read; nobody else may write.
    ReadOnly,
    /// Metadata that is read, briefly; nobody else may write.
    Info,
    /// An image that is about to be created or overwritten.
    Create,
    /// An image that is read although others may write it.
    ForceShare,
    /// A data file that is written to and that others may write to as well.
    ReadWriteShared,
    /// A data file that is read and that others may write to.
    ReadOnlyShared,
}

impl LockMode {
    /// What the opener does with the file.
    #[must_use]
    pub const fn uses(self) -> &'static [Permission] {
        use Permission::{ConsistentRead, Resize, Write};
        match self {
            Self::None | Self::Info => &[],
            Self::ReadWrite | Self::ReadWriteShared => &[ConsistentRead, Write, Resize],
            Self::ReadOnly | Self::ForceShare | Self::ReadOnlyShared => &[ConsistentRead],
            Self::Create => &[Write, Resize],
        }
    }

    /// What the opener lets nobody else do.
    #[must_use]
    pub const fn refuses(self) -> &'static [Permission] {
        use Permission::{Resize, Write};
        match self {
            Self::None | Self::ForceShare => &[],
            Self::ReadWrite | Self::ReadOnly | Self::Info => &[Write, Resize],
            Self::Create | Self::ReadWriteShared | Self::ReadOnlyShared => &[Resize],
        }
    }
}

/// Goes from the locks of `held` to those of `wanted`, or stays at `held`.
pub(crate) fn change(
    fd: BorrowedFd<'_>,
    path: &Path,
    identity: FileIdentity,
    held: LockMode,
    wanted: LockMode,
) -> Result<(), StorageError> {
    let lock_error = |errno: Errno| {
        StorageError::new(path, Operation::Lock, None, None, std::io::Error::from(errno))
    };
    let new = || bytes_of(wanted).filter(|byte| !bytes_of(held).any(|other| other == *byte));
    let outcome = lock_and_ask(fd, new(), wanted);
    match outcome {
        // No such locks here. EINVAL is what a kernel without them says.
        Err(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        Err(errno) => {
            unlock(fd, new()).map_err(lock_error)?;
            Err(lock_error(errno))
        }
        Ok(Some(met)) => {
            unlock(fd, new()).map_err(lock_error)?;
            let conflict = met.describe(path, identity);
            let source = std::io::Error::new(std::io::ErrorKind::WouldBlock, conflict);
            Err(StorageError::new(path, Operation::Lock, None, None, source))
        }
        Ok(None) => {
            let old = bytes_of(held).filter(|byte| !bytes_of(wanted).any(|other| other == *byte));
            unlock(fd, old).map_err(lock_error)
        }
    }
}

/// A byte that somebody else holds.
struct Met {
    permission: Permission,
    /// The other refuses what we use; otherwise it uses what we refuse.
    refused: bool,
    byte: u8,
    /// Known only for a lock that belongs to a process instead of an open file.
    pid: Option<u32>,
}

impl Met {
    fn describe(self, path: &Path, identity: FileIdentity) -> LockConflict {
        let holders = match self.pid {
            Some(pid) => vec![LockHolder::of_process(pid)],
            None => holder::find(identity, self.byte),
        };
        LockConflict {
            path: path.to_owned(),
            permission: self.permission,
            refused: self.refused,
            holders,
        }
    }
}

fn bytes_of(mode: LockMode) -> impl Iterator<Item = u8> {
    let uses = mode.uses().iter().map(|permission| permission.uses_byte());
    uses.chain(mode.refuses().iter().map(|permission| permission.refuses_byte()))
}

fn lock_and_ask(
    fd: BorrowedFd<'_>,
    bytes: impl Iterator<Item = u8>,
    wanted: LockMode,
) -> Result<Option<Met>, Errno> {
    for byte in bytes {
        fcntl(fd, FcntlArg::F_OFD_SETLK(&range(libc::F_RDLCK, byte)))?;
    }
    for &permission in wanted.uses() {
        let byte = permission.refuses_byte();
        if let Some(pid) = ask(fd, byte)? {
            return Ok(Some(Met { permission, refused: true, byte, pid: u32::try_from(pid).ok() }));
        }
    }
    for &permission in wanted.refuses() {
        let byte = permission.uses_byte();
        if let Some(pid) = ask(fd, byte)? {
            return Ok(Some(Met {
                permission,
                refused: false,
                byte,
                pid: u32::try_from(pid).ok(),
            }));
        }
    }
    Ok(None)
}

/// The pid of a foreign lock on `byte`, -1 where it belongs to an open file.
fn ask(fd: BorrowedFd<'_>, byte: u8) -> Result<Option<i32>, Errno> {
    let mut found = range(libc::F_WRLCK, byte);
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok((i32::from(found.l_type) != libc::F_UNLCK).then_some(found.l_pid))
}

fn unlock(fd: BorrowedFd<'_>, bytes: impl Iterator<Item = u8>) -> Result<(), Errno> {
    for byte in bytes {
        fcntl(fd, FcntlArg::F_OFD_SETLK(&range(libc::F_UNLCK, byte)))?;
    }
    Ok(())
}

/// One byte; `l_pid` has to be zero for these locks.
// The constants are `i32` in libc and small; the fields are `i16`.
#[allow(clippy::cast_possible_truncation)]
fn range(kind: libc::c_int, byte: u8) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: libc::off_t::from(byte),
        l_len: 1,
        l_pid: 0,
    }
}
