//! Opening files with a lock, and what comes of it.

use std::path::Path;

use cowl_storage::{
    Access, Existence, FileOptions, FileStorage, LockConflict, LockMode, Operation, StorageError,
};

pub(crate) fn open(path: &Path, lock: LockMode) -> Result<FileStorage, StorageError> {
    let access = match lock {
        LockMode::ReadWrite | LockMode::ReadWriteShared | LockMode::Create => Access::ReadWrite,
        LockMode::None
        | LockMode::ReadOnly
        | LockMode::Info
        | LockMode::ForceShare
        | LockMode::ReadOnlyShared => Access::ReadOnly,
    };
    let existence = Existence::MustExist;
    FileStorage::open(path, FileOptions { access, existence, lock, ..FileOptions::read_only() })
}

/// What opening says: nothing, or QEMU's words for the conflict.
pub(crate) fn outcome(path: &Path, lock: LockMode) -> Option<String> {
    open(path, lock).err().map(|error| conflict(&error).qemu_message())
}

pub(crate) fn conflict(error: &StorageError) -> &LockConflict {
    assert_eq!(error.operation(), Operation::Lock);
    assert_eq!(error.errno(), 11);
    error.lock_conflict().unwrap_or_else(|| panic!("{error} is no conflict"))
}
