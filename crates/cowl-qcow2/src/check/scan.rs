//! One L2 table: counts what its entries use, and judges each entry.

use cowl_format::{CompressedDescriptor, Geometry, L2Entry, Version};

use crate::check::TABLES_IN_FLIGHT;
use crate::check::recorded::Recorded;
use crate::check::references::References;
use crate::check::report::{CheckReport, Findings};

/// How many L1 entries name a table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TableUse {
    /// Entries of the active L1 table.
    pub(crate) active: u64,
    /// Entries of snapshots' L1 tables.
    pub(crate) inactive: u64,
}

/// Findings of one table that are listed, in each of its two lists. Tables are scanned many at a
/// time, and one of 2 MiB can have half a million findings.
const FINDINGS_MAX: usize = CheckReport::FINDINGS_MAX / TABLES_IN_FLIGHT;

/// What a scan found.
pub(crate) struct TableScan {
    pub(crate) allocated: u64,
    pub(crate) fragmented: u64,
    pub(crate) compressed: u64,
    pub(crate) findings: Findings,
    pub(crate) copied: Findings,
}

/// A scan under way.
pub(crate) struct Scan<'a> {
    result: TableScan,
    uses: TableUse,
    geometry: Geometry,
    version: Version,
    has_data_file: bool,
    references: &'a References,
    recorded: &'a Recorded,
    /// Where the next data cluster lies if the file is not fragmented; 0 before the first one.
    next_contiguous: u64,
}

impl Default for TableScan {
    fn default() -> Self {
        let findings = || Findings::listing(FINDINGS_MAX);
        Self {
            allocated: 0,
            fragmented: 0,
            compressed: 0,
            findings: findings(),
            copied: findings(),
        }
    }
}

impl TableScan {
    #[expect(clippy::new_ret_no_self, reason = "a scan under way becomes a result")]
    pub(crate) fn new<'a>(
        uses: TableUse,
        geometry: Geometry,
        version: Version,
        has_data_file: bool,
        references: &'a References,
        recorded: &'a Recorded,
    ) -> Scan<'a> {
        Scan {
            result: Self::default(),
            uses,
            geometry,
            version,
            has_data_file,
            references,
            recorded,
            next_contiguous: 0,
        }
    }
}

/// What QEMU takes an entry for.
enum EntryKind {
    Compressed,
    /// Data or a zero cluster with a host cluster.
    Allocated,
    ZeroPlain,
    Unallocated,
}

