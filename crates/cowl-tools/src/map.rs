//! Where the bytes of a disk are stored.

use serde::Serialize;

/// A run of guest bytes stored alike.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct MapEntry {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub length: u64,
    /// The layer: 0 is the image itself, 1 its backing file, and so on.
    pub depth: u32,
    /// Whether any layer has something to say about the run.
    pub present: bool,
    /// Whether it is known to read as zeros.
    pub zero: bool,
    /// Whether it is stored as data.
    pub data: bool,
    /// Whether that data is compressed.
    pub compressed: bool,
    /// Where in the file, when the bytes are stored there as they read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offset: Option<u64>,
    /// The file that holds them.
    #[serde(skip)]
    pub file: Option<String>,
}
