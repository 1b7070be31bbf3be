//! A bitmap that may be trusted tells the truth.

use crate::checkers::Case;
use crate::executor::run_calm;
use crate::subject::Subject;

/// `disk` is what the guest reads.
pub(crate) fn check<S: Subject>(case: &Case<'_, S>, disk: &[u8]) -> Result<(), String> {
    let world = case.world();
    let promised = run_calm(case.subject.promises_unchanged(&world)).ok_or("stuck")?;
    if !promised.map_err(|error| format!("cannot be read: {error}"))? {
        return Ok(());
    }
    match disk.iter().zip(case.original).position(|(now, then)| now != then) {
        None => Ok(()),
        Some(at) => Err(format!("trusted, and knows nothing of the change at {at:#x}")),
    }
}
