//! The disk opens, and every sector has a legal value.

use cowl_storage::Access;

use crate::checkers::Case;
use crate::executor::run_calm;
use crate::guest::{describe, read_all};
use crate::subject::Subject;

/// The bytes, which other checkers look at too.
pub(crate) fn check<S: Subject>(case: &Case<'_, S>) -> Result<Vec<u8>, String> {
    let world = case.world();
    let bytes = run_calm(async {
        let device = case.subject.open(&world, Access::ReadOnly).await?;
        read_all(&device).await
    });
    let bytes = bytes.ok_or("stuck while opening or reading")?;
    let bytes = bytes.map_err(|error| format!("does not open or read: {error}"))?;
    case.model.check_crash(&bytes).map_err(|illegal| describe(&illegal))?;
    Ok(bytes)
}
