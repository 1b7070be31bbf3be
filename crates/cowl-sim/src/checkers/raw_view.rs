//! A raw data file can be read without the image: its bytes are as legal as the guest's.

use crate::checkers::Case;
use crate::guest::describe;
use crate::subject::Subject;

/// `disk` is what the guest reads.
pub(crate) fn check<S: Subject>(case: &Case<'_, S>, disk: &[u8]) -> Result<(), String> {
    let Some(file) = case.subject.raw_view() else { return Ok(()) };
    let mut bytes = case.files[file].bytes.clone();
    // Behind the end of the file there is nothing, which reads as zeros.
    bytes.resize(disk.len(), 0);
    case.model.check_crash(&bytes).map_err(|illegal| describe(&illegal))
}
