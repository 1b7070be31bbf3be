//! Which format an image has.

use std::path::Path;

use cowl_format::{HostOffset, MAGIC};
use cowl_storage::{IoBuffer, Purpose, Storage, StorageError};

use crate::error::{Error, Refusal};

/// A format that cowl reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Guest byte n is byte n of the file.
    Raw,
    /// qcow2, versions 2 and 3.
    Qcow2,
}

impl Format {
    /// The name on command lines and in images.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }

    /// The format that `name` stands for.
    #[must_use]
    pub fn from_name(name: &[u8]) -> Option<Self> {
        match name {
            b"raw" => Some(Self::Raw),
            b"qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }
}

impl core::fmt::Display for Format {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

/// Formats that would be read as raw, and so as garbage, if nobody looked.
const FOREIGN: &[(&[u8], &str)] = &[
    (b"KDMV", "vmdk"),
    (b"COWD", "vmdk"),
    (b"# Disk DescriptorFile", "vmdk"),
    (b"vhdxfile", "vhdx"),
    (b"conectix", "vpc"),
    (b"QED\0", "qed"),
    (b"WithoutFreeSpace", "parallels"),
    (b"WithouFreSpacExt", "parallels"),
    (b"LUKS\xba\xbe", "luks"),
    (b"QFI\xfb\0\0\0\x01", "qcow"),
];

/// Finds the format of a file that the operator named without one.
///
/// Only for a file that its owner named: what a guest wrote into a raw image must never decide how
/// the image is read, so backing files are not probed.
pub(crate) async fn probe<S: Storage>(file: &S) -> Result<Format, Error> {
    let head = read_head(file).await?;
    let foreign = FOREIGN.iter().find(|(magic, _)| head.starts_with(magic));
    if let Some((_, format)) = foreign {
        let path: &Path = file.name();
        let refusal = Refusal::ForeignFormat { format: (*format).to_owned() };
        return Err(Error::Refused { path: path.to_owned(), refusal });
    }
    let is_qcow2 = head.starts_with(&MAGIC);
    Ok(if is_qcow2 { Format::Qcow2 } else { Format::Raw })
}

/// Whether a raw disk that begins with `head` would be taken for an image of another format.
///
/// A program that found out by itself that a disk is raw must not let its user write such a start:
/// whoever opens the disk next would read it as something else.
#[must_use]
pub fn has_image_magic(head: &[u8]) -> bool {
    head.starts_with(&MAGIC) || FOREIGN.iter().any(|(magic, _)| head.starts_with(magic))
}

async fn read_head<S: Storage>(file: &S) -> Result<Vec<u8>, StorageError> {
    let (result, buffer) =
        file.read(HostOffset::ZERO, IoBuffer::zeroed(512), Purpose::Header).await;
    result?;
    Ok(buffer.to_vec())
}
