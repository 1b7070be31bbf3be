//! A bitmap that may be trusted tells the truth.

use crate::checkers::Case;
use crate::executor::run_calm;
use crate::guest::read_all;
use crate::subject::Subject;
use cowl_storage::Access;

pub(crate) fn check<S: Subject>(case: &Case<'_, S>) -> Result<(), String> {
    let world = case.world();
    let promised = run_calm(case.subject.promises_unchanged(&world)).ok_or("stuck")?;
    if !promised.map_err(|error| format!("cannot be read: {error}"))? {
        return Ok(());
    }
    let bytes =
        run_calm(async { read_all(&case.subject.open(&world, Access::ReadOnly).await?).await });
    let bytes = bytes.ok_or("stuck")?.map_err(|error| format!("the disk: {error}"))?;
    match bytes.iter().zip(case.original).position(|(now, then)| now != then) {
        None => Ok(()),
        Some(at) => Err(format!("trusted, and knows nothing of the change at {at:#x}")),
    }
}
