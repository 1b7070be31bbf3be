//! Whether two disks hold the same bytes.

use serde::Serialize;

/// How two disks relate. Sizes are a matter of their own: a longer disk may hold the same content when
/// the rest reads as zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CompareReport {
    /// Whether the sizes differ, and how that was judged.
    pub size: Option<SizeMismatch>,
    /// First byte that differs; `None` when the content is the same.
    pub mismatch_at: Option<u64>,
}

/// Disks of different sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SizeMismatch {
    /// Reported; the content was compared, the rest of the longer disk with zeros.
    Tolerated,
    /// A difference by itself; the content was not looked at.
    Strict,
}
