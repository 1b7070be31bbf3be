//! The images that curves are measured on: cowl makes them, and each is made once.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowl::{Access, ByteCount, Caching, Disk, GuestOffset, OpenOptions, Preallocation};
use cowl_qcow2::{BuilderFiles, CreateOptions};
use cowl_storage::{Durability, FileStorage, IoBuffer, Replacement, Writeback};

use crate::fixtures::Folder;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;
pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const TIB: u64 = 1 << 40;

/// Bytes of a cluster of every image here.
pub(crate) const CLUSTER: u64 = 64 * KIB;

pub(crate) fn words(error: impl Display) -> String {
    error.to_string()
}

/// "64 KiB", "1 TiB".
pub(crate) fn size_text(bytes: u64) -> String {
    let units = [(TIB, "TiB"), (GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")];
    let unit = units.into_iter().find(|(unit, _)| bytes.is_multiple_of(*unit));
    unit.map_or(format!("{bytes} bytes"), |(unit, name)| format!("{} {name}", bytes / unit))
}

/// Makes `name` unless it is there; `make` gets a name that counts only when it succeeds.
pub(crate) fn once(
    folder: &Folder,
    name: &str,
    make: impl FnOnce(&Path) -> Result<(), String>,
) -> Result<PathBuf, String> {
    let path = folder.path(name);
    if !path.exists() {
        let unfinished = folder.path(&format!("{name}.unfinished"));
        make(&unfinished)?;
        fs::rename(&unfinished, &path).map_err(words)?;
    }
    Ok(path)
}

/// A new image at `path`.
pub(crate) fn create(
    path: &Path,
    options: &CreateOptions,
    preallocation: Preallocation,
    durability: Durability,
) -> Result<(), String> {
    let file: Replacement =
        Replacement::create(path, Caching::PageCache, Writeback::ByHost).map_err(words)?;
    let files: BuilderFiles<FileStorage> =
        BuilderFiles { image: Arc::clone(file.file()), data: None };
    pollster::block_on(async {
        match durability {
            Durability::Durable => {
                cowl_qcow2::create(files, options, preallocation).await.map_err(words)?;
            }
            Durability::Unsafe => {
                let builder = cowl_qcow2::Builder::new(files, options).map_err(words)?;
                builder.preallocate(preallocation).await.map_err(words)?;
                builder.finish(false).await.map_err(words)?;
            }
        }
        file.commit(durability).await.map_err(words)
    })
}

/// A sparse disk of `size` with one cluster of data, the last one: its tables reach to the end.
pub(crate) fn sparse(folder: &Folder, size: u64) -> Result<PathBuf, String> {
    once(folder, &format!("sparse-{size}.qcow2"), |path| {
        let options = CreateOptions::new(ByteCount::new(size));
        create(path, &options, Preallocation::Off, Durability::Unsafe)?;
        fill(path, size - CLUSTER, CLUSTER)
    })
}

/// Options of an overlay of `size` over an image in the same folder.
pub(crate) fn overlay_options(below: &Path, size: u64) -> CreateOptions {
    let name = below.file_name().expect("it is a file").as_encoded_bytes();
    CreateOptions {
        backing: Some(name.to_vec()),
        backing_format: Some(b"qcow2".to_vec()),
        ..CreateOptions::new(ByteCount::new(size))
    }
}

/// A disk of `size` with all of its tables and no data.
pub(crate) fn tables_only(folder: &Folder, size: u64) -> Result<PathBuf, String> {
    once(folder, &format!("tables-{size}.qcow2"), |path| {
        let options = CreateOptions::new(ByteCount::new(size));
        create(path, &options, Preallocation::Metadata, Durability::Unsafe)
    })
}

/// A disk of `size` with `data` bytes of data at its start.
pub(crate) fn with_data(folder: &Folder, size: u64, data: u64) -> Result<PathBuf, String> {
    once(folder, &format!("data-{size}-{data}.qcow2"), |path| {
        let options = CreateOptions::new(ByteCount::new(size));
        create(path, &options, Preallocation::Off, Durability::Unsafe)?;
        fill(path, 0, data)
    })
}

/// How images are opened to be changed.
pub(crate) fn to_write() -> OpenOptions {
    OpenOptions { access: Access::ReadWrite, ..OpenOptions::local() }
}

/// Writes `length` bytes from `at` on, a whole number of clusters.
pub(crate) fn fill(path: &Path, at: u64, length: u64) -> Result<(), String> {
    let disk = Disk::open(path, &to_write()).map_err(words)?;
    let mut payload = IoBuffer::zeroed(CLUSTER as usize);
    payload.fill(0xA5);
    for offset in (at..at + length).step_by(CLUSTER as usize) {
        let at = GuestOffset::new(offset);
        pollster::block_on(disk.write_from(at, &payload)).map_err(words)?;
    }
    disk.close().map_err(words)
}
