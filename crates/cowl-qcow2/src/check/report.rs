//! What a check found.

use cowl_format::Header;

/// Told how far a check has come.
pub trait CheckProgress: Sync {
    /// `done` of `total` L2 tables are scanned.
    fn tables(&self, done: u64, total: u64);
}

impl CheckProgress for () {
    fn tables(&self, _: u64, _: u64) {}
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingKind {
    /// Writing to the image would damage it further.
    Corruption,
    /// Space is lost, nothing else.
    Leak,
    /// Something could not be checked.
    CheckError,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// How bad it is.
    pub kind: FindingKind,
    /// In words: QEMU's, where QEMU has them.
    pub text: String,
}

/// The result of a check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckReport {
    /// Rules broken.
    pub corruptions: u64,
    /// Host clusters with a refcount higher than their use.
    pub leaks: u64,
    /// Things that could not be checked.
    pub check_errors: u64,
    /// End of the last host cluster in use, in bytes.
    pub image_end_offset: Option<u64>,
    /// Guest clusters of the disk.
    pub total_clusters: u64,
    /// Guest clusters with data of their own.
    pub allocated_clusters: u64,
    /// Of these, the ones that do not follow their predecessor in the file.
    pub fragmented_clusters: u64,
    /// Of these, the compressed ones.
    pub compressed_clusters: u64,
    /// The first findings in order, at most [`CheckReport::FINDINGS_MAX`].
    pub findings: Vec<Finding>,
    /// Findings that are counted above but not listed.
    pub findings_not_listed: u64,
    /// Bytes of memory that the counters took.
    pub memory_bytes: u64,
}

impl CheckReport {
    /// Findings that are listed: bounds the memory that a broken image can ask for.
    pub const FINDINGS_MAX: usize = 100_000;

    pub(crate) fn new(header: &Header) -> Self {
        Self {
            corruptions: 0,
            leaks: 0,
            check_errors: 0,
            image_end_offset: None,
            total_clusters: header.geometry.clusters_for(header.virtual_size().get()),
            allocated_clusters: 0,
            fragmented_clusters: 0,
            compressed_clusters: 0,
            findings: Vec::new(),
            findings_not_listed: 0,
            memory_bytes: 0,
        }
    }

    /// The report for a file with more host clusters than can be counted.
    pub(crate) fn too_large() -> Self {
        let text = "ERROR: the file has too many host clusters to check".to_owned();
        Self {
            corruptions: 0,
            leaks: 0,
            check_errors: 1,
            image_end_offset: None,
            total_clusters: 0,
            allocated_clusters: 0,
            fragmented_clusters: 0,
            compressed_clusters: 0,
            findings: vec![Finding { kind: FindingKind::CheckError, text }],
            findings_not_listed: 0,
            memory_bytes: 0,
        }
    }

    pub(crate) fn finish(&mut self, findings: Findings, image_end: u64, memory_bytes: u64) {
        self.corruptions = findings.corruptions;
        self.leaks = findings.leaks;
        self.check_errors = findings.check_errors;
        self.findings_not_listed = findings.not_listed;
        self.findings = findings.list;
        self.image_end_offset = Some(image_end);
        self.memory_bytes = memory_bytes;
    }

    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }
}

/// Findings as they come: counted all, listed up to the limit.
pub(crate) struct Findings {
    list_max: usize,
    pub(crate) corruptions: u64,
    pub(crate) leaks: u64,
    pub(crate) check_errors: u64,
    list: Vec<Finding>,
    not_listed: u64,
}

impl Default for Findings {
    fn default() -> Self {
        Self::listing(CheckReport::FINDINGS_MAX)
    }
}

impl Findings {
    /// None yet; at most `list_max` will be listed.
    pub(crate) fn listing(list_max: usize) -> Self {
        Self {
            list_max,
            corruptions: 0,
            leaks: 0,
            check_errors: 0,
            list: Vec::new(),
            not_listed: 0,
        }
    }

    /// Whether nothing was found, leaks included.
    pub(crate) fn is_empty(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0
    }

    /// Counts a finding `times` times and lists it once.
    pub(crate) fn add(&mut self, kind: FindingKind, times: u64, text: impl FnOnce() -> String) {
        match kind {
            FindingKind::Corruption => self.corruptions += times,
            FindingKind::Leak => self.leaks += times,
            FindingKind::CheckError => self.check_errors += times,
        }
        if times == 0 {
            return;
        }
        match self.list.len() < self.list_max {
            true => self.list.push(Finding { kind, text: text() }),
            false => self.not_listed += 1,
        }
    }

    pub(crate) fn corruption(&mut self, times: u64, text: impl FnOnce() -> String) {
        self.add(FindingKind::Corruption, times, text);
    }

    pub(crate) fn check_error(&mut self, text: impl FnOnce() -> String) {
        self.add(FindingKind::CheckError, 1, text);
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.corruptions += other.corruptions;
        self.leaks += other.leaks;
        self.check_errors += other.check_errors;
        self.not_listed += other.not_listed;
        let room = self.list_max - self.list.len();
        self.not_listed += other.list.len().saturating_sub(room) as u64;
        other.list.truncate(room);
        self.list.append(&mut other.list);
    }
}
