//! A throw-away overlay: changes go to a file that has no name any more when clients come.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cowl::{
    Access, Backing, BlockDevice, Disk, Format, OpenOptions, Preallocation, Rings, Writeback,
};
use cowl_qcow2::CreateOptions;
use cowl_storage::UringStorage;
use cowl_tools::NewImage;

use crate::error::ServeError;

/// Where the overlay goes when `TMPDIR` does not say: it may become as large as the disk, so not
/// where memory is.
const FOLDER: &str = "/var/tmp";

/// Opens a new overlay over the image at `path`, inside a compio runtime.
pub(crate) async fn open(
    path: &Path,
    options: &OpenOptions,
) -> Result<Disk<UringStorage>, ServeError> {
    let below = OpenOptions { access: Access::ReadOnly, ..options.clone() };
    let fail = |source| ServeError::Open { path: path.to_owned(), source: Box::new(source) };
    // It is opened twice: its size and its format decide about the overlay.
    let image = Disk::open_with(&Rings, path, &below).await.map_err(fail)?;
    let (size, format) = (image.size(), image.format());
    drop(image);
    let cannot = |reason: String| ServeError::Overlay { path: path.to_owned(), reason };
    let folder = std::env::var_os("TMPDIR").unwrap_or_else(|| FOLDER.into());
    let folder = tempfile::Builder::new().prefix("cowl-").tempdir_in(folder);
    let folder = folder.map_err(|error| cannot(error.to_string()))?;
    let name = folder.path().join("overlay.qcow2");
    let absolute = std::path::absolute(path).map_err(|error| cannot(error.to_string()))?;
    let new = CreateOptions {
        backing: Some(absolute.as_os_str().as_bytes().to_vec()),
        backing_format: Some(format.name().as_bytes().to_vec()),
        ..CreateOptions::new(size)
    };
    let new = NewImage::Qcow2 { options: Box::new(new), preallocation: Preallocation::Off };
    cowl_tools::create(&name, &new).map_err(|error| cannot(error.to_string()))?;
    let with_image = OpenOptions {
        access: Access::ReadWrite,
        // It is gone when the server is: perhaps the disk never sees it.
        writeback: Writeback::ByHost,
        format: Some(Format::Qcow2),
        backing: Backing::File {
            path: path.to_owned(),
            format: Some(format),
            backing: Box::new(options.backing.clone()),
        },
        ..options.clone()
    };
    Disk::open_with(&Rings, &name, &with_image).await.map_err(fail)
    // The folder goes now, and the file with its last descriptor.
}
