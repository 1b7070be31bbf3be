//! What an image says about itself, as values in the order in which qemu-img prints them.
//!
//! Names are text: bytes of a file name that are no UTF-8 are replaced, because JSON can hold
//! nothing else.
//!
//! Not here: how the facts are found, see `inspect.rs`.

use serde::{Serialize, Serializer};

/// One image of a chain.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ImageInfo {
    /// The files below: the image file and, where it was opened, more.
    pub children: Vec<ChildInfo>,
    /// Format of the backing file, where the image states one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename_format: Option<String>,
    /// Internal snapshots.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub snapshots: Vec<SnapshotInfo>,
    /// Size of the disk in bytes.
    pub virtual_size: u64,
    /// The name the image was opened by.
    pub filename: String,
    /// Bytes per cluster, where the format has clusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_size: Option<u64>,
    /// The format.
    pub format: String,
    /// Bytes the file takes on the host; `None` when the host cannot say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_size: Option<u64>,
    /// What only this format has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<FormatSpecific>,
    /// The backing file as a name that can be opened from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub full_backing_filename: Option<String>,
    /// Whether the content is encrypted.
    #[serde(skip_serializing_if = "is_false")]
    pub encrypted: bool,
    /// The backing file as the image names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backing_filename: Option<String>,
    /// Whether refcounts may be stale.
    pub dirty_flag: bool,
    /// What could not be found out; not part of the JSON.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// A named file below an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChildInfo {
    /// Its role: `file`.
    pub name: String,
    /// What is known about it.
    pub info: NodeInfo,
}

/// A host file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct NodeInfo {
    /// Always empty: a host file stands on nothing.
    pub children: Vec<ChildInfo>,
    /// Length of the file.
    pub virtual_size: u64,
    /// Its name.
    pub filename: String,
    /// `file` or `host_device`.
    pub format: String,
    /// Bytes it takes on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_size: Option<u64>,
    /// What only host files have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format_specific: Option<FormatSpecific>,
    /// Always false: files have no such flag.
    pub dirty_flag: bool,
}

/// What only one format has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
pub enum FormatSpecific {
    /// A host file.
    #[serde(rename_all = "kebab-case")]
    File {
        /// The extent size hint of the file system, where it has one.
        #[serde(skip_serializing_if = "Option::is_none")]
        extent_size_hint: Option<u64>,
    },
    /// A qcow2 image.
    Qcow2(Box<Qcow2Info>),
}

/// What only qcow2 images have. Version 2 has nothing but the first two and the refcount width.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Qcow2Info {
    /// `0.10` for version 2, `1.1` for version 3.
    pub compat: String,
    /// `zlib` or `zstd`.
    pub compression_type: String,
    /// Whether refcounts may be written late.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lazy_refcounts: Option<bool>,
    /// Persistent bitmaps; `None` without the extension.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bitmaps: Option<Vec<BitmapInfo>>,
    /// Bits per refcount.
    pub refcount_bits: u32,
    /// Name of the external data file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file: Option<String>,
    /// Whether that file is readable by itself; only with a data file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_file_raw: Option<bool>,
    /// How the content is encrypted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub encrypt: Option<EncryptInfo>,
    /// Whether the image was marked corrupt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corrupt: Option<bool>,
    /// Whether L2 entries have subclusters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extended_l2: Option<bool>,
}

/// A persistent bitmap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BitmapInfo {
    /// `in-use` and `auto`.
    pub flags: Vec<String>,
    /// Its name.
    pub name: String,
    /// Guest bytes per bit.
    pub granularity: u64,
}

/// How content is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EncryptInfo {
    /// The legacy cipher of version 2.
    Aes,
    /// LUKS.
    Luks(Box<LuksInfo>),
}

impl Serialize for EncryptInfo {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Aes {
            format: &'static str,
        }
        match self {
            Self::Aes => Aes { format: "aes" }.serialize(serializer),
            Self::Luks(luks) => luks.serialize(serializer),
        }
    }
}

/// The LUKS header of an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct LuksInfo {
    /// How a sector number becomes an initialisation vector.
    pub ivgen_alg: String,
    /// The hash of that, where it uses one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ivgen_hash_alg: Option<String>,
    /// Always false for qcow2.
    pub detached_header: bool,
    /// Hash of the key derivation.
    pub hash_alg: String,
    /// Cipher and key length.
    pub cipher_alg: String,
    /// Identity of the volume.
    pub uuid: String,
    /// Always `luks`.
    pub format: &'static str,
    /// Mode of the cipher.
    pub cipher_mode: String,
    /// The eight key slots.
    pub slots: Vec<KeySlotInfo>,
    /// Where the payload would start.
    pub payload_offset: u64,
    /// Iterations of the master key digest.
    pub master_key_iters: u64,
}

/// A LUKS key slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeySlotInfo {
    /// Whether it holds a key.
    pub active: bool,
    /// Iterations of its key derivation; only when active.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iters: Option<u64>,
    /// Where its key material starts.
    pub key_offset: u64,
    /// Stripes of the key material; only when active.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stripes: Option<u64>,
}

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct SnapshotInfo {
    /// Guest instructions executed; `None` when they were not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub icount: Option<u64>,
    /// Nanoseconds of the guest clock beyond whole seconds.
    pub vm_clock_nsec: u64,
    /// Its name.
    pub name: String,
    /// When it was made, in seconds since 1970.
    pub date_sec: u64,
    /// Nanoseconds beyond those.
    pub date_nsec: u64,
    /// Seconds of the guest clock.
    pub vm_clock_sec: u64,
    /// Its identifier.
    pub id: String,
    /// Bytes of machine state.
    pub vm_state_size: u64,
}

fn is_false(flag: &bool) -> bool {
    !flag
}