impl Scan<'_> {
    pub(crate) fn into_result(self) -> TableScan {
        self.result
    }

    pub(crate) fn run(&mut self, table: &[u8]) {
        let word = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("8 bytes"));
        for (index, bytes) in table.chunks_exact(self.geometry.l2_entry_len()).enumerate() {
            let raw = word(&bytes[..8]);
            let bitmap = if bytes.len() == 16 { word(&bytes[8..]) } else { 0 };
            if raw != 0 || bitmap != 0 {
                self.entry(index, L2Entry { raw, bitmap });
            }
        }
    }

    fn times(&self) -> u64 {
        self.uses.active + self.uses.inactive
    }

    fn entry(&mut self, index: usize, entry: L2Entry) {
        let times = self.times();
        let raw = entry.raw;
        let kind = self.kind(entry);
        if !matches!(kind, EntryKind::Compressed) && entry.has_reserved_bits() {
            self.result.findings.corruption(times, || {
                format!("ERROR found l2 entry with reserved bits set: {raw:x}")
            });
        }
        match kind {
            EntryKind::Compressed => self.compressed(index, entry),
            EntryKind::Allocated => self.allocated(entry),
            EntryKind::ZeroPlain => {}
            EntryKind::Unallocated => {
                if entry.bitmap & 0xffff_ffff != 0 {
                    self.result.findings.corruption(times, || {
                        "ERROR: Unallocated cluster has non-zero subcluster allocation map"
                            .to_owned()
                    });
                }
            }
        }
    }

    fn kind(&self, entry: L2Entry) -> EntryKind {
        let flagged = entry.has_zero_flag() && !self.geometry.has_extended_l2();
        let zero_flag = flagged && self.version == Version::V3;
        // The first cluster of a data file has offset 0, and only COPIED tells it from none.
        let has_host =
            entry.offset_unchecked() != 0 || (self.has_data_file && entry.is_copied() && !flagged);
        match (entry.is_compressed(), has_host) {
            (true, _) => EntryKind::Compressed,
            (false, true) => EntryKind::Allocated,
            (false, false) if zero_flag => EntryKind::ZeroPlain,
            (false, false) => EntryKind::Unallocated,
        }
    }

    fn compressed(&mut self, index: usize, entry: L2Entry) {
        let times = self.times();
        let raw = entry.raw;
        let descriptor = CompressedDescriptor::decode_unchecked(raw, self.geometry);
        let findings = &mut self.result.findings;
        if entry.is_copied() {
            let at = descriptor.host().get();
            findings.corruption(times, || {
                format!(
                    "ERROR: coffset={at:#x}: copied flag must never be set for compressed clusters"
                )
            });
        }
        if self.has_data_file {
            findings.corruption(times, || {
                format!("ERROR compressed cluster {index} with data file, entry={raw:#x}")
            });
            return;
        }
        if entry.bitmap != 0 {
            findings.corruption(times, || {
                format!(
                    "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, \
                     entry={raw:#x}"
                )
            });
            return;
        }
        let (at, length) = (descriptor.host().get(), descriptor.length_max().get());
        self.references.add(at, length, times, findings);
        // A compressed cluster counts as fragmented: its neighbours share its sectors.
        self.result.allocated += self.uses.active;
        self.result.compressed += self.uses.active;
        self.result.fragmented += self.uses.active;
    }

    fn allocated(&mut self, entry: L2Entry) {
        let times = self.times();
        let offset = entry.offset_unchecked();
        let findings = &mut self.result.findings;
        let conflicting = (entry.bitmap >> 32) & entry.bitmap & 0xffff_ffff != 0;
        if conflicting {
            findings.corruption(times, || {
                format!(
                    "ERROR offset={offset:x}: Allocated cluster has corrupted subcluster \
                     allocation bitmap"
                )
            });
        } else {
            self.allocated_cluster(entry, offset);
        }
        self.check_copied(entry, offset);
    }

    fn allocated_cluster(&mut self, entry: L2Entry, offset: u64) {
        let times = self.times();
        let findings = &mut self.result.findings;
        if !self.geometry.is_cluster_aligned(offset) {
            let has_data = match self.geometry.has_extended_l2() {
                true => entry.bitmap & 0xffff_ffff != 0,
                false => !entry.has_zero_flag(),
            };
            let what = if has_data { "Data" } else { "Preallocated" };
            findings.corruption(times, || {
                format!(
                    "ERROR offset={offset:x}: {what} cluster is not properly aligned; L2 entry \
                     corrupted."
                )
            });
        }
        self.result.allocated += self.uses.active;
        if self.next_contiguous != 0 && offset != self.next_contiguous {
            self.result.fragmented += self.uses.active;
        }
        self.next_contiguous = offset + self.geometry.cluster_size();
        if !self.has_data_file {
            self.references.add(offset, self.geometry.cluster_size(), times, findings);
        }
    }

    /// The copied flag says whether the refcount is one; only the active tables promise it.
    fn check_copied(&mut self, entry: L2Entry, offset: u64) {
        if self.uses.active == 0 {
            return;
        }
        let cluster = offset >> self.geometry.cluster_bits();
        let refcount = match self.has_data_file {
            true => 1,
            false => match self.recorded.get(cluster) {
                Some(refcount) => refcount,
                None => return,
            },
        };
        if (refcount == 1) != entry.is_copied() {
            let raw = entry.raw;
            self.result.copied.corruption(self.uses.active, || {
                format!("ERROR OFLAG_COPIED data cluster: l2_entry={raw:x} refcount={refcount}")
            });
        }
    }
}
