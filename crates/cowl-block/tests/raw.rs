//! Raw images: windows, ends, extents, and what a failing host looks like from the guest side.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::future::Future;

use cowl_block::{
    BlockDevice, BlockError, Extent, ExtentKind, Growth, RawImage, RawOptions, ZeroRequest,
};
use cowl_format::{ByteCount, GuestOffset, HostOffset};
use cowl_storage::{
    Caching, FaultEffect, FaultRule, FaultStorage, FileOptions, FileStorage, IoBuffer, LockMode,
    MemoryStorage, Operation, Purpose, Storage,
};
use proptest::prelude::*;

fn wait<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}

fn guest(offset: u64) -> GuestOffset {
    GuestOffset::new(offset)
}

fn bytes(count: u64) -> ByteCount {
    ByteCount::new(count)
}

fn window(offset: u64, size: u64) -> RawOptions {
    RawOptions {
        offset: HostOffset::new(offset),
        size: Some(bytes(size)),
        purpose: Purpose::GuestData,
    }
}

fn memory(content: &[u8], options: RawOptions) -> RawImage<MemoryStorage> {
    wait(RawImage::open(MemoryStorage::from_vec(content.to_vec()), options)).unwrap()
}

fn read<S: Storage>(image: &RawImage<S>, at: u64, length: usize) -> Result<Vec<u8>, BlockError> {
    let (result, buffer) = wait(image.read(guest(at), IoBuffer::zeroed(length)));
    result.map(|()| buffer.to_vec())
}

fn write<S: Storage>(image: &RawImage<S>, at: u64, content: &[u8]) -> Result<(), BlockError> {
    wait(image.write(guest(at), IoBuffer::from_slice(content))).0
}

#[test]
fn futures_are_send_over_send_storage() {
    fn assert_send<T: Send>(_: T) {}
    let image = memory(b"content", RawOptions::whole_file());
    assert_send(image.read(guest(0), IoBuffer::zeroed(1)));
    assert_send(image.write(guest(0), IoBuffer::zeroed(1)));
    assert_send(image.zero(guest(0), bytes(1), ZeroRequest::MayUnmap));
    assert_send(image.discard(guest(0), bytes(1)));
    assert_send(image.flush());
    assert_send(image.extents(guest(0), bytes(1)));
    assert_send(image.read_into(guest(0), &mut [0]));
}

#[test]
fn the_size_is_the_length_of_the_file_also_where_it_is_odd() {
    let image = memory(&[7; 1001], RawOptions::whole_file());
    assert_eq!(image.size(), bytes(1001));
    assert_eq!(read(&image, 1000, 1).unwrap(), [7]);
    let error = read(&image, 1000, 2).unwrap_err();
    assert!(matches!(error, BlockError::OutOfRange { size, .. } if size == bytes(1001)));
    assert_eq!(error.errno(), 28);
}

#[test]
fn a_window_shows_only_its_part_of_the_file() {
    let image = memory(b"0123456789", window(3, 4));
    assert_eq!(read(&image, 0, 4).unwrap(), b"3456");
    assert!(read(&image, 1, 4).is_err());
    write(&image, 3, b"X").unwrap();
    assert!(write(&image, 4, b"Y").is_err());
    wait(image.zero(guest(0), bytes(1), ZeroRequest::KeepAllocated)).unwrap();
    assert!(wait(image.zero(guest(0), bytes(5), ZeroRequest::MayUnmap)).is_err());
    assert!(wait(image.discard(guest(4), bytes(1))).is_err());
    assert_eq!(image.into_storage().to_vec(), b"012\x0045X789");
}

#[test]
fn a_window_past_the_end_of_the_file_reads_as_zeros_and_is_empty_without_a_size() {
    let image = memory(b"0123", window(2, 100));
    assert_eq!(read(&image, 0, 5).unwrap(), b"23\0\0\0");
    let options = RawOptions { offset: HostOffset::new(99), ..RawOptions::whole_file() };
    assert_eq!(memory(b"0123", options).size(), ByteCount::ZERO);
    let storage = MemoryStorage::new();
    assert!(wait(RawImage::open(storage, window(u64::MAX, 2))).is_err());
}

