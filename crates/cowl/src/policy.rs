//! Which files an image may name.
//!
//! An image can name a backing file and an external data file, and an image from a stranger can
//! name any file of the host. Nothing is opened because an image says so: the caller's [`Follow`]
//! decides, and even then only plain local names count.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Refusal};

/// What an image may make us open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// Nothing: for images from strangers.
    Nothing,
    /// Plain local regular files whose format the image states.
    LocalFiles,
    /// The same, and exports of NBD servers, where the opener knows them.
    LocalFilesAndNbd,
}

/// The URI that `path` is, for openers that know such places: `nbd://...` and `nbd+unix://...`.
/// A file of such a name is spelled `./nbd://...`.
#[must_use]
pub fn remote_uri(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| text.starts_with("nbd://") || text.starts_with("nbd+unix://"))
}

/// The name of a backing file that is the URI of an export.
pub(crate) fn remote_name(name: &[u8]) -> Option<PathBuf> {
    let path = PathBuf::from(OsStr::from_bytes(name));
    remote_uri(&path).is_some().then_some(path)
}

/// The same path, spelled so that no opener takes it for a URI.
#[must_use]
pub fn local_path(path: PathBuf) -> PathBuf {
    if remote_uri(&path).is_some() { Path::new(".").join(path) } else { path }
}

pub(crate) const BACKING: &str = "backing file";
pub(crate) const DATA_FILE: &str = "external data file";

/// The path of the backing file that `image` names `name`: relative names start at the image's
/// folder.
///
/// Refuses everything but a plain file name: `json:{...}`, `nbd://host/export`, `rbd:pool/image`.
pub fn resolve_backing_name(image: &Path, name: &[u8]) -> Result<PathBuf, Error> {
    let plain = plain_name(image, name, BACKING)?;
    let folder = image.parent().unwrap_or(Path::new(""));
    Ok(local_path(folder.join(plain)))
}

/// The path of the external data file that `image` names `name`: relative names start at the
/// working folder, as in QEMU, and not at the image's.
pub fn resolve_data_file_name(image: &Path, name: &[u8]) -> Result<PathBuf, Error> {
    Ok(local_path(plain_name(image, name, DATA_FILE)?))
}

fn plain_name(image: &Path, name: &[u8], role: &'static str) -> Result<PathBuf, Error> {
    let refuse = || {
        let name = printable(name);
        Error::Refused { path: image.to_owned(), refusal: Refusal::NotLocal { role, name } }
    };
    // `file:NAME` is how QEMU spells a plain name that holds a colon.
    let (name, is_prefixed) = match name.strip_prefix(b"file:") {
        Some(rest) => (rest, true),
        None => (name, false),
    };
    if name.is_empty() || (!is_prefixed && has_protocol(name)) {
        return Err(refuse());
    }
    Ok(PathBuf::from(OsStr::from_bytes(name)))
}

/// Whether a colon comes before any slash: QEMU takes what stands before it for a protocol.
fn has_protocol(name: &[u8]) -> bool {
    let end = name.iter().position(|&byte| byte == b'/').unwrap_or(name.len());
    name[..end].contains(&b':')
}

/// A name from an image, made fit for a terminal.
pub(crate) fn printable(name: &[u8]) -> String {
    String::from_utf8_lossy(name)
        .chars()
        .map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::{remote_uri, resolve_backing_name, resolve_data_file_name};

    #[test]
    fn relative_backing_names_start_at_the_image() {
        let resolve = |image: &str, name: &[u8]| resolve_backing_name(Path::new(image), name);
        assert_eq!(resolve("vm/top.qcow2", b"base.raw").unwrap(), PathBuf::from("vm/base.raw"));
        assert_eq!(resolve("top.qcow2", b"base.raw").unwrap(), PathBuf::from("base.raw"));
        assert_eq!(resolve("vm/top.qcow2", b"/base").unwrap(), PathBuf::from("/base"));
        assert_eq!(resolve("vm/a", b"file:b:c").unwrap(), PathBuf::from("vm/b:c"));
        assert_eq!(resolve("vm/a", b"dir/b:c").unwrap(), PathBuf::from("vm/dir/b:c"));
    }

    #[test]
    fn a_file_whose_name_looks_like_a_uri_stays_a_file() {
        let name = b"file:nbd://host/x";
        let expected = PathBuf::from("./nbd://host/x");
        assert_eq!(resolve_backing_name(Path::new("top.qcow2"), name).unwrap(), expected);
        assert_eq!(resolve_data_file_name(Path::new("top.qcow2"), name).unwrap(), expected);
        assert!(remote_uri(&expected).is_none());
    }

    #[test]
    fn names_that_reach_outside_the_file_system_are_refused() {
        for name in [
            &b"json:{\"driver\":\"file\"}"[..],
            b"nbd://host/x",
            b"rbd:pool/x",
            b"fd:3",
            b"ssh://x",
            b"",
            b"file:",
        ] {
            assert!(resolve_backing_name(Path::new("a"), name).is_err(), "{name:?}");
            assert!(resolve_data_file_name(Path::new("a"), name).is_err(), "{name:?}");
        }
    }
}
