//! Reads of a host file into memory that the request owns.

use cowl_format::{ByteCount, HostOffset};
use cowl_storage::{IoBuffer, IoResult, Purpose, Storage};

/// Fills `buffer` from `at`: at once where the page cache has the bytes, by a request otherwise. To
/// a ring, a request costs ten times as much.
pub(crate) async fn read<S: Storage>(
    file: &S,
    at: HostOffset,
    mut buffer: IoBuffer,
    purpose: Purpose,
) -> IoResult<ByteCount> {
    match file.try_read(at, &mut buffer, purpose) {
        Some(result) => (result, buffer),
        None => file.read(at, buffer, purpose).await,
    }
}
