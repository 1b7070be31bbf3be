//! Files that a daemon makes and that go when it ends: sockets, the pid file.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cowl_storage::FileIdentity;

/// A list of such files, each as it was when it was made: what somebody else has put in its place
/// since is left alone. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Leftovers {
    files: Arc<Mutex<Vec<Leftover>>>,
}

#[derive(Debug)]
struct Leftover {
    path: PathBuf,
    identity: FileIdentity,
}

impl Leftovers {
    /// Adds a file that was just made. One that is gone already needs no removal.
    pub fn add(&self, path: &Path) {
        if let Ok(metadata) = std::fs::symlink_metadata(path) {
            let identity = FileIdentity::of(&metadata);
            self.lock().push(Leftover { path: path.to_owned(), identity });
        }
    }

    /// Removes all of them; the list is empty then.
    pub fn remove(&self) {
        for Leftover { path, identity } in self.lock().drain(..) {
            let is_ours = std::fs::symlink_metadata(&path)
                .is_ok_and(|metadata| FileIdentity::of(&metadata) == identity);
            if !is_ours {
                continue;
            }
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), %error, "cannot remove");
                }
                _ => {}
            }
        }
    }

    pub(crate) fn paths(&self) -> Vec<PathBuf> {
        self.lock().iter().map(|file| file.path.clone()).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Leftover>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Leftovers;

    #[test]
    fn what_is_somebody_elses_by_now_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (folder.path().join("ours"), folder.path().join("theirs"));
        let leftovers = Leftovers::default();
        for path in [&ours, &theirs] {
            std::fs::write(path, "1").unwrap();
            leftovers.add(path);
        }
        leftovers.add(&folder.path().join("never made"));
        // A new file under the old name, made while the old one still has its inode.
        let kept = std::fs::File::open(&theirs).unwrap();
        std::fs::remove_file(&theirs).unwrap();
        std::fs::write(&theirs, "2").unwrap();
        drop(kept);
        leftovers.clone().remove();
        assert!(!ours.exists());
        assert_eq!(std::fs::read(&theirs).unwrap(), b"2");
        assert!(leftovers.paths().is_empty());
    }
}
