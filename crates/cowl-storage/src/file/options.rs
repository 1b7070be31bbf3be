//! How a host file is opened.
//!
//! There is no `Default`: which of these is meant decides whether data survives.

use super::Writeback;
use crate::LockMode;

/// Whether the file may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Only reading.
    ReadOnly,
    /// Reading and writing.
    ReadWrite,
}

/// What has to be there before, and what is there afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existence {
    /// The file has to exist and keeps its content.
    MustExist,
    /// The file is created where it does not exist, and keeps its content where it does.
    CreateOrKeep,
    /// The file is created, or emptied where it exists; emptied only once the lock is held.
    CreateOrEmpty,
    /// The file has to be new.
    MustBeNew,
}

/// Whether data passes through the page cache of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Through the page cache.
    PageCache,
    /// Around it (`O_DIRECT`).
    Direct,
    /// Through it, but for large aligned writes, which go around it where the host can and while
    /// that is faster: for whoever writes much and needs it durable soon. Files and the blocking
    /// driver only; devices and [`UringStorage`] take everything through the page cache.
    ///
    /// [`UringStorage`]: crate::UringStorage
    LargeWritesDirect,
}

/// Which kinds of files are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileKinds {
    /// Regular files, block devices and character devices.
    Any,
    /// Regular files only, for names that come from strangers: opening a device can have effects.
    /// Decided on the open file, so that nobody can exchange it in between.
    RegularOnly,
}

/// How [`FileStorage::open`](crate::FileStorage::open) opens a file.
///
/// Reading does not change the file's time of access (`O_NOATIME`) for the owner of the file and
/// for root; a server of network files may change it all the same.
///
/// Start from one of the four constructors and change single fields:
/// `FileOptions { caching: Caching::Direct, ..FileOptions::read_only() }`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileOptions {
    /// Whether the file may be changed. Creating asks for [`Access::ReadWrite`].
    pub access: Access,
    /// Whether the file exists already.
    pub existence: Existence,
    /// Whether the page cache is used.
    pub caching: Caching,
    /// Which kinds of files are accepted.
    pub kinds: FileKinds,
    /// Which image lock to hold while the file is open.
    pub lock: LockMode,
    /// When what is written goes to the disk.
    pub writeback: Writeback,
}

impl FileOptions {
    /// An existing file, for reading.
    #[must_use]
    pub const fn read_only() -> Self {
        Self {
            access: Access::ReadOnly,
            existence: Existence::MustExist,
            caching: Caching::PageCache,
            kinds: FileKinds::Any,
            lock: LockMode::ReadOnly,
            writeback: Writeback::ByHost,
        }
    }

    /// An existing file, for reading and writing.
    #[must_use]
    pub const fn read_write() -> Self {
        Self {
            access: Access::ReadWrite,
            existence: Existence::MustExist,
            caching: Caching::PageCache,
            kinds: FileKinds::Any,
            lock: LockMode::ReadWrite,
            writeback: Writeback::ByHost,
        }
    }

    /// A file that is empty when it is open, whether it existed or not.
    #[must_use]
    pub const fn create() -> Self {
        Self {
            access: Access::ReadWrite,
            existence: Existence::CreateOrEmpty,
            caching: Caching::PageCache,
            kinds: FileKinds::Any,
            lock: LockMode::Create,
            writeback: Writeback::ByHost,
        }
    }

    /// A file that did not exist.
    #[must_use]
    pub const fn create_new() -> Self {
        Self { existence: Existence::MustBeNew, ..Self::create() }
    }
}
