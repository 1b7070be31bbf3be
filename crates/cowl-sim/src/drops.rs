//! A request is dropped at each point at which it waits, one history for each.

use crate::{Effort, Plan, Report, outline, run};

/// Runs `plan` again and again: each of its requests dropped after one poll, after two, and so on
/// until it is done before it can be dropped; as soon as it waits, or late if the plan says so.
pub fn drop_everywhere(plan: &Plan) -> impl Iterator<Item = Report> {
    let (numbers, _) = outline(plan);
    numbers.into_iter().flat_map(move |number| {
        let mut is_done = false;
        (1..).map_while(move |polls| {
            if is_done {
                return None;
            }
            let plan = Plan { drops: [(number, polls)].into(), ..plan.clone() };
            let report = run(&plan, Effort::of(&plan));
            is_done = report.dropped == 0 || report.has_failed();
            Some(report)
        })
    })
}
