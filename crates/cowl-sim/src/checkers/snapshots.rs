//! Internal snapshots never change.

use crate::checkers::Case;
use crate::executor::run_calm;
use crate::subject::Subject;

pub(crate) fn check<S: Subject>(case: &Case<'_, S>) -> Result<(), String> {
    if case.snapshots.is_empty() {
        return Ok(());
    }
    let world = case.world();
    let found = run_calm(case.subject.snapshots(&world)).ok_or("stuck while reading")?;
    let found = found.map_err(|error| format!("cannot be read: {error}"))?;
    if found.len() != case.snapshots.len() {
        return Err(format!("{} snapshots instead of {}", found.len(), case.snapshots.len()));
    }
    for (number, (found, wanted)) in found.iter().zip(case.snapshots).enumerate() {
        if found.len() != wanted.len() {
            return Err(format!("snapshot {number} has {} bytes", found.len()));
        }
        if let Some(at) = found.iter().zip(wanted).position(|(found, wanted)| found != wanted) {
            return Err(format!("snapshot {number} differs at {at:#x}"));
        }
    }
    Ok(())
}
