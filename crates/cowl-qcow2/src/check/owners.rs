//! Who uses host clusters: the header, the tables, and everything the tables point to.

use std::collections::BTreeMap;

use cowl_format::{HostOffset, L1Entry};
use cowl_storage::{IoBuffer, Purpose, Storage};
use futures_util::StreamExt;
use futures_util::stream;

use crate::check::report::{CheckProgress, CheckReport, Findings};
use crate::check::scan::{TableScan, TableUse};
use crate::check::{Check, TABLES_IN_FLIGHT, bitmaps};
use crate::open::{read_l1, read_snapshots};
use crate::{Error, offload};

/// Counts every use of every host cluster. Returns what is wrong with the copied flags, which
/// belongs at the end of the report.
pub(crate) async fn count<S: Storage>(
    check: &Check<'_, S>,
    report: &mut CheckReport,
    findings: &mut Findings,
    progress: &dyn CheckProgress,
) -> Result<Findings, Error> {
    let header = check.header;
    let mut copied = Findings::default();
    check.references.add(0, header.geometry.cluster_size(), 1, findings);
    let mut tables: BTreeMap<u64, TableUse> = BTreeMap::new();
    let at = header.l1_offset;
    check.references.add(at.get(), u64::from(header.l1_entries) * 8, 1, findings);
    let l1 = read_l1(check.file, at, header.l1_entries, Purpose::L1Table).await?;
    for (index, entry) in l1.iter().enumerate() {
        if let Some(offset) = count_l1_entry(check, *entry, findings) {
            tables.entry(offset).or_default().active += 1;
            check_copied(check, index, *entry, &mut copied);
        }
    }
    count_snapshots(check, &mut tables, findings).await?;
    scan_tables(check, tables, report, findings, &mut copied, progress).await?;
    let at = header.refcount_table_offset.get();
    check.references.add(at, header.refcount_table_bytes().get(), 1, findings);
    if let Some(crypto) = header.crypto_header {
        check.references.add(crypto.offset.get(), crypto.length.get(), 1, findings);
    }
    bitmaps::count(check, findings).await?;
    Ok(copied)
}

/// Counts the L2 table that an L1 entry names; returns where it is.
fn count_l1_entry<S: Storage>(
    check: &Check<'_, S>,
    entry: L1Entry,
    findings: &mut Findings,
) -> Option<u64> {
    if entry.raw() == 0 {
        return None;
    }
    let raw = entry.raw();
    if entry.has_reserved_bits() {
        findings.corruption(1, || format!("ERROR found L1 entry with reserved bits set: {raw:x}"));
    }
    let offset = entry.offset_unchecked();
    check.references.add(offset, check.geometry().cluster_size(), 1, findings);
    if !check.geometry().is_cluster_aligned(offset) {
        findings.corruption(1, || {
            format!("ERROR l2_offset={offset:x}: Table is not cluster aligned; L1 entry corrupted")
        });
    }
    Some(offset)
}

fn check_copied<S: Storage>(
    check: &Check<'_, S>,
    index: usize,
    entry: L1Entry,
    copied: &mut Findings,
) {
    let offset = entry.offset_unchecked();
    if offset == 0 {
        return;
    }
    let cluster = offset >> check.geometry().cluster_bits();
    let Some(refcount) = check.recorded.get(cluster) else { return };
    if (refcount == 1) != entry.is_copied() {
        let raw = entry.raw();
        copied.corruption(1, || {
            format!(
                "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={raw:x} \
                 refcount={refcount}"
            )
        });
    }
}

async fn count_snapshots<S: Storage>(
    check: &Check<'_, S>,
    tables: &mut BTreeMap<u64, TableUse>,
    findings: &mut Findings,
) -> Result<(), Error> {
    let header = check.header;
    let snapshots = match read_snapshots(check.file, header).await {
        Ok(snapshots) => snapshots,
        Err(Error::Corrupt { corruption, .. }) => {
            findings.corruption(1, || format!("ERROR {corruption}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for (index, snapshot) in (0_u32..).zip(&snapshots.snapshots) {
        let at = match snapshot.l1_table(index, header.geometry) {
            Ok(at) => at,
            Err(corruption) => {
                findings.corruption(1, || format!("ERROR {corruption}"));
                continue;
            }
        };
        let bytes = u64::from(snapshot.l1_entries) * 8;
        if !check.may_read(at.get(), bytes, findings) {
            continue;
        }
        check.references.add(at.get(), bytes, 1, findings);
        let l1 = read_l1(check.file, at, snapshot.l1_entries, Purpose::Snapshot).await?;
        for entry in &l1 {
            if let Some(offset) = count_l1_entry(check, *entry, findings) {
                tables.entry(offset).or_default().inactive += 1;
            }
        }
    }
    let (at, length) = (header.snapshot_offset.get(), snapshots.length.get());
    check.references.add(at, length, 1, findings);
    Ok(())
}

async fn scan_tables<S: Storage>(
    check: &Check<'_, S>,
    tables: BTreeMap<u64, TableUse>,
    report: &mut CheckReport,
    findings: &mut Findings,
    copied: &mut Findings,
    progress: &dyn CheckProgress,
) -> Result<(), Error> {
    let total = tables.len() as u64;
    let cluster = check.geometry().cluster_size();
    let scans = stream::iter(tables).map(|(offset, uses)| {
        let mut refused = TableScan::default();
        // Past the end of the file there is nothing to read, and the reference was counted as
        // corruption.
        let may_read =
            offset < check.file_length && check.may_read(offset, cluster, &mut refused.findings);
        async move { if may_read { scan_table(check, offset, uses).await } else { Ok(refused) } }
    });
    // In order, so that the report does not depend on timing.
    let mut scans = scans.buffered(TABLES_IN_FLIGHT);
    let mut done = 0;
    while let Some(scan) = scans.next().await {
        let scan = scan?;
        report.allocated_clusters += scan.allocated;
        report.fragmented_clusters += scan.fragmented;
        report.compressed_clusters += scan.compressed;
        findings.append(scan.findings);
        copied.append(scan.copied);
        done += 1;
        progress.tables(done, total);
    }
    Ok(())
}

async fn scan_table<S: Storage>(
    check: &Check<'_, S>,
    offset: u64,
    uses: TableUse,
) -> Result<TableScan, Error> {
    let length = check.geometry().cluster_len();
    let (result, buffer) =
        check.file.read(HostOffset::new(offset), IoBuffer::zeroed(length), Purpose::L2Table).await;
    if let Err(error) = result {
        let mut scan = TableScan::default();
        scan.findings.check_error(|| format!("ERROR: I/O error in L2 table: {error}"));
        return Ok(scan);
    }
    let references = std::sync::Arc::clone(&check.references);
    let recorded = std::sync::Arc::clone(&check.recorded);
    let (geometry, version) = (check.geometry(), check.header.version);
    let has_data_file = check.header.has_data_file();
    let scan = move || {
        let mut scan =
            TableScan::new(uses, geometry, version, has_data_file, &references, &recorded);
        scan.run(&buffer);
        scan.into_result()
    };
    offload::run(check.offload.as_ref(), scan).await
}
