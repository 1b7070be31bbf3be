//! Makes a failing history small: leaves out requests and faults for as long as it goes on failing.

use std::collections::BTreeSet;

use crate::plan::Plan;
use crate::run::{Effort, outline, run};

/// Runs spent on one shrinking.
const RUNS_MAX: u32 = 400;

/// Other orders tried for each smaller history.
const SCHEDULES: u64 = 3;

/// The smallest failing plan that was found; `plan` itself when it does not fail.
#[must_use]
pub fn shrink(plan: &Plan) -> Plan {
    let mut shrinker = Shrinker { best: plan.clone(), runs_left: RUNS_MAX };
    let (numbers, faults) = outline(plan);
    shrinker.drop_all(&faults, |plan, dropped| plan.without_faults.extend(dropped));
    shrinker.drop_all(&numbers, |plan, dropped| plan.without.extend(dropped));
    shrinker.drop_all(&faults, |plan, dropped| plan.without_faults.extend(dropped));
    shrinker.best
}

struct Shrinker {
    best: Plan,
    runs_left: u32,
}

impl Shrinker {
    /// Leaves out halves, then quarters, and so on down to single items.
    fn drop_all(&mut self, items: &[u32], leave_out: impl Fn(&mut Plan, &BTreeSet<u32>)) {
        let mut kept: Vec<u32> = items.to_vec();
        let mut size = kept.len();
        while 0 < size {
            let mut start = 0;
            while start < kept.len() {
                let end = kept.len().min(start + size);
                let dropped: BTreeSet<u32> = kept[start..end].iter().copied().collect();
                let mut smaller = self.best.clone();
                leave_out(&mut smaller, &dropped);
                match self.still_fails(smaller) {
                    true => drop(kept.drain(start..end)),
                    false => start = end,
                }
                if self.runs_left == 0 {
                    return;
                }
            }
            size /= 2;
        }
    }

    fn still_fails(&mut self, plan: Plan) -> bool {
        for schedule in 0..SCHEDULES {
            if self.runs_left == 0 {
                return false;
            }
            self.runs_left -= 1;
            let tried = match schedule {
                0 => plan.clone(),
                other => Plan { schedule: other, ..plan.clone() },
            };
            if run(&tried, Effort::of(&tried)).has_failed() {
                self.best = tried;
                return true;
            }
        }
        false
    }
}
