//! The format's own check: corruptions never, leaks up to a bound.

use crate::SimWorld;
use crate::checkers::Case;
use crate::executor::run_calm;
use crate::subject::{MetadataReport, Subject};

/// What the check says about the files of a calm world; `None` for formats without metadata.
pub(crate) fn look<S: Subject>(
    subject: &S,
    world: &SimWorld,
) -> Result<Option<MetadataReport>, String> {
    let report = run_calm(subject.check(world)).ok_or("the check is stuck")?;
    report.transpose().map_err(|error| format!("the check fails: {error}"))
}

pub(crate) fn check<S: Subject>(case: &Case<'_, S>) -> Result<(), String> {
    let Some(report) = look(case.subject, &case.world())? else { return Ok(()) };
    // Metadata that says it cannot be trusted is judged after it was repaired: see `reopen`.
    if report.needs_repair {
        return Ok(());
    }
    if 0 < report.corruptions {
        return Err(format!("{} corruptions: {}", report.corruptions, report.text));
    }
    if case.leaks_max < report.leaks {
        let (leaks, most) = (report.leaks, case.leaks_max);
        return Err(format!("{leaks} leaks, more than {most}: {}", report.text));
    }
    Ok(())
}
