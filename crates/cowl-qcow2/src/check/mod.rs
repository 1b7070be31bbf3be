//! The check: is the metadata of an image consistent?
//!
//!   refcount blocks -> what the file says about each host cluster      (`recorded`)
//!   every owner     -> how often each host cluster is really used      (`references`, `scan`)
//!   both            -> leaks and corruptions                           (`compare`)
//!
//! Each table is read once, however many snapshots share it, and L2 tables are scanned in parallel
//! through the embedder's [`Offload`]. All tables together cost at most a few times the file
//! (`budget`). Memory is two bytes for each host cluster, touched only where the file has
//! something, plus the tables in flight; the report says how much it was.
//!
//! What is counted, and as what, is what `qemu-img check` counts.

mod bitmaps;
mod budget;
mod compare;
mod owners;
mod recorded;
mod references;
mod report;
mod scan;

use std::sync::Arc;

use cowl_format::{Geometry, Header};
use cowl_storage::Storage;

pub(crate) use recorded::read_refcount_table_entry;
pub use report::{CheckProgress, CheckReport, Finding, FindingKind};

use crate::check::budget::Budget;
use crate::check::recorded::Recorded;
use crate::check::references::References;
use crate::check::report::Findings;
use crate::{Error, Offload};

/// Host clusters of the largest file that can be checked: two bytes of memory for each. QEMU's
/// limit.
const HOST_CLUSTERS_MAX: u64 = i32::MAX as u64;

/// L2 tables read ahead of the scan: enough to keep every worker busy.
const TABLES_IN_FLIGHT: usize = 16;

/// What the parts of a check share.
pub(crate) struct Check<'a, S> {
    file: &'a S,
    header: &'a Header,
    file_length: u64,
    budget: Budget,
    recorded: Arc<Recorded>,
    references: Arc<References>,
    offload: Option<Arc<dyn Offload>>,
}

impl<S> Check<'_, S> {
    fn geometry(&self) -> Geometry {
        self.header.geometry
    }

    /// Whether `bytes` of one more table at `at` may be read; reports it when not.
    fn may_read(&self, at: u64, bytes: u64, findings: &mut Findings) -> bool {
        let present = bytes.min(self.file_length.saturating_sub(at));
        let may = self.budget.take(present);
        if !may {
            findings.check_error(|| {
                format!("ERROR: table at {at:#x} is not checked: too many tables overlap")
            });
        }
        may
    }
}

impl<'a, S: Storage> Check<'a, S> {
    async fn new(
        file: &'a S,
        header: &'a Header,
        offload: Option<Arc<dyn Offload>>,
        findings: &mut Findings,
    ) -> Result<Self, Error> {
        let file_length = file.len().await?.get();
        let host_clusters = header.geometry.clusters_for(file_length);
        let recorded = Recorded::read(file, header, host_clusters, findings).await?;
        let references = References::new(host_clusters, header.geometry, file_length);
        Ok(Self {
            file,
            header,
            file_length,
            budget: Budget::new(file_length),
            recorded: Arc::new(recorded),
            references: Arc::new(references),
            offload,
        })
    }
}

/// A cluster whose refcount is not the number of its references.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StaleRefcount {
    pub(crate) cluster: u64,
    pub(crate) references: u64,
}

/// The refcounts that are wrong in an image whose tables are right otherwise; `None` when they are
/// not, and only a repair can help.
pub(crate) async fn stale_refcounts<S: Storage>(
    file: &S,
    header: &Header,
    offload: Option<Arc<dyn Offload>>,
) -> Result<Option<Vec<StaleRefcount>>, Error> {
    if HOST_CLUSTERS_MAX < header.geometry.clusters_for(file.len().await?.get()) {
        return Ok(None);
    }
    let mut findings = Findings::default();
    let check = Check::new(file, header, offload, &mut findings).await?;
    let mut report = CheckReport::new(header);
    // What it says about flags depends on refcounts, which are wrong.
    owners::count(&check, &mut report, &mut findings, &()).await?;
    compare::refcount_blocks(&check, &mut findings);
    check.references.report_lost(&mut findings);
    if !findings.is_empty() || check.recorded.has_unknown() {
        return Ok(None);
    }
    let clusters = 0..check.references.end();
    let stale = clusters.filter_map(|cluster| {
        let references = check.references.get(cluster);
        (check.recorded.get(cluster) != Some(references))
            .then_some(StaleRefcount { cluster, references })
    });
    Ok(Some(stale.collect()))
}

/// Checks the metadata of an image. Reads only; changes nothing.
///
/// What is wrong with the image is in the report; an error means that the check itself could not go
/// on.
pub async fn check<S: Storage>(
    file: &S,
    header: &Header,
    offload: Option<Arc<dyn Offload>>,
    progress: &dyn CheckProgress,
) -> Result<CheckReport, Error> {
    let file_length = file.len().await?.get();
    let host_clusters = header.geometry.clusters_for(file_length);
    if host_clusters > HOST_CLUSTERS_MAX {
        return Ok(CheckReport::too_large());
    }
    let mut findings = Findings::default();
    let check = Check::new(file, header, offload, &mut findings).await?;
    let mut report = CheckReport::new(header);
    let copied = owners::count(&check, &mut report, &mut findings, progress).await?;
    compare::refcount_blocks(&check, &mut findings);
    let end = compare::clusters(&check, &mut findings);
    findings.append(copied);
    report.finish(findings, end, check.recorded.bytes() + check.references.bytes());
    Ok(report)
}
