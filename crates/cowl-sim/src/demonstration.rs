//! Power cuts for an image that somebody brings along, in a few seconds.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::run::{report_panic, run_subject};
use crate::{Effort, Plan, Qcow2Subject, SubjectKind, Totals};

/// Uses a copy of the image in `bytes` as several busy guests would, on a host that completes I/O
/// in any order and loses power again and again, until `crash_states` of what that leaves were
/// judged.
///
/// The image has neither a backing file nor a data file. Returns what was done, or the first rule
/// that was broken; an image that cannot be opened is an error too.
pub fn demonstrate(bytes: &[u8], seed: u64, crash_states: u64) -> Result<Totals, String> {
    /// Histories after which it ends, however few states they gave.
    const HISTORIES_MAX: u64 = 50;
    let mut totals = Totals::default();
    while totals.crash_states < crash_states && totals.histories < HISTORIES_MAX {
        let seed = seed + totals.histories;
        let left = crash_states - totals.crash_states;
        // Without what is for developers: faults of the host, and other programs' opinions.
        let effort = Effort {
            crash_states_max: left.min(STATES_OF_ONE_MAX),
            faults: false,
            oracle_percent: 0,
            ..Effort::STANDARD
        };
        let plan = Plan { fixed_size: true, ..Plan::new(SubjectKind::Qcow2, seed) };
        let image = Qcow2Subject::given(bytes.to_vec(), seed).map_err(|error| error.to_string())?;
        let ran = catch_unwind(AssertUnwindSafe(|| run_subject(image, &plan, effort)));
        let report = ran.unwrap_or_else(|panic| report_panic(&plan, panic.as_ref()));
        if let Some(violation) = report.violations.first() {
            return Err(format!("{}: {}", violation.checker, violation.text));
        }
        totals.add(&report);
    }
    Ok(totals)
}

/// States of one history: several histories show more.
const STATES_OF_ONE_MAX: u64 = 60;
