//! `create`: a new image without data.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowl::{ByteCount, Caching};
use cowl_qcow2::{BuilderFiles, CreateError, CreateOptions, Preallocation};
use cowl_storage::{
    Allocation, Durability, FileStorage, Purpose, Replacement, Storage, StorageError, Writeback,
};
use pollster::block_on;

/// The image to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewImage {
    /// A raw file.
    Raw {
        /// Size of the disk; rounded up to 512 bytes.
        size: ByteCount,
        /// When its space is allocated.
        preallocation: Preallocation,
    },
    /// A qcow2 image.
    Qcow2 {
        /// What it shall be. An external data file is created too.
        options: Box<CreateOptions>,
        /// When its space is allocated.
        preallocation: Preallocation,
    },
}

/// Creates `image` at `target`, replacing what is there. Durable when this returns; on an error the
/// target's name is as it was.
pub fn create(target: &Path, image: &NewImage) -> Result<(), CreateError> {
    match image {
        NewImage::Raw { size, preallocation } => {
            let file = Replacement::create(target, Caching::PageCache, Writeback::Early)?;
            let size = ByteCount::new(size.get().next_multiple_of(512));
            block_on(allocate_raw(file.file(), size, *preallocation))?;
            Ok(block_on(file.commit(Durability::Durable))?)
        }
        NewImage::Qcow2 { options, preallocation } => {
            options.check()?;
            check_data_file(target, options)?;
            let file = Replacement::create(target, Caching::PageCache, Writeback::Early)?;
            let data = data_file(options, Caching::PageCache, Writeback::Early)?;
            let files = BuilderFiles {
                image: Arc::clone(file.file()),
                data: data.as_ref().map(|data| Arc::clone(data.file())),
            };
            block_on(cowl_qcow2::create(files, options, *preallocation))?;
            if let Some(data) = data {
                block_on(data.commit(Durability::Durable))?;
            }
            Ok(block_on(file.commit(Durability::Durable))?)
        }
    }
}

async fn allocate_raw(
    file: &FileStorage,
    size: ByteCount,
    preallocation: Preallocation,
) -> Result<(), StorageError> {
    file.set_len(size, Purpose::FileLength).await?;
    let how = match preallocation {
        Preallocation::Off | Preallocation::Metadata => return Ok(()),
        Preallocation::Falloc => Allocation::Reserve,
        Preallocation::Full => Allocation::WriteZeros,
    };
    file.allocate(cowl::HostOffset::ZERO, size, how, Purpose::Preallocation).await
}

/// Refuses a data file that is the image: whichever is written last would replace the other.
pub(crate) fn check_data_file(target: &Path, options: &CreateOptions) -> Result<(), CreateError> {
    let is_target = data_file_path(options).is_some_and(|data| place(data) == place(target));
    if is_target { Err(CreateError::DataFileIsImage) } else { Ok(()) }
}

/// Where a name leads, whether there is a file yet or not.
fn place(path: &Path) -> PathBuf {
    let whole = std::fs::canonicalize(path).ok();
    let in_folder = || {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = std::fs::canonicalize(folder.unwrap_or(Path::new("."))).ok()?;
        Some(folder.join(path.file_name()?))
    };
    whole.or_else(in_folder).unwrap_or_else(|| path.to_owned())
}

/// The external data file, which the image names relative to the working folder.
fn data_file_path(options: &CreateOptions) -> Option<&Path> {
    use std::os::unix::ffi::OsStrExt;
    options.data_file.as_deref().map(|name| Path::new(std::ffi::OsStr::from_bytes(name)))
}

/// A new external data file, if the image shall have one.
pub(crate) fn data_file(
    options: &CreateOptions,
    caching: Caching,
    writeback: Writeback,
) -> Result<Option<Replacement>, StorageError> {
    let create = |path| Replacement::create(path, caching, writeback);
    data_file_path(options).map(create).transpose()
}
