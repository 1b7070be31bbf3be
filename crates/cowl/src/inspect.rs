//! Looking at one file without opening anything that it names.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowl_format::{BitmapDirectory, ByteCount, Header, SnapshotTable};
use cowl_qcow2::{CheckProgress, CheckReport, Offload, read_bitmaps, read_header, read_snapshots};
use cowl_storage::{Blocking, FileOptions, LockMode, Storage};

use crate::error::{Error, Refusal};
use crate::format::{Format, probe};
use crate::open::{Files, Sharing, StorageOpener};

/// What a file says about itself.
#[derive(Debug)]
pub struct Inspection {
    /// The file.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Length of the file.
    pub file_length: ByteCount,
    /// Bytes the host has allocated for it.
    pub allocated: ByteCount,
    /// What only a qcow2 image has.
    pub qcow2: Option<Qcow2Inspection>,
}

/// What a qcow2 file says about itself.
#[derive(Debug)]
pub struct Qcow2Inspection {
    /// The header.
    pub header: Header,
    /// The snapshots, or why they cannot be read.
    pub snapshots: Result<SnapshotTable, cowl_qcow2::Error>,
    /// The persistent bitmaps, or why they cannot be read.
    pub bitmaps: Result<BitmapDirectory, cowl_qcow2::Error>,
}

impl Inspection {
    /// Size of the disk.
    #[must_use]
    pub fn virtual_size(&self) -> ByteCount {
        match &self.qcow2 {
            Some(qcow2) => qcow2.header.virtual_size(),
            None => self.file_length,
        }
    }
}

/// Reads what the file at `path` says about itself. Opens nothing else, and works for encrypted and
/// damaged images as long as their header is sound.
pub fn inspect(path: &Path, format: Option<Format>, sharing: Sharing) -> Result<Inspection, Error> {
    inspect_with(&Files, path, format, sharing)
}

/// The same, with a file from `opener`.
pub fn inspect_with<O>(
    opener: &O,
    path: &Path,
    format: Option<Format>,
    sharing: Sharing,
) -> Result<Inspection, Error>
where
    O: StorageOpener<Storage: Blocking>,
{
    pollster::block_on(async {
        let lock = match sharing {
            Sharing::NoWriters => LockMode::Info,
            Sharing::Anyone => LockMode::None,
        };
        let (file, format) = open(opener, path, format, lock).await?;
        let qcow2 = match format {
            Format::Raw => None,
            Format::Qcow2 => {
                let header = read_header(&file).await.map_err(Error::image(path))?;
                Some(Qcow2Inspection {
                    snapshots: read_snapshots(&file, &header).await,
                    bitmaps: read_bitmaps(&file, &header).await,
                    header,
                })
            }
        };
        let (file_length, allocated) = (file.len().await?, file.allocated().await?);
        Ok(Inspection { path: path.to_owned(), format, file_length, allocated, qcow2 })
    })
}

/// Checks the metadata of the qcow2 image at `path`; opens nothing else.
pub fn check(
    path: &Path,
    format: Option<Format>,
    sharing: Sharing,
    offload: Option<Arc<dyn Offload>>,
    progress: &dyn CheckProgress,
) -> Result<CheckReport, Error> {
    check_with(&Files, path, format, sharing, offload, progress)
}

/// The same, with a file from `opener`.
pub fn check_with<O>(
    opener: &O,
    path: &Path,
    format: Option<Format>,
    sharing: Sharing,
    offload: Option<Arc<dyn Offload>>,
    progress: &dyn CheckProgress,
) -> Result<CheckReport, Error>
where
    O: StorageOpener<Storage: Blocking>,
{
    pollster::block_on(async {
        let lock = match sharing {
            Sharing::NoWriters => LockMode::ReadOnly,
            Sharing::Anyone => LockMode::ForceShare,
        };
        let (file, format) = open(opener, path, format, lock).await?;
        if format != Format::Qcow2 {
            let refusal = Refusal::NotInRaw { what: "metadata to check" };
            return Err(Error::Refused { path: path.to_owned(), refusal });
        }
        let header = read_header(&file).await.map_err(Error::image(path))?;
        cowl_qcow2::check(&file, &header, offload, progress).await.map_err(Error::image(path))
    })
}

async fn open<O: StorageOpener>(
    opener: &O,
    path: &Path,
    format: Option<Format>,
    lock: LockMode,
) -> Result<(O::Storage, Format), Error> {
    let file = opener.open(path, FileOptions { lock, ..FileOptions::read_only() })?;
    let format = match format {
        Some(format) => format,
        None => probe(&file).await?,
    };
    Ok((file, format))
}
