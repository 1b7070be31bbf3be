//! Finding out what an image says about itself, and the images it stands on.
//!
//! Only headers, snapshot tables and bitmap directories are read. The chain is followed by its
//! names, one image at a time, as far as the caller's policy allows; an image whose backing file is
//! missing can be looked at as well as any other.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use cowl::{
    Error, FileOptions, Follow, Format, Inspection, LockMode, Qcow2Inspection, Refusal, Sharing,
    StorageOpener, remote_uri, resolve_backing_name,
};
use cowl_format::limits::BACKING_DEPTH_MAX;
use cowl_format::{
    AutoclearFeatures, BitmapDirectoryEntry, BitmapFlags, CompatibleFeatures, CompressionType,
    CryptMethod, Header, IncompatibleFeatures, Snapshot, Version,
};
use cowl_storage::{IoBuffer, Purpose, Storage};
use pollster::block_on;

use crate::host::HostFiles;
use crate::info::{
    BitmapInfo, ChildInfo, EncryptInfo, FormatSpecific, ImageInfo, NodeInfo, Qcow2Info,
    SnapshotInfo,
};
use crate::luks;

const SECTOR_BYTES: u64 = 512;
const NANOSECONDS: u64 = 1_000_000_000;

/// How to look at an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoOptions {
    /// Its format; `None` finds out from the first bytes.
    pub format: Option<Format>,
    /// Who else may use the files.
    pub sharing: Sharing,
    /// What the image may make us open, when its chain is asked for.
    pub follow: Follow,
}

/// Why a chain could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum InfoError {
    /// An image could not be opened.
    #[error("Could not open '{}': {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Error,
    },
    /// The chain comes back to an image that it has already.
    #[error("Backing file '{}' creates an infinite loop.", path.display())]
    Loop {
        /// Which.
        path: PathBuf,
    },
}

/// What the image at `path` says about itself.
///
/// # Errors
/// When it cannot be opened.
pub fn info(path: &Path, options: InfoOptions) -> Result<ImageInfo, InfoError> {
    let found = look(path, options.format, options.sharing)?;
    Ok(describe(&found))
}

/// The same for each image of the chain, the top one first.
///
/// # Errors
/// When one of them cannot be opened, or may not be by `options.follow`.
pub fn info_chain(path: &Path, options: InfoOptions) -> Result<Vec<ImageInfo>, InfoError> {
    let mut chain = Vec::new();
    let mut seen: Vec<PathBuf> = Vec::new();
    let mut next = Some((path.to_owned(), options.format));
    while let Some((path, format)) = next {
        let identity = std::fs::canonicalize(&path).unwrap_or(path.clone());
        if seen.contains(&identity) {
            return Err(InfoError::Loop { path });
        }
        if BACKING_DEPTH_MAX < seen.len() {
            let refusal = Refusal::TooDeep { max: BACKING_DEPTH_MAX };
            let source = Error::Refused { path: path.clone(), refusal };
            return Err(InfoError::Open { path, source });
        }
        seen.push(identity);
        let found = look(&path, format, options.sharing)?;
        chain.push(describe(&found));
        next = below(&found, options.follow)
            .map_err(|source| InfoError::Open { path: path.clone(), source })?;
    }
    Ok(chain)
}

fn look(path: &Path, format: Option<Format>, sharing: Sharing) -> Result<Inspection, InfoError> {
    cowl::inspect_with(&HostFiles, path, format, sharing)
        .map_err(|source| InfoError::Open { path: path.to_owned(), source })
}

/// The image that `found` stands on.
fn below(found: &Inspection, follow: Follow) -> Result<Option<(PathBuf, Option<Format>)>, Error> {
    let Some(header) = found.qcow2.as_ref().map(|qcow2| &qcow2.header) else { return Ok(None) };
    let Some(backing) = &header.backing else { return Ok(None) };
    let name = lossy(&backing.name);
    let refuse = |refusal| Err(Error::Refused { path: found.path.clone(), refusal });
    if follow == Follow::Nothing {
        return refuse(Refusal::Following { role: "backing file", name });
    }
    let named = PathBuf::from(OsStr::from_bytes(&backing.name));
    let path = match remote_uri(&named) {
        Some(_) if follow == Follow::LocalFilesAndNbd => named,
        _ => resolve_backing_name(&found.path, &backing.name)?,
    };
    let Some(format) = &header.backing_format else {
        return refuse(Refusal::BackingFormatMissing { name });
    };
    match Format::from_name(format) {
        Some(format) => Ok(Some((path, Some(format)))),
        None => refuse(Refusal::BackingFormatUnknown { format: lossy(format) }),
    }
}

