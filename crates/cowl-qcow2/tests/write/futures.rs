//! What threads may do with an image: checked when this file is compiled.

use cowl_block::ZeroRequest;
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{Image, Preallocation};
use cowl_storage::{IoBuffer, MemoryStorage};

fn is_send<T: Send>(_: &T) {}

const fn is_shared<T: Send + Sync>() {}

const _: () = is_shared::<Image<MemoryStorage>>();

/// Never called: that it compiles is the test.
#[allow(dead_code, reason = "its types are what is tested")]
fn all_futures_are_send(image: Image<MemoryStorage>, bytes: &[u8], into: &mut [u8]) {
    let (at, length) = (GuestOffset::ZERO, ByteCount::new(512));
    is_send(&image.read(at, IoBuffer::zeroed(512)));
    is_send(&image.read_into(at, into));
    is_send(&image.write(at, IoBuffer::zeroed(512)));
    is_send(&image.write_from(at, bytes));
    is_send(&image.write_compressed(at, bytes));
    is_send(&image.zero(at, length, ZeroRequest::MayUnmap));
    is_send(&image.discard(at, length));
    is_send(&image.flush());
    is_send(&image.extents(at, length));
    is_send(&image.resize(length, Preallocation::Off));
    is_send(&image.close());
}
