//! An image that is to be served.

use std::sync::Arc;

use cowl::{Access, CacheLimits, Caching, OpenOptions, Sharing};
use cowl_serve::{Content, DetectZeros, ExportOptions, FuseFile, LatePool, Rules, VhostUser};

use crate::disk;
use crate::failure::Failure;
use crate::image_name::ImageName;
use crate::option::Common;
use crate::settings::Settings;
use crate::snapshot_name::SnapshotName;

/// What was said about an image.
pub(crate) struct ImageRequest {
    /// The export's name.
    pub(crate) export: String,
    pub(crate) description: String,
    pub(crate) image: ImageName,
    pub(crate) settings: Settings,
    /// Show this internal snapshot.
    pub(crate) snapshot: Option<SnapshotName>,
    /// Changes go to an overlay that is thrown away.
    pub(crate) temporary: bool,
    pub(crate) start: u64,
    pub(crate) length: Option<u64>,
    pub(crate) detect_zeros: DetectZeros,
    pub(crate) cache: CacheLimits,
    /// Dirty bitmaps that clients can ask about.
    pub(crate) bitmaps: Vec<String>,
    /// Virtual machines that have it as a disk.
    pub(crate) vhost_user: Option<VhostUser>,
    /// A file that shows it.
    pub(crate) fuse: Option<FuseFile>,
}

impl ImageRequest {
    /// What the daemon is asked for. Looks into the image where it names a snapshot.
    pub(crate) fn export(
        mut self,
        common: &Common,
        pool: &Arc<LatePool>,
    ) -> Result<ExportOptions, Failure> {
        self.settings.tune(&self.image.tuning).map_err(Failure::usage)?;
        if let Some(contradiction) = self.settings.contradiction() {
            let name = &self.image.given;
            return Err(Failure::usage(format!("Could not open '{name}': {contradiction}")));
        }
        if self.temporary && self.snapshot.is_some() {
            let message = "a snapshot is shown read-only, and a temporary overlay is for writing";
            return Err(Failure::usage(message));
        }
        let find = |wanted| disk::find_snapshot(&self.image, common, wanted);
        let snapshot = self.snapshot.as_ref().map(find).transpose()?;
        let is_read_only = self.settings.read_only || snapshot.is_some();
        let access = match is_read_only && !self.temporary {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        let open = OpenOptions {
            access,
            format: disk::format(&self.image),
            backing: disk::backing(&self.image.backing),
            sharing: if self.settings.force_share { Sharing::Anyone } else { Sharing::NoWriters },
            caching: if self.settings.is_direct() { Caching::Direct } else { Caching::PageCache },
            writeback: self.settings.writeback(),
            snapshot,
            cache: self.cache,
            ..base(common.untrusted, pool)
        };
        let rules = Rules {
            write_through: self.settings.is_writethrough(),
            never_flush: !self.settings.flushes(),
            discard: self.settings.discards(),
            detect_zeros: self.detect_zeros,
        };
        Ok(ExportOptions {
            description: self.description,
            content: if self.temporary { Content::Temporary } else { Content::Image },
            read_only: is_read_only,
            start: self.start,
            length: self.length,
            rules,
            bitmaps: self.bitmaps,
            vhost_user: self.vhost_user,
            fuse: self.fuse,
            ..ExportOptions::whole(self.export, &self.image.path, open)
        })
    }
}

/// How images are opened when nothing is said.
pub(crate) fn base(untrusted: bool, pool: &Arc<LatePool>) -> OpenOptions {
    let base = if untrusted { OpenOptions::untrusted() } else { OpenOptions::local() };
    let pool: Arc<LatePool> = Arc::clone(pool);
    OpenOptions { offload: Some(pool), ..base }
}

/// Reads a value of `--detect-zeroes`.
pub(crate) fn detect_zeros(value: &str, settings: &Settings) -> Result<DetectZeros, Failure> {
    match value {
        "off" => Ok(DetectZeros::Off),
        "on" => Ok(DetectZeros::On),
        "unmap" if settings.discards() => Ok(DetectZeros::Unmap),
        "unmap" => Err(Failure::usage(
            "setting detect-zeroes to unmap is not allowed without setting discard operation to \
             unmap",
        )),
        _ => Err(Failure::usage(format!(
            "Failed to parse detect_zeroes mode: invalid parameter value: {value}"
        ))),
    }
}