fn describe(found: &Inspection) -> ImageInfo {
    let filename = found.path.to_string_lossy().into_owned();
    let header = found.qcow2.as_ref().map(|qcow2| &qcow2.header);
    let backing = header.and_then(|header| header.backing.as_ref());
    let mut warnings = Vec::new();
    let snapshots = found.qcow2.as_ref().map(|qcow2| snapshots(qcow2, &mut warnings));
    ImageInfo {
        children: vec![ChildInfo { name: "file".into(), info: file_node(found) }],
        snapshots: snapshots.unwrap_or_default(),
        backing_filename_format: backing
            .and(header)
            .and_then(|header| header.backing_format.as_deref())
            .map(lossy),
        virtual_size: found.virtual_size().get().next_multiple_of(SECTOR_BYTES),
        filename,
        cluster_size: header.map(|header| header.geometry.cluster_size()),
        format: found.format.name().into(),
        actual_size: Some(found.allocated.get()),
        format_specific: found
            .qcow2
            .as_ref()
            .map(|qcow2| FormatSpecific::Qcow2(Box::new(qcow2_info(found, qcow2, &mut warnings)))),
        full_backing_filename: backing.map(|backing| full_name(&found.path, &backing.name)),
        encrypted: header.is_some_and(|header| header.crypt_method != CryptMethod::None),
        backing_filename: backing.map(|backing| lossy(&backing.name)),
        dirty_flag: header
            .is_some_and(|header| header.incompatible.contains(IncompatibleFeatures::DIRTY)),
        warnings,
    }
}

fn file_node(found: &Inspection) -> NodeInfo {
    let kind = std::fs::metadata(&found.path).map(|metadata| metadata.file_type());
    let is_device = kind.is_ok_and(|kind| kind.is_block_device() || kind.is_char_device());
    NodeInfo {
        children: Vec::new(),
        virtual_size: found.file_length.get().next_multiple_of(SECTOR_BYTES),
        filename: found.path.to_string_lossy().into_owned(),
        format: if is_device { "host_device" } else { "file" }.into(),
        actual_size: Some(found.allocated.get()),
        // A device shows the same empty list as a file.
        format_specific: Some(FormatSpecific::File { extent_size_hint: None }),
        dirty_flag: false,
    }
}

/// The backing file as a name that can be opened from here, whatever it names.
fn full_name(image: &Path, name: &[u8]) -> String {
    let has_protocol =
        name.iter().position(|byte| b":/".contains(byte)).is_some_and(|at| name[at] == b':');
    if has_protocol {
        return lossy(name);
    }
    let folder = image.parent().unwrap_or(Path::new(""));
    let joined = folder.join(OsStr::from_bytes(name));
    joined.to_string_lossy().into_owned()
}

fn snapshots(qcow2: &Qcow2Inspection, warnings: &mut Vec<String>) -> Vec<SnapshotInfo> {
    match &qcow2.snapshots {
        Ok(table) => table.snapshots.iter().map(snapshot).collect(),
        Err(error) => {
            warnings.push(format!("the snapshots cannot be shown: {error}"));
            Vec::new()
        }
    }
}

fn snapshot(snapshot: &Snapshot) -> SnapshotInfo {
    SnapshotInfo {
        icount: snapshot.instruction_count,
        vm_clock_nsec: snapshot.vm_clock % NANOSECONDS,
        name: lossy(&snapshot.name),
        date_sec: u64::from(snapshot.date_seconds),
        date_nsec: u64::from(snapshot.date_nanoseconds),
        vm_clock_sec: snapshot.vm_clock / NANOSECONDS,
        id: lossy(&snapshot.id),
        vm_state_size: snapshot.vm_state_size,
    }
}

