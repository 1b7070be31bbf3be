//! What is asked for: an image, what of it is shown, under which name and rules.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cowl::{Access, DirtyBitmap, Disk, OpenOptions, Rings};
use cowl_nbd::BITMAP_COUNT_MAX;
use cowl_qcow2::BitmapError;
use cowl_storage::{FileIdentity, UringStorage};

use crate::disk::{DiskRef, Rules};
use crate::error::{ServeError, TEXT_MAX};
use crate::overlay;

/// How long a process that was killed may hold its locks.
const DYING: Duration = Duration::from_secs(2);
const DYING_PAUSE: Duration = Duration::from_millis(20);

/// Bitmaps with their names.
pub(crate) type Bitmaps = Vec<(String, Arc<DirtyBitmap>)>;

/// What clients change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The image.
    Image,
    /// An overlay that is thrown away at the end; the image stays as it is.
    Temporary,
}

/// An export.
#[derive(Clone)]
pub struct ExportOptions {
    /// Its name.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
    /// The image.
    pub path: PathBuf,
    /// How it is opened. Without write access the export is read-only.
    pub open: OpenOptions,
    /// What clients change.
    pub content: Content,
    /// Clients may change nothing, whatever the image or the overlay would take.
    pub read_only: bool,
    /// Where the export begins in the disk, in bytes.
    pub start: u64,
    /// Its length in bytes; `None` for all to the end.
    pub length: Option<u64>,
    /// How requests are carried out.
    pub rules: Rules,
    /// Names of persistent dirty bitmaps that clients can ask about.
    pub bitmaps: Vec<String>,
    /// Virtual machines that have it as a disk, for as long as the daemon runs.
    pub vhost_user: Option<VhostUser>,
    /// A file that shows it, for as long as the daemon runs.
    pub fuse: Option<FuseFile>,
}

/// A plain file that is the export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FuseFile {
    /// A plain file that it covers, or a directory in which it has the export's name.
    pub mount_point: PathBuf,
    /// Whether writing past the end makes the disk longer.
    pub growable: bool,
    /// Whether other users than the one who serves can use it.
    pub allow_other: bool,
}

/// A disk of virtual machines, one at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhostUser {
    /// Where they connect.
    pub place: VhostUserPlace,
    /// Queues that they may use, at most.
    pub queues_max: u16,
    /// What the guest sees as the serial number; its first 20 bytes.
    pub serial: String,
}

/// Where the front-ends of an export are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VhostUserPlace {
    /// They connect to this socket.
    Path(PathBuf),
    /// This descriptor of the process is a socket, listening or connected.
    Descriptor(i32),
}

impl ExportOptions {
    /// All of the image at `path` under `name`.
    #[must_use]
    pub fn whole(name: impl Into<String>, path: &Path, open: OpenOptions) -> Self {
        Self {
            name: name.into(),
            description: String::new(),
            path: path.to_owned(),
            open,
            content: Content::Image,
            read_only: false,
            start: 0,
            length: None,
            rules: Rules::standard(),
            bitmaps: Vec::new(),
            vhost_user: None,
            fuse: None,
        }
    }

    /// Opens the image, inside a compio runtime.
    pub(crate) async fn open(&self) -> Result<DiskRef, ServeError> {
        let fail = |source| ServeError::Open { path: self.path.clone(), source: Box::new(source) };
        let disk = match self.content {
            Content::Image => self.open_image().await.map_err(fail)?,
            Content::Temporary => overlay::open(&self.path, &self.open).await?,
        };
        Ok(DiskRef::new(self.path.clone(), disk))
    }

    /// Waits a little for the locks of a server that was killed: they live until the last write in
    /// its ring has ended, and such a write must not come after ours.
    async fn open_image(&self) -> Result<Disk<UringStorage>, cowl::Error> {
        let until = Instant::now() + DYING;
        loop {
            match Disk::open_with(&Rings, &self.path, &self.open).await {
                Err(error) if is_locked(&error) && Instant::now() < until => {
                    compio::runtime::time::sleep(DYING_PAUSE).await;
                }
                outcome => return outcome,
            }
        }
    }

    /// Reads the bitmaps that clients can ask about.
    pub(crate) async fn read_bitmaps(&self, disk: &DiskRef) -> Result<Bitmaps, ServeError> {
        if BITMAP_COUNT_MAX < self.bitmaps.len() {
            return Err(ServeError::TooManyBitmaps { name: self.name.clone() });
        }
        let mut bitmaps = Vec::new();
        for (index, name) in self.bitmaps.iter().enumerate() {
            if self.bitmaps[..index].contains(name) {
                continue;
            }
            let read = match disk.disk.qcow2() {
                Some(image) => image.dirty_bitmap(name).await,
                None => Err(BitmapError::NotFound { name: name.clone() }),
            };
            let path = || self.path.clone();
            let bitmap = read.map_err(|source| ServeError::Bitmap { path: path(), source })?;
            bitmaps.push((name.clone(), Arc::new(bitmap)));
        }
        Ok(bitmaps)
    }

    /// Refuses texts that no client takes: one of them would keep clients from listing the others.
    pub(crate) fn check_texts(&self) -> Result<(), ServeError> {
        for (what, text) in [("the name", &self.name), ("the description", &self.description)] {
            if TEXT_MAX < text.len() {
                return Err(ServeError::TextTooLong { what, length: text.len() });
            }
        }
        Ok(())
    }

    /// Refuses a window that a disk of `size` bytes does not have.
    pub(crate) fn check_window(&self, size: u64) -> Result<(), ServeError> {
        match self.start.checked_add(self.length.unwrap_or(0)) {
            Some(end) if end <= size && (self.start == 0 || self.start < size) => Ok(()),
            _ => Err(ServeError::OutsideOfDisk { name: self.name.clone(), size }),
        }
    }

    /// Whether `self` and `other` show the same image, opened in the same way but for what may be
    /// changed: one open disk serves both. Two would lock each other out.
    pub(crate) fn is_same_image(&self, other: &Self) -> bool {
        self.content == Content::Image
            && other.content == Content::Image
            && is_same_file(&self.path, &other.path)
            && self.open.format == other.open.format
            && self.open.snapshot == other.open.snapshot
            && self.open.backing == other.open.backing
            && self.open.caching == other.open.caching
    }

    /// Whether `disk`, which was opened for `self`, serves `other` too.
    pub(crate) fn shares_disk_with(&self, disk: &DiskRef, other: &Self) -> bool {
        let may_change = !cowl::BlockDevice::is_read_only(&disk.disk);
        self.is_same_image(other) && (may_change || other.open.access == Access::ReadOnly)
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.read_only || (self.content == Content::Image && self.open.access == Access::ReadOnly)
    }
}

/// Whether both paths lead to one file. A path that leads nowhere is only like itself.
pub(crate) fn is_same_file(one: &Path, other: &Path) -> bool {
    let identity = FileIdentity::at;
    one == other || identity(one).is_some_and(|one| identity(other) == Some(one))
}

/// Says of a lock in the way that it is this daemon's own, where that is so.
pub(crate) fn explain_lock(error: ServeError, is_ours: impl FnOnce(&Path) -> bool) -> ServeError {
    match error {
        ServeError::Open { path, source } if is_locked(&source) && is_ours(&path) => {
            ServeError::OpenAlready { path }
        }
        other => other,
    }
}

/// Whether the image is open already, here or elsewhere.
fn is_locked(error: &cowl::Error) -> bool {
    matches!(error, cowl::Error::Storage(error) if error.lock_conflict().is_some())
}
