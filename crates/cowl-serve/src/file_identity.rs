//! Which file it is, by whatever name.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What two names of one file have in common. A file that is gone may leave its identity to
/// another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    device: u64,
    inode: u64,
}

impl FileIdentity {
    /// Of a file that somebody has looked at.
    #[must_use]
    pub fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }

    /// Of the file that `path` leads to, symbolic links followed.
    #[must_use]
    pub fn at(path: &Path) -> Option<Self> {
        std::fs::metadata(path).as_ref().map(Self::of).ok()
    }
}