#[test]
fn requests_that_wrap_around_are_out_of_range() {
    let image = memory(&[7; 4096], RawOptions::whole_file());
    assert!(read(&image, u64::MAX, 2).is_err());
    assert!(write(&image, u64::MAX - 1, &[0; 4]).is_err());
    let whole = bytes(u64::MAX);
    assert!(wait(image.zero(guest(1), whole, ZeroRequest::MayUnmap)).is_err());
    assert!(wait(image.discard(guest(1), whole)).is_err());
    assert!(wait(image.extents(guest(1), whole)).is_err());
    assert!(wait(image.read_into(guest(4096), &mut [0])).is_err());
    wait(image.read_into(guest(4096), &mut [])).unwrap();
}

#[test]
fn extents_tell_where_the_data_is_and_merge_neighbours() {
    let mut content = vec![0; 10 * 4096];
    content[2 * 4096..5 * 4096].fill(7);
    let image = memory(&content, window(4096, 12 * 4096));
    let found = wait(image.extents(guest(0), bytes(12 * 4096))).unwrap();
    let extent = |start: u64, length: u64, hole| Extent {
        start: guest(start * 4096),
        length: bytes(length * 4096),
        depth: 0,
        kind: ExtentKind::Data { host: Some(HostOffset::new((start + 1) * 4096)), hole },
    };
    // The hole before the end of the file and the missing rest behind it are one run.
    assert_eq!(found, [extent(0, 1, true), extent(1, 3, false), extent(4, 8, true)]);
    let part = wait(image.extents(guest(5000), bytes(100))).unwrap();
    assert_eq!((part[0].start, part[0].length, part.len()), (guest(5000), bytes(100), 1));
    assert_eq!(wait(image.extents(guest(0), bytes(0))).unwrap(), []);
}

#[test]
fn resizing_cuts_and_grows_the_file() {
    let image = memory(b"0123456789", RawOptions::whole_file());
    wait(image.resize(bytes(4))).unwrap();
    assert!(read(&image, 0, 5).is_err());
    wait(image.resize(bytes(6))).unwrap();
    assert_eq!(read(&image, 0, 6).unwrap(), b"0123\0\0");
    assert_eq!(image.into_storage().to_vec(), b"0123\0\0");
}

#[test]
fn a_device_grows_with_and_without_space_behind_it() {
    let image = memory(b"abc", RawOptions::whole_file());
    for (size, growth) in [(1024, Growth::Sparse), (4096, Growth::Allocated)] {
        wait(BlockDevice::resize(&image, bytes(size), growth)).unwrap();
        assert_eq!(BlockDevice::size(&image), bytes(size));
    }
    assert_eq!(read(&image, 0, 4).unwrap(), b"abc\0");
    assert!(bytes(0) < wait(BlockDevice::allocated(&image)).unwrap());
    let window = memory(b"abcdef", window(0, 3));
    let refused = wait(BlockDevice::resize(&window, bytes(4), Growth::Sparse)).unwrap_err();
    assert_eq!(refused.errno(), 95);
}

#[test]
fn resizing_a_window_does_not_cut_what_lies_behind_it() {
    let image = memory(b"0123456789", window(2, 4));
    assert_eq!(wait(image.resize(bytes(1))).unwrap_err().errno(), 95);
    assert_eq!(image.into_storage().to_vec(), b"0123456789");
}

#[test]
fn a_read_only_file_makes_a_read_only_device() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, b"content").unwrap();
    let storage = FileStorage::open(&path, FileOptions::read_only()).unwrap();
    let image = wait(RawImage::open(storage, RawOptions::whole_file())).unwrap();
    assert!(image.is_read_only());
    assert!(matches!(write(&image, 0, b"x"), Err(BlockError::ReadOnly)));
    assert!(matches!(wait(image.discard(guest(0), bytes(1))), Err(BlockError::ReadOnly)));
    assert!(matches!(wait(image.resize(bytes(1))), Err(BlockError::ReadOnly)));
    wait(image.flush()).unwrap();
    assert_eq!(read(&image, 0, 7).unwrap(), b"content");
}

