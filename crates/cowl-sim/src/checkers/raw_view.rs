//! A raw data file can be read without the image: its bytes are as legal as the guest's.

use cowl_block::BlockDevice;
use cowl_format::ByteCount;
use cowl_storage::Access;

use crate::checkers::Case;
use crate::executor::run_calm;
use crate::guest::describe;
use crate::subject::Subject;

pub(crate) fn check<S: Subject>(case: &Case<'_, S>) -> Result<(), String> {
    let Some(file) = case.subject.raw_view() else { return Ok(()) };
    let world = case.world();
    let device = run_calm(case.subject.open(&world, Access::ReadOnly)).ok_or("stuck")?;
    let device = device.map_err(|error| format!("does not open: {error}"))?;
    let mut bytes = case.files[file].bytes.clone();
    // Behind the end of the file there is nothing, which reads as zeros.
    bytes.resize(ByteCount::as_usize(device.size()), 0);
    case.model.check_crash(&bytes).map_err(|illegal| describe(&illegal))
}
