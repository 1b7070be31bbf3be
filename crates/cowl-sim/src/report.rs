//! What a history did, and what it found.

use std::fmt;

use crate::Plan;

/// A rule that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Who found it.
    pub checker: &'static str,
    /// What was found.
    pub text: String,
}

/// Moments at which a power cut was looked at, by how thoroughly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moments {
    /// Every subset of sectors and lengths.
    pub every_sector: u64,
    /// Every subset of whole changes.
    pub every_change: u64,
    /// Some subsets.
    pub sampled: u64,
}

impl Moments {
    /// Counts what others counted.
    pub fn merge(&mut self, other: Self) {
        self.every_sector += other.every_sector;
        self.every_change += other.every_change;
        self.sampled += other.sampled;
    }
}

impl fmt::Display for Moments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { every_sector, every_change, sampled } = self;
        write!(f, "moments {every_sector} by sector, {every_change} by change, {sampled} sampled")
    }
}

/// One history.
#[derive(Clone, Debug)]
pub struct Report {
    /// How to run it again.
    pub plan: Plan,
    /// Requests sent.
    pub operations: u64,
    /// I/Os of the host.
    pub ios: u64,
    /// Crash states judged.
    pub crash_states: u64,
    /// The moments they come from.
    pub moments: Moments,
    /// Requests dropped on their way.
    pub dropped: u64,
    /// I/Os made to fail.
    pub faults: u64,
    /// Rules broken: the first, as the history ends there.
    pub violations: Vec<Violation>,
    /// A number that two runs share only when they did the same.
    pub digest: u64,
    /// What happened, where it was to be kept.
    pub log: Vec<String>,
}

impl Report {
    /// Nothing yet.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self {
            plan: plan.clone(),
            operations: 0,
            ios: 0,
            crash_states: 0,
            moments: Moments::default(),
            dropped: 0,
            faults: 0,
            violations: Vec::new(),
            digest: 0,
            log: Vec::new(),
        }
    }

    /// Whether a rule was broken.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        !self.violations.is_empty()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in &self.violations {
            writeln!(f, "{}: {}", violation.checker, violation.text)?;
        }
        write!(f, "replay: {}", self.plan)
    }
}

/// Sums over histories.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Histories run.
    pub histories: u64,
    /// Requests sent.
    pub operations: u64,
    /// I/Os of the host.
    pub ios: u64,
    /// Crash states judged.
    pub crash_states: u64,
    /// The moments they come from.
    pub moments: Moments,
    /// Requests dropped on their way.
    pub dropped: u64,
    /// I/Os made to fail.
    pub faults: u64,
    /// Histories in which a rule was broken.
    pub violations: u64,
}

impl Totals {
    /// Counts a history.
    pub fn add(&mut self, report: &Report) {
        self.histories += 1;
        self.operations += report.operations;
        self.ios += report.ios;
        self.crash_states += report.crash_states;
        self.moments.merge(report.moments);
        self.dropped += report.dropped;
        self.faults += report.faults;
        self.violations += u64::from(report.has_failed());
    }

    /// Counts what others counted.
    pub fn merge(&mut self, other: &Self) {
        self.histories += other.histories;
        self.operations += other.operations;
        self.ios += other.ios;
        self.crash_states += other.crash_states;
        self.moments.merge(other.moments);
        self.dropped += other.dropped;
        self.faults += other.faults;
        self.violations += other.violations;
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { histories, operations, ios, crash_states, moments, dropped, .. } = self;
        let (faults, violations) = (self.faults, self.violations);
        write!(
            f,
            "histories {histories}, operations {operations}, dropped {dropped}, I/Os {ios}, faults \
             injected {faults}, crash states {crash_states} ({moments}), violations {violations}"
        )
    }
}