#[test]
fn a_full_host_reaches_the_guest_with_its_errno() {
    let options = FileOptions { lock: LockMode::None, ..FileOptions::read_write() };
    let storage = FileStorage::open("/dev/full", options).unwrap();
    let image = wait(RawImage::open(storage, window(0, 4096))).unwrap();
    let error = write(&image, 0, b"x").unwrap_err();
    assert_eq!(error.errno(), 28);
    assert!(error.to_string().starts_with("/dev/full: write failed at 0x0 (1 bytes)"));
}

#[test]
fn faults_below_reach_the_guest_and_leave_the_rest_usable() {
    let storage = FaultStorage::new(MemoryStorage::from_vec(vec![7; 8192]));
    let image = wait(RawImage::open(storage, RawOptions::whole_file())).unwrap();
    let rule = |operation| FaultRule::fail(5).operation(operation).times(1);
    for operation in
        [Operation::Read, Operation::Write, Operation::Zero, Operation::Discard, Operation::Query]
    {
        image.storage().add(rule(operation));
    }
    assert_eq!(read(&image, 0, 512).unwrap_err().errno(), 5);
    assert_eq!(write(&image, 0, b"x").unwrap_err().errno(), 5);
    let zero = || image.zero(guest(0), bytes(512), ZeroRequest::MayUnmap);
    assert_eq!(wait(zero()).unwrap_err().errno(), 5);
    assert_eq!(wait(image.discard(guest(0), bytes(512))).unwrap_err().errno(), 5);
    assert_eq!(wait(image.extents(guest(0), bytes(512))).unwrap_err().errno(), 5);
    assert_eq!(image.storage().hits(), 5);
    assert_eq!(read(&image, 0, 512).unwrap(), [7; 512]);
    wait(zero()).unwrap();

    image.storage().add(rule(Operation::Barrier));
    assert_eq!(wait(image.flush()).unwrap_err().errno(), 5);
    // Never trusted again.
    assert_eq!(wait(image.flush()).unwrap_err().errno(), 5);
}

#[test]
fn a_file_that_turns_out_shorter_reads_as_zeros_from_there_on() {
    let storage = FaultStorage::new(MemoryStorage::from_vec(vec![7; 4096]));
    storage.add(FaultRule::new(FaultEffect::Shorten { length: bytes(100) }));
    let image = wait(RawImage::open(storage, RawOptions::whole_file())).unwrap();
    let mut found = [0xee; 512];
    wait(image.read_into(guest(0), &mut found)).unwrap();
    // What the file does not have any more reads as zeros, as behind its end.
    assert_eq!((&found[..100], &found[100..]), (&[7; 100][..], &[0; 412][..]));
}

#[test]
fn read_into_serves_any_alignment_of_a_direct_file() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = directory.path().join("image");
    let content: Vec<u8> = (0..=255).cycle().take(10_001).collect();
    std::fs::write(&path, &content).unwrap();
    let options = FileOptions { caching: Caching::Direct, ..FileOptions::read_only() };
    let storage = FileStorage::open(&path, options).unwrap();
    let image = wait(RawImage::open(storage, RawOptions::whole_file())).unwrap();
    for (at, length) in [(0, 4096), (1, 511), (511, 2), (9999, 2), (0, 10_001)] {
        let mut found = vec![0xee; length];
        wait(image.read_into(guest(at as u64), &mut found)).unwrap();
        assert_eq!(found, content[at..at + length], "{length} bytes at {at}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn what_is_written_through_a_window_is_read_back_and_nothing_else_changes(
        offset in 0_u64..5000,
        writes in prop::collection::vec((0_u64..9000, 0_usize..3000, any::<u8>()), 1..20),
    ) {
        const SIZE: u64 = 9000;
        let image = memory(&[0xaa; 16_000], window(offset, SIZE));
        let mut model = vec![0xaa; 16_000];
        for (at, length, fill) in writes {
            let fits = at + length as u64 <= SIZE;
            prop_assert_eq!(write(&image, at, &vec![fill; length]).is_ok(), fits);
            if fits {
                let start = usize::try_from(offset + at).unwrap();
                model[start..start + length].fill(fill);
            }
            let start = usize::try_from(offset).unwrap();
            let size = usize::try_from(SIZE).unwrap();
            prop_assert_eq!(&read(&image, 0, size).unwrap(), &model[start..start + size]);
        }
        prop_assert_eq!(image.into_storage().to_vec(), model);
    }
}
