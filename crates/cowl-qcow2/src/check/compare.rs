//! The verdict: recorded refcounts against references.

use cowl_format::Geometry;
use cowl_storage::Storage;

use crate::check::Check;
use crate::check::report::{FindingKind, Findings};

/// Counts the refcount blocks themselves, the last owners, and judges the table's entries.
pub(crate) fn refcount_blocks<S: Storage>(check: &Check<'_, S>, findings: &mut Findings) {
    let geometry: Geometry = check.geometry();
    for (index, entry) in check.recorded.table.iter().enumerate() {
        let offset = entry.offset_unchecked();
        if entry.has_reserved_bits() {
            findings.corruption(1, || {
                format!("ERROR refcount table entry {index} has reserved bits set")
            });
            continue;
        }
        if !geometry.is_cluster_aligned(offset) {
            findings.corruption(1, || {
                format!(
                    "ERROR refcount block {index} is not cluster aligned; refcount table entry \
                     corrupted"
                )
            });
            continue;
        }
        let cluster = offset >> geometry.cluster_bits();
        if check.references.end() <= cluster {
            findings.corruption(1, || format!("ERROR refcount block {index} is outside image"));
            continue;
        }
        if offset == 0 {
            continue;
        }
        check.references.add(offset, geometry.cluster_size(), 1, findings);
        let references = check.references.get(cluster);
        if references != 1 {
            findings
                .corruption(1, || format!("ERROR refcount block {index} refcount={references}"));
        }
    }
}

/// Compares each cluster. Returns the end of the last one in use, in bytes.
pub(crate) fn clusters<S: Storage>(check: &Check<'_, S>, findings: &mut Findings) -> u64 {
    check.references.report_lost(findings);
    let mut highest = 0;
    let end = check.references.end();
    let unknown = check.recorded.has_unknown();
    for cluster in 0..end {
        // The bytes decide nearly always; only numbers from 255 on need a second look.
        let small = (check.recorded.small(cluster), check.references.small(cluster));
        match small {
            (0, 0) if !unknown => continue,
            (recorded, references) if recorded == references && recorded < 255 && !unknown => {
                highest = cluster;
                continue;
            }
            _ => {}
        }
        let Some(recorded) = check.recorded.get(cluster) else {
            findings.check_error(|| {
                format!("Can't get refcount for cluster {cluster}: Input/output error")
            });
            continue;
        };
        let references = check.references.get(cluster);
        if recorded > 0 || references > 0 {
            highest = cluster;
        }
        if recorded == references {
            continue;
        }
        let (kind, word) = match recorded < references {
            true => (FindingKind::Corruption, "ERROR"),
            false => (FindingKind::Leak, "Leaked"),
        };
        findings.add(kind, 1, || {
            format!("{word} cluster {cluster} refcount={recorded} reference={references}")
        });
    }
    (highest + 1) << check.geometry().cluster_bits()
}
