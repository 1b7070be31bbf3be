//! Owner, permissions and times of the file: what a mount has besides its bytes.
//!
//! They live as long as the mount. The file belongs to whoever runs the server and is his alone, as
//! QEMU's is; its permissions can be changed, its owner only where others may use the file at all.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use cowl_block::BlockDevice;
use rustix::time::{ClockId, Timespec};

use super::execute::Errno;
use super::{Access, Shared, Sharing, Sizing};
use crate::protocol::reply::{Attributes, Kind, Stamp};
use crate::protocol::request::{Change, Time};

/// The root of the file system: the file itself, or the directory it is in.
pub(super) const ROOT: u64 = 1;

/// The file in the directory.
pub(super) const FILE: u64 = 2;

const NANOS: i64 = 1_000_000_000;

/// Permissions that let somebody write.
const WRITABLE: u32 = 0o222;

#[derive(Clone, Copy, Debug)]
struct Owner {
    permissions: u32,
    uid: u32,
    gid: u32,
}

/// Who owns the file, and when what happened to it. Times are nanoseconds since 1970.
#[derive(Debug)]
pub(super) struct Ownership {
    owner: Mutex<Owner>,
    server_uid: u32,
    accessed: AtomicI64,
    modified: AtomicI64,
    changed: AtomicI64,
}

impl Ownership {
    pub(super) fn new(access: Access) -> Self {
        let permissions = match access {
            Access::ReadOnly => 0o400,
            Access::ReadWrite => 0o600,
        };
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let now = now();
        Self {
            owner: Mutex::new(Owner { permissions, uid, gid }),
            server_uid: uid,
            accessed: AtomicI64::new(now),
            modified: AtomicI64::new(now),
            changed: AtomicI64::new(now),
        }
    }

    /// The content has changed.
    pub(super) fn modify(&self) {
        let now = now();
        self.modified.store(now, Ordering::Relaxed);
        self.changed.store(now, Ordering::Relaxed);
    }

    fn owner(&self) -> Owner {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether `uid` may use the file system at all; the kernel judges the rest.
    pub(super) fn admits(&self, uid: u32, sharing: Sharing) -> bool {
        match sharing {
            Sharing::Everyone => true,
            // The kernel enforces `Owner`, and has its reasons where it lets others pass.
            Sharing::Owner => true,
            Sharing::OwnerAndRoot => uid == 0 || uid == self.server_uid,
        }
    }
}

/// Whole ticks of the kernel do for a file, and cost no system call.
fn now() -> i64 {
    nanos(rustix::time::clock_gettime(ClockId::RealtimeCoarse))
}

fn nanos(time: Timespec) -> i64 {
    time.tv_sec.saturating_mul(NANOS).saturating_add(time.tv_nsec)
}

fn stamp(nanos: &AtomicI64) -> Stamp {
    let nanos = nanos.load(Ordering::Relaxed);
    let fraction = u32::try_from(nanos.rem_euclid(NANOS)).expect("less than a second");
    (nanos.div_euclid(NANOS), fraction)
}

fn set(nanos: &AtomicI64, time: Time) {
    let value = match time {
        Time::Now => now(),
        Time::At(seconds, nanos) => seconds.saturating_mul(NANOS).saturating_add(nanos.into()),
    };
    nanos.store(value, Ordering::Relaxed);
}

impl<E: BlockDevice + 'static> Shared<E> {
    /// The node of the device.
    pub(super) fn file_node(&self) -> u64 {
        match self.connection.mount.kind() {
            Kind::File => ROOT,
            Kind::Directory => FILE,
        }
    }

    /// Attributes of `node`.
    pub(super) async fn attributes(&self, node: u64) -> Result<Attributes, Errno> {
        if node != self.file_node() {
            return Ok(self.directory_attributes());
        }
        let ownership = &self.ownership;
        let owner = ownership.owner();
        let device = &self.export.device;
        let allocated = device.allocated().await.map_err(|error| Errno(error.errno()))?;
        let alignment = device.request_alignment().get();
        Ok(Attributes {
            node,
            kind: Kind::File,
            permissions: owner.permissions,
            size: device.size().get(),
            allocated: allocated.get(),
            block_size: u32::try_from(alignment).unwrap_or(u32::MAX).clamp(4096, 1 << 20),
            uid: owner.uid,
            gid: owner.gid,
            accessed: stamp(&ownership.accessed),
            modified: stamp(&ownership.modified),
            changed: stamp(&ownership.changed),
        })
    }

    fn directory_attributes(&self) -> Attributes {
        let owner = self.ownership.owner();
        let made = stamp(&self.ownership.accessed);
        Attributes {
            node: ROOT,
            kind: Kind::Directory,
            permissions: 0o755,
            size: 0,
            allocated: 0,
            block_size: 4096,
            uid: self.ownership.server_uid,
            gid: owner.gid,
            accessed: made,
            modified: made,
            changed: made,
        }
    }

    /// Changes all that is asked for, or nothing.
    pub(super) async fn change(&self, node: u64, change: Change) -> Result<(), Errno> {
        if node != self.file_node() {
            return Err(Errno::PERM);
        }
        let is_read_only = self.export.access == Access::ReadOnly;
        if change.mode.is_some_and(|mode| mode & WRITABLE != 0) && is_read_only {
            return Err(Errno::ROFS);
        }
        let has_owner = change.uid.is_some() || change.gid.is_some();
        if has_owner && self.options.sharing == Sharing::Owner {
            return Err(Errno::OPNOTSUPP);
        }
        if let Some(size) = change.size {
            self.truncate(size).await?;
        }
        let ownership = &self.ownership;
        {
            let mut owner = ownership.owner.lock().unwrap_or_else(PoisonError::into_inner);
            owner.permissions = change.mode.map_or(owner.permissions, |mode| mode & 0o7777);
            owner.uid = change.uid.unwrap_or(owner.uid);
            owner.gid = change.gid.unwrap_or(owner.gid);
        }
        if let Some(time) = change.accessed {
            set(&ownership.accessed, time);
        }
        if let Some(time) = change.modified {
            set(&ownership.modified, time);
        }
        set(&ownership.changed, Time::Now);
        Ok(())
    }

    /// Whether opening with `O_TRUNC` empties the file.
    pub(super) fn truncates_on_open(&self) -> bool {
        self.export.sizing == Sizing::Growable && self.export.access == Access::ReadWrite
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicI64;

    use super::{set, stamp};
    use crate::protocol::request::Time;

    #[test]
    fn times_before_1970_and_far_away_survive() {
        let nanos = AtomicI64::new(0);
        for time in [(0, 0), (-1, 999_999_999), (-5, 1), (4_000_000_000, 7)] {
            set(&nanos, Time::At(time.0, time.1));
            assert_eq!(stamp(&nanos), time);
        }
        set(&nanos, Time::At(i64::MAX, u32::MAX));
        assert_eq!(stamp(&nanos).0, i64::MAX / 1_000_000_000);
    }
}
