//! Canaries: an engine that ignores one edge of its order has to be noticed, for every edge.
//!
//! The edge is ignored in the whole process, so canaries run one after the other and alone. The
//! history that notices is run once more with the edge kept, and must pass: then it was the edge.

use cowl_qcow2::{Rule, ignore_edge};

use crate::{Effort, Plan, Report, SubjectKind, run};

/// Histories in which every ignored edge has to be noticed.
pub const CANARY_HISTORIES_MAX: u64 = 400;

/// What became of one ignored edge.
#[derive(Debug)]
pub struct Canary {
    /// The edge.
    pub rule: Rule,
    /// Histories run, the one that noticed included.
    pub histories: u64,
    /// Crash states judged in them.
    pub crash_states: u64,
    /// The history that noticed; `None` when none of [`CANARY_HISTORIES_MAX`] did.
    pub caught: Option<Report>,
    /// Whether that history passes with the edge kept.
    pub is_innocent_otherwise: bool,
}

impl Canary {
    /// Whether the edge was noticed, and nothing but the edge.
    #[must_use]
    pub fn is_caught(&self) -> bool {
        self.caught.is_some() && self.is_innocent_otherwise
    }

    /// Ignores the edge of `rule` in the histories of seeds from `seed` on, until one breaks a
    /// rule.
    #[must_use]
    pub fn hunt(rule: Rule, seed: u64) -> Self {
        ignore_edge(Some(rule.edge));
        let mut canary = Self {
            rule,
            histories: 0,
            crash_states: 0,
            caught: None,
            is_innocent_otherwise: false,
        };
        while canary.histories < CANARY_HISTORIES_MAX && canary.caught.is_none() {
            let plan = Plan::of_number(&[SubjectKind::Qcow2], seed, canary.histories);
            let report = run(&plan, Effort::of(&plan));
            canary.histories += 1;
            canary.crash_states += report.crash_states;
            canary.caught = report.has_failed().then_some(report);
        }
        ignore_edge(None);
        if let Some(report) = &canary.caught {
            let again = run(&report.plan, Effort::of(&report.plan));
            canary.is_innocent_otherwise = !again.has_failed();
        }
        canary
    }
}
