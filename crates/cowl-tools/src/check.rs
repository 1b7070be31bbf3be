//! The result of checking an image, as scripts know it.

use serde::Serialize;

/// What a check found. Counters that are zero are left out of the JSON, as qemu-img does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckReport {
    /// First byte after the last cluster in use.
    #[serde(skip_serializing_if = "is_zero")]
    pub image_end_offset: u64,
    /// Allocated clusters that are compressed.
    #[serde(skip_serializing_if = "is_zero")]
    pub compressed_clusters: u64,
    /// Guest clusters of the image.
    #[serde(skip_serializing_if = "is_zero")]
    pub total_clusters: u64,
    /// Contradictions that endanger data.
    #[serde(skip_serializing_if = "is_zero")]
    pub corruptions: u64,
    /// Things that could not be checked.
    pub check_errors: u64,
    /// Clusters that nothing refers to but that count as used.
    #[serde(skip_serializing_if = "is_zero")]
    pub leaks: u64,
    /// Guest clusters with host space.
    #[serde(skip_serializing_if = "is_zero")]
    pub allocated_clusters: u64,
    /// The name the image was opened by.
    pub filename: String,
    /// Its format.
    pub format: String,
    /// Allocated clusters that do not continue their predecessor.
    #[serde(skip_serializing_if = "is_zero")]
    pub fragmented_clusters: u64,
    /// One line per finding, in the order found; not part of the JSON.
    #[serde(skip)]
    pub findings: Vec<String>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn is_zero(counter: &u64) -> bool {
    *counter == 0
}
