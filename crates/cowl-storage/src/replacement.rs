//! A new file that takes the place of a name only when it is complete.
//!
//! The content is written under a temporary name beside the target. [`Replacement::commit`] makes
//! it durable, renames it, and makes the name durable. Dropped before that, or killed, nothing
//! stands under the target's name that was not there before.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tempfile::TempPath;

use crate::{
    Access, Caching, Existence, FileKinds, FileOptions, FileStorage, LockMode, Operation, Purpose,
    Storage, StorageError, Writeback,
};

/// Temporary names in use by this process, for whoever has to end it in the middle.
static UNFINISHED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Removes every file that has not been committed: for a process that was told to end.
///
/// Removes from now on: a commit that meets this waits, and fails when its file is gone.
pub fn remove_unfinished() {
    let unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
    for path in unfinished.iter() {
        // Gone already is as good; nobody is left to tell about anything else.
        fs::remove_file(path).ok();
    }
}

/// A name in [`UNFINISHED`] for as long as this lives.
struct Unfinished(PathBuf);

impl Unfinished {
    fn new(path: &Path) -> Self {
        let mut unfinished = UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner);
        unfinished.insert(path.to_owned());
        Self(path.to_owned())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        UNFINISHED.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0);
    }
}

/// A file under a temporary name.
pub struct Replacement {
    file: Arc<FileStorage>,
    temporary: TempPath,
    // Behind `temporary`, so that the file is gone before its name is forgotten.
    unfinished: Unfinished,
    target: PathBuf,
    // Holds QEMU's locks on the file that will be replaced, so that nobody loses an image in use.
    existing: Option<FileStorage>,
}

/// Whether the new file has to survive a power cut before it gets its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It and its name are durable when `commit` returns.
    Durable,
    /// The host writes it when it likes: a power cut can leave the name with a broken file.
    Unsafe,
}

impl Replacement {
    /// Starts a file that will stand at `target`, or where `target` points when it is a symbolic
    /// link.
    ///
    /// Fails when another process uses what stands there now.
    pub fn create(
        target: &Path,
        caching: Caching,
        writeback: Writeback,
    ) -> Result<Self, StorageError> {
        let failed = |source| open_error(target, source);
        // A dangling link or a new name is taken as it is.
        let real = fs::canonicalize(target).unwrap_or_else(|_| target.to_owned());
        let existing = match fs::metadata(&real) {
            Ok(_) => Some(FileStorage::open(
                target,
                FileOptions { lock: LockMode::Create, ..FileOptions::read_write() },
            )?),
            Err(_) => None,
        };
        let folder = folder_of(&real);
        let options = FileOptions {
            access: Access::ReadWrite,
            existence: Existence::MustBeNew,
            caching,
            kinds: FileKinds::RegularOnly,
            lock: LockMode::Create,
            writeback,
        };
        // The mode of any new file: the process' mask takes from it.
        let mut builder = tempfile::Builder::new();
        builder.prefix(".cowl-").suffix(".partial").permissions(Permissions::from_mode(0o666));
        let named = builder
            .make_in(folder, |path| {
                FileStorage::open(path, options).map_err(StorageError::into_io_error)
            })
            .map_err(failed)?;
        let (file, temporary) = named.into_parts();
        if let Some(mode) = existing.as_ref().and_then(|_| fs::metadata(&real).ok()) {
            fs::set_permissions(&temporary, mode.permissions()).map_err(failed)?;
        }
        let unfinished = Unfinished::new(&temporary);
        Ok(Self { file: Arc::new(file), temporary, unfinished, target: real, existing })
    }

    /// The file.
    #[must_use]
    pub fn file(&self) -> &Arc<FileStorage> {
        &self.file
    }

    /// Where it is until it has its name: to read it back before it counts.
    #[must_use]
    pub fn temporary_path(&self) -> &Path {
        &self.temporary
    }

    /// Gives the file its name.
    pub async fn commit(self, durability: Durability) -> Result<(), StorageError> {
        let durable = durability == Durability::Durable;
        if durable {
            self.file.barrier(Purpose::Barrier).await?;
        }
        let target = self.target;
        let folder = folder_of(&target);
        let in_folder = |operation| {
            move |source| StorageError::new(folder, operation, Some(Purpose::Barrier), None, source)
        };
        // Before the file has its name: what cannot be made durable must not get it.
        let opened = match durable {
            true => Some(File::open(folder).map_err(in_folder(Operation::Open))?),
            false => None,
        };
        self.temporary.persist(&target).map_err(|error| open_error(&target, error.error))?;
        drop(self.unfinished);
        drop(self.existing);
        if let Some(opened) = opened {
            opened.sync_all().map_err(in_folder(Operation::Barrier))?;
        }
        Ok(())
    }
}

/// The folder that `path` is a name in.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

fn open_error(path: &Path, source: io::Error) -> StorageError {
    StorageError::new(path, Operation::Open, None, None, source)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{Durability, Replacement};
    use crate::{Caching, IoBuffer, Purpose, Storage, Writeback};

    fn write(replacement: &Replacement, bytes: &[u8]) {
        let at = cowl_format::HostOffset::ZERO;
        let write = replacement.file().write(at, IoBuffer::from_slice(bytes), Purpose::GuestData);
        pollster::block_on(write).0.unwrap();
    }

    #[test]
    fn a_dropped_replacement_leaves_the_folder_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk");
        fs::write(&target, "old").unwrap();
        let replacement =
            Replacement::create(&target, Caching::PageCache, Writeback::ByHost).unwrap();
        write(&replacement, b"new");
        drop(replacement);
        assert_eq!(fs::read(&target).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_committed_replacement_has_the_name_and_the_old_mode() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk");
        fs::write(&target, "old").unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        let replacement =
            Replacement::create(&target, Caching::PageCache, Writeback::ByHost).unwrap();
        write(&replacement, b"new");
        pollster::block_on(replacement.commit(Durability::Durable)).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"new");
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn unfinished_files_can_be_removed_when_the_process_has_to_end() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("disk");
        let replacement =
            Replacement::create(&target, Caching::PageCache, Writeback::ByHost).unwrap();
        let unfinished = replacement.temporary_path().to_owned();
        assert!(super::UNFINISHED.lock().unwrap().contains(&unfinished));
        fs::remove_file(&unfinished).unwrap();
        assert!(pollster::block_on(replacement.commit(Durability::Unsafe)).is_err());
        assert!(!super::UNFINISHED.lock().unwrap().contains(&unfinished));
        assert!(!target.exists());
    }

    #[test]
    fn a_link_keeps_pointing_and_its_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (real, link) = (folder.path().join("real"), folder.path().join("link"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let replacement =
            Replacement::create(&link, Caching::PageCache, Writeback::ByHost).unwrap();
        write(&replacement, b"new");
        pollster::block_on(replacement.commit(Durability::Unsafe)).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&real).unwrap(), b"new");
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error_with_its_errno() {
        let error =
            Replacement::create("/nowhere/at/all".as_ref(), Caching::PageCache, Writeback::ByHost);
        assert_eq!(error.err().unwrap().errno(), 2);
    }
}
