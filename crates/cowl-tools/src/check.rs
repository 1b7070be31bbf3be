//! The result of checking an image, as scripts know it.

use serde::Serialize;

/// What a check found. Counters that are zero are left out of the JSON, as qemu-img does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct CheckSummary {
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
    /// Bytes of memory that the counting took; not among the fields that scripts know.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl CheckSummary {
    /// The numbers of `report` on the qcow2 image called `filename`.
    #[must_use]
    pub fn new(filename: String, report: &cowl::CheckReport) -> Self {
        Self {
            image_end_offset: report.image_end_offset.unwrap_or(0),
            compressed_clusters: report.compressed_clusters,
            total_clusters: report.total_clusters,
            corruptions: report.corruptions,
            check_errors: report.check_errors,
            leaks: report.leaks,
            allocated_clusters: report.allocated_clusters,
            filename,
            format: cowl::Format::Qcow2.name().to_owned(),
            fragmented_clusters: report.fragmented_clusters,
            memory_bytes: None,
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde calls")]
fn is_zero(counter: &u64) -> bool {
    *counter == 0
}