fn qcow2_info(
    found: &Inspection,
    qcow2: &Qcow2Inspection,
    warnings: &mut Vec<String>,
) -> Qcow2Info {
    let header = &qcow2.header;
    let is_version_3 = header.version == Version::V3;
    Qcow2Info {
        compat: if is_version_3 { "1.1" } else { "0.10" }.into(),
        compression_type: match header.compression_type {
            CompressionType::Zlib => "zlib",
            CompressionType::Zstd => "zstd",
        }
        .into(),
        lazy_refcounts: is_version_3
            .then(|| header.compatible.contains(CompatibleFeatures::LAZY_REFCOUNTS)),
        bitmaps: bitmaps(qcow2, warnings),
        refcount_bits: header.geometry.refcount_bits(),
        data_file: header.data_file_name.as_deref().filter(|_| header.has_data_file()).map(lossy),
        data_file_raw: header.has_data_file().then(|| header.has_raw_data_file()),
        encrypt: encrypt(found, header, warnings),
        corrupt: is_version_3.then(|| header.incompatible.contains(IncompatibleFeatures::CORRUPT)),
        extended_l2: is_version_3.then(|| header.geometry.has_extended_l2()),
    }
}

fn bitmaps(qcow2: &Qcow2Inspection, warnings: &mut Vec<String>) -> Option<Vec<BitmapInfo>> {
    let header = &qcow2.header;
    header.bitmaps.as_ref()?;
    if !header.autoclear.contains(AutoclearFeatures::BITMAPS) {
        warnings.push(
            "a program lacking bitmap support modified this file, so all bitmaps are now \
             considered inconsistent"
                .into(),
        );
        return None;
    }
    match &qcow2.bitmaps {
        Ok(directory) => Some(directory.entries.iter().map(bitmap).collect()),
        Err(error) => {
            warnings.push(format!("the bitmaps cannot be shown: {error}"));
            None
        }
    }
}

fn bitmap(entry: &BitmapDirectoryEntry) -> BitmapInfo {
    let names = [(BitmapFlags::IN_USE, "in-use"), (BitmapFlags::AUTO, "auto")];
    let set = names.iter().filter(|(flag, _)| entry.flags.contains(*flag));
    BitmapInfo {
        flags: set.map(|(_, name)| (*name).to_owned()).collect(),
        name: lossy(&entry.name),
        granularity: 1 << entry.granularity_bits,
    }
}

fn encrypt(found: &Inspection, header: &Header, warnings: &mut Vec<String>) -> Option<EncryptInfo> {
    match header.crypt_method {
        CryptMethod::None => None,
        CryptMethod::Aes => Some(EncryptInfo::Aes),
        CryptMethod::Luks => match read_luks(&found.path, header) {
            Some(luks) => Some(EncryptInfo::Luks(Box::new(luks))),
            None => {
                warnings.push("the LUKS header cannot be read".into());
                None
            }
        },
    }
}

fn read_luks(path: &Path, header: &Header) -> Option<crate::info::LuksInfo> {
    let at = header.crypto_header?.offset;
    let options = FileOptions { lock: LockMode::None, ..FileOptions::read_only() };
    let file = HostFiles.open(path, options).ok()?;
    let buffer = IoBuffer::zeroed(luks::HEADER_BYTES);
    let (result, buffer) = block_on(file.read(at, buffer, Purpose::Header));
    result.ok()?;
    luks::decode((&buffer[..]).try_into().ok()?)
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::full_name;
    use std::path::Path;

    #[test]
    fn a_relative_backing_name_starts_at_the_folder_of_the_image() {
        let full = |image: &str, name: &str| full_name(Path::new(image), name.as_bytes());
        assert_eq!(full("a.qcow2", "b"), "b");
        assert_eq!(full("./a.qcow2", "b"), "./b");
        assert_eq!(full("d/a.qcow2", "../b"), "d/../b");
        assert_eq!(full("d/a.qcow2", "/b"), "/b");
        assert_eq!(full("d/a.qcow2", "nbd://h/x"), "nbd://h/x");
    }
}
