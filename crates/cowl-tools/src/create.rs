//! `create`: a new image without data.

use std::path::Path;
use std::sync::Arc;

use cowl::{ByteCount, Caching};
use cowl_qcow2::{BuilderFiles, CreateError, CreateOptions, Preallocation};
use cowl_storage::{
    Allocation, Durability, FileStorage, Purpose, Replacement, Storage, StorageError,
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
            let file = Replacement::create(target, Caching::PageCache)?;
            let size = ByteCount::new(size.get().next_multiple_of(512));
            block_on(allocate_raw(file.file(), size, *preallocation))?;
            Ok(block_on(file.commit(Durability::Durable))?)
        }
        NewImage::Qcow2 { options, preallocation } => {
            options.check()?;
            let file = Replacement::create(target, Caching::PageCache)?;
            let data = data_file(options)?;
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

/// The external data file, which the image names relative to the working folder.
fn data_file(options: &CreateOptions) -> Result<Option<Replacement>, StorageError> {
    use std::os::unix::ffi::OsStrExt;
    let Some(name) = &options.data_file else { return Ok(None) };
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    Replacement::create(path, Caching::PageCache).map(Some)
}
