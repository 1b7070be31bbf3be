//! An image lock that could not be had: which, why, and who has it.

use std::fmt;
use std::path::PathBuf;

use crate::{LockHolder, Permission};

/// Somebody else uses the image in a way that excludes this one.
///
/// Comes as the source of a [`StorageError`](crate::StorageError); see
/// [`StorageError::lock_conflict`](crate::StorageError::lock_conflict).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockConflict {
    /// The image, as the user named it.
    pub path: PathBuf,
    /// The permission that both sides cannot have.
    pub permission: Permission,
    /// Whether the other side refuses a permission that was asked for. Otherwise it has one that
    /// this side cannot allow.
    pub refused: bool,
    /// The processes that hold the lock, as far as they may be looked at.
    pub holders: Vec<LockHolder>,
}

impl LockConflict {
    /// The message QEMU's programs print.
    #[must_use]
    pub fn qemu_message(&self) -> String {
        let shared = if self.refused { "" } else { "shared " };
        format!("Failed to get {shared}\"{}\" lock", self.permission.name())
    }

    /// The line they print after it.
    #[must_use]
    pub fn qemu_hint(&self) -> String {
        format!("Is another process using the image [{}]?", self.path.display())
    }

    /// What the user can do.
    #[must_use]
    pub fn way_out(&self) -> &'static str {
        match self.refused {
            true => "end it first, or open the image read-only if it only reads",
            false => {
                "end it first, or read without a lock (force share) while it changes the content"
            }
        }
    }
}

impl fmt::Display for LockConflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.holders.as_slice() {
            [] => f.write_str("another process, which cannot be seen from here,")?,
            holders => {
                for (index, holder) in holders.iter().enumerate() {
                    write!(f, "{}{holder}", if index == 0 { "" } else { ", " })?;
                }
            }
        }
        let name = self.permission.name();
        match self.refused {
            true => write!(f, " holds the image and allows no other \"{name}\"")?,
            false => write!(f, " holds the image for \"{name}\"")?,
        }
        write!(f, "; {}", self.way_out())
    }
}

impl std::error::Error for LockConflict {}
