//! From an image name to an open disk, and from the library's errors to qemu-img's words.

use std::io;
use std::sync::Arc;

use cowl::{
    Backing, Caching, Error, Follow, Format, OpenOptions, Refusal, Sharing, StorageError,
    WorkerPool, inspect_with,
};
use cowl_storage::Operation;
use cowl_tools::{Disk, HostFiles, open_disk};

use crate::failure::{Failure, Kind};
use crate::image_name::{BackingChoice, ImageName, could_not_open};
use crate::option::Common;
use crate::snapshot_name::SnapshotName;

/// Opens an image for reading.
pub(crate) fn open(
    name: &ImageName,
    common: &Common,
    snapshot: Option<&SnapshotName>,
) -> Result<Disk, Failure> {
    open_cached(name, common, snapshot, Caching::PageCache)
}

/// The same, with or without the page cache of the host.
pub(crate) fn open_cached(
    name: &ImageName,
    common: &Common,
    snapshot: Option<&SnapshotName>,
    caching: Caching,
) -> Result<Disk, Failure> {
    let options = options(name, common, snapshot, caching)?;
    open_disk(&name.path, &options).map_err(|error| failure(name, &error))
}

/// How an image is opened for reading.
pub(crate) fn options(
    name: &ImageName,
    common: &Common,
    snapshot: Option<&SnapshotName>,
    caching: Caching,
) -> Result<OpenOptions, Failure> {
    let base = if common.untrusted { OpenOptions::untrusted() } else { OpenOptions::local() };
    Ok(OpenOptions {
        format: format(name),
        backing: backing(&name.backing),
        sharing: sharing(common),
        caching,
        snapshot: snapshot.map(|wanted| find_snapshot(name, common, wanted)).transpose()?,
        offload: Some(worker_pool()?),
        follow: follow(common),
        ..base
    })
}

/// Opens an image that an option named; the error is in words.
pub(crate) fn open_words(name: &ImageName) -> Result<Disk, String> {
    let options = OpenOptions { format: format(name), ..OpenOptions::local() };
    open_disk(&name.path, &options).map_err(|error| words(&error))
}

/// Threads for decompression and the like.
pub(crate) fn worker_pool() -> Result<Arc<WorkerPool>, Failure> {
    WorkerPool::for_this_machine().map(Arc::new).map_err(|error| {
        Failure::new(Kind::Io, format!("Could not start threads: {}", system_words(&error)))
    })
}

/// Who else may use the image.
pub(crate) fn sharing(common: &Common) -> Sharing {
    if common.force_share { Sharing::Anyone } else { Sharing::NoWriters }
}

/// What the image may make us open.
pub(crate) fn follow(common: &Common) -> Follow {
    match (common.untrusted, common.follows_nbd) {
        (true, _) => Follow::Nothing,
        (false, true) => Follow::LocalFilesAndNbd,
        (false, false) => Follow::LocalFiles,
    }
}

/// The format that the operator stated. Others were refused when the name was read.
pub(crate) fn format(name: &ImageName) -> Option<Format> {
    name.format.as_deref().and_then(|format| Format::from_name(format.as_bytes()))
}

/// The backing file that was chosen.
pub(crate) fn backing(choice: &BackingChoice) -> Backing {
    match choice {
        BackingChoice::FromImage => Backing::FromImage,
        BackingChoice::Nothing => Backing::Nothing,
        BackingChoice::Image(image) => Backing::File {
            path: image.path.clone(),
            format: format(image),
            backing: Box::new(backing(&image.backing)),
        },
    }
}

/// The ID of the snapshot that is meant.
pub(crate) fn find_snapshot(
    name: &ImageName,
    common: &Common,
    wanted: &SnapshotName,
) -> Result<String, Failure> {
    let cannot =
        |reason: &str| Failure::new(Kind::Open, format!("Failed to load snapshot: {reason}"));
    let found = inspect_with(&HostFiles, &name.path, format(name), sharing(common));
    let found = found.map_err(|error| failure(name, &error))?;
    let Some(qcow2) = found.qcow2 else {
        return Err(cannot(
            "Block format 'raw' used by device '' does not support temporarily loading internal \
             snapshots",
        ));
    };
    let table = qcow2.snapshots.map_err(|error| cannot(&error.to_string()))?;
    let snapshot = match wanted {
        SnapshotName::IdOrName(text) => table.find(text.as_bytes()),
        SnapshotName::Exact { id, name } => table.snapshots.iter().find(|snapshot| {
            let is = |wanted: &Option<String>, given: &[u8]| {
                wanted.as_ref().is_none_or(|wanted| wanted.as_bytes() == given)
            };
            is(id, &snapshot.id) && is(name, &snapshot.name)
        }),
    };
    let snapshot = snapshot.ok_or_else(|| cannot("Can't find snapshot"))?;
    Ok(String::from_utf8_lossy(&snapshot.id).into_owned())
}

/// The failure to open `name`.
pub(crate) fn failure(name: &ImageName, error: &Error) -> Failure {
    let failure = could_not_open(&name.given, &words(error));
    match hint(error) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Why an image was not opened, in qemu-img's words where it has any.
pub(crate) fn words(error: &Error) -> String {
    match error {
        Error::Storage(error) => storage_words(error),
        Error::Image { source: cowl_qcow2::Error::Corrupt { corruption, .. }, .. } => {
            corruption.to_string()
        }
        Error::Image { source, .. } => source.to_string(),
        Error::Refused { refusal: Refusal::BackingFormatUnknown { format }, .. } => {
            format!("Could not open backing file: Unknown driver '{format}'")
        }
        Error::Refused { refusal, .. } => refusal.to_string(),
        Error::Below { role: "backing file", source, .. } => {
            format!("Could not open backing file: {}", words(source))
        }
        Error::Below { source, .. } => words(source),
        other => other.to_string(),
    }
}

fn storage_words(error: &StorageError) -> String {
    let path = error.path().display();
    if let Some(words) = lock_words(error) {
        return words;
    }
    match (error.operation(), error.io_error().kind()) {
        (Operation::Open, io::ErrorKind::IsADirectory) => {
            format!("'file' driver requires '{path}' to be a regular file")
        }
        (Operation::Open, _) => {
            format!("Could not open '{path}': {}", system_words(error.io_error()))
        }
        _ => error.to_string(),
    }
}

/// Who else uses the file, where that is what went wrong.
pub(crate) fn lock_words(error: &StorageError) -> Option<String> {
    let conflict = error.lock_conflict()?;
    Some(format!("{}\n{}", conflict.qemu_message(), conflict.qemu_hint()))
}

fn hint(error: &Error) -> Option<String> {
    match error {
        Error::Storage(error) => error.lock_conflict().map(ToString::to_string),
        Error::Below { source, .. } => hint(source),
        Error::Refused { refusal: Refusal::BackingFormatMissing { name }, .. } => Some(format!(
            "name the backing file yourself: \
             json:{{'driver':'qcow2','file.filename':IMAGE,'backing':{{'driver':FORMAT,\
             'file.filename':'{name}'}}}}"
        )),
        _ => None,
    }
}

/// What the system says about an error, without the number that Rust adds.
pub(crate) fn system_words(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error ") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}
