//! `FileStorage` against a model, at the ends of files, and when the host says no.

use std::fs::FileTimes;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime};

use crate::common::{
    NEW, NEW_DIRECT, Step, at, bytes, file_with, read, scratch, scratch_in, skip, wait, write,
};
use cowl_storage::{
    Access, Caching, FileOptions, FileStorage, IoBuffer, LockMode, Operation, Purpose, Storage,
    Writeback, ZeroMode,
};
use proptest::prelude::*;

const TMPFS: &str = "/dev/shm";

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(150) })]

    #[test]
    fn any_sequence_of_operations_acts_as_on_a_vector(steps in crate::steps::steps()) {
        let scratch = scratch();
        let storage = FileStorage::open(&scratch.path, NEW).unwrap();
        wait(crate::common::check_against_model(&storage, &steps));
    }

    #[test]
    fn any_sequence_of_operations_acts_as_on_a_vector_where_ranges_cannot_be_zeroed(
        steps in crate::steps::steps(),
    ) {
        // A tmpfs punches holes but refuses FALLOC_FL_ZERO_RANGE, so zeros are written.
        if std::path::Path::new(TMPFS).is_dir() {
            let scratch = scratch_in(TMPFS);
            let storage = FileStorage::open(&scratch.path, NEW).unwrap();
            wait(crate::common::check_against_model(&storage, &steps));
        } else {
            skip("no tmpfs at /dev/shm");
        }
    }

    #[test]
    fn any_sequence_of_operations_acts_as_on_a_vector_with_direct_io(steps in crate::steps::steps()) {
        let scratch = scratch();
        let storage = FileStorage::open(&scratch.path, NEW_DIRECT).unwrap();
        wait(crate::common::check_against_model(&storage, &steps));
    }
}

#[test]
fn reading_leaves_the_time_of_access_alone() {
    let scratch = scratch();
    std::fs::write(&scratch.path, [7; 4096]).unwrap();
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let accessed = || std::fs::metadata(&scratch.path).unwrap().accessed().unwrap();
    let file = std::fs::File::options().write(true).open(&scratch.path).unwrap();
    file.set_times(FileTimes::new().set_accessed(long_ago)).unwrap();
    for caching in [Caching::PageCache, Caching::LargeWritesDirect, Caching::Direct] {
        for options in [FileOptions::read_only(), FileOptions::read_write()] {
            let storage = FileStorage::open(&scratch.path, FileOptions { caching, ..options });
            assert_eq!(wait(read(&storage.unwrap(), 0, 4096)).unwrap().0, [7; 4096]);
            assert_eq!(accessed(), long_ago, "{caching:?} {:?}", options.access);
        }
    }
    std::fs::read(&scratch.path).unwrap();
    if accessed() == long_ago {
        skip("this file system keeps no times of access");
    }
}

#[test]
fn futures_are_send_and_ready_at_once() {
    fn assert_send<T: Send>(value: T) -> T {
        value
    }
    let (storage, _scratch) = file_with(b"content", NEW);
    let purpose = Purpose::GuestData;
    let buffer = || IoBuffer::zeroed(4);
    let range = (at(0), bytes(4));
    drop(assert_send(storage.len()));
    drop(assert_send(storage.allocated()));
    drop(assert_send(storage.read_vectored(at(0), vec![buffer()], purpose)));
    drop(assert_send(storage.write(at(0), buffer(), purpose)));
    drop(assert_send(storage.write_vectored(at(0), vec![buffer()], purpose)));
    drop(assert_send(storage.zero(range.0, range.1, ZeroMode::MayUnmap, purpose)));
    drop(assert_send(storage.discard(range.0, range.1, purpose)));
    drop(assert_send(storage.set_len(bytes(1), purpose)));
    drop(assert_send(storage.extent(range.0, range.1)));
    drop(assert_send(storage.barrier(purpose)));
    let mut future = Box::pin(assert_send(storage.read(at(0), buffer(), purpose)));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(future.as_mut().poll(&mut context).is_ready());
}

#[test]
fn reading_past_the_end_gives_zeros_and_the_count_of_real_bytes() {
    for options in [NEW, NEW_DIRECT] {
        let (storage, _scratch) = file_with(&[7; 1000], options);
        let (found, count) = wait(read(&storage, 0, 4096)).unwrap();
        assert_eq!(count, 1000);
        assert!(found[..1000].iter().all(|byte| *byte == 7));
        assert!(found[1000..].iter().all(|byte| *byte == 0));
        assert_eq!(wait(read(&storage, 8192, 4096)).unwrap(), (vec![0; 4096], 0));
    }
}

#[test]
fn a_write_into_the_tail_of_a_direct_file_keeps_its_odd_length() {
    let (storage, scratch) = file_with(&[7; 5000], NEW_DIRECT);
    wait(write(&storage, 4990, &[9; 10])).unwrap();
    assert_eq!(std::fs::metadata(&scratch.path).unwrap().len(), 5000);
    wait(write(&storage, 4995, &[8; 10])).unwrap();
    let content = std::fs::read(&scratch.path).unwrap();
    assert_eq!(content[..4990], [7; 4990]);
    assert_eq!(content[4990..4995], [9; 5]);
    assert_eq!(content[4995..], [8; 10]);
}

#[test]
fn unaligned_direct_writes_to_one_block_do_not_lose_each_other() {
    let (storage, scratch) = file_with(&[0; 64 << 10], NEW_DIRECT);
    std::thread::scope(|scope| {
        for lane in 0..4_u64 {
            let storage = &storage;
            scope.spawn(move || {
                let fill = u8::try_from(lane).unwrap() + 1;
                for block in 0..128 {
                    wait(write(storage, block * 512 + lane * 128, &[fill; 128])).unwrap();
                }
            });
        }
    });
    let content = std::fs::read(&scratch.path).unwrap();
    for (index, byte) in content.iter().enumerate() {
        assert_eq!(usize::from(*byte), index % 512 / 128 + 1, "byte {index:#x}");
    }
}

#[test]
fn direct_files_tell_their_alignment_and_refuse_inline_access_below_it() {
    let (storage, _scratch) = file_with(&[7; 8192], NEW_DIRECT);
    let alignment = storage.capabilities().io_alignment;
    assert!((512..=4096).contains(&alignment));
    let mut buffer = IoBuffer::zeroed(4096);
    let purpose = Purpose::GuestData;
    assert!(storage.try_read(at(1), &mut buffer, purpose).is_none());
    assert!(storage.try_read(at(0), &mut buffer[..511], purpose).is_none());
    assert!(storage.try_read(at(0), &mut buffer[1..513], purpose).is_none());
    assert!(storage.try_write(at(3), &buffer, purpose).is_none());
    assert!(storage.try_read(at(4096), &mut buffer, purpose).is_some());
}

#[test]
fn many_small_buffers_are_read_and_written_in_order() {
    // More than the kernel takes in one call.
    let scratch = scratch();
    let storage = FileStorage::open(&scratch.path, NEW).unwrap();
    let lengths: Vec<usize> = (0..3000).map(|index| index % 5).collect();
    let steps = [
        Step::WriteVectored { at: 13, lengths: lengths.clone(), fill: 3 },
        Step::ReadVectored { at: 11, lengths },
    ];
    wait(crate::common::check_against_model(&storage, &steps));
}

#[test]
fn zeroing_with_unmap_gives_blocks_back_and_without_keeps_them() {
    let (storage, _scratch) = file_with(&[7; 1 << 20], NEW);
    let zero = |mode| storage.zero(at(0), bytes(1 << 19), mode, Purpose::GuestData);
    wait(storage.barrier(Purpose::Barrier)).unwrap();
    let before = wait(storage.allocated()).unwrap();
    wait(zero(ZeroMode::KeepAllocated)).unwrap();
    assert_eq!(wait(storage.allocated()).unwrap(), before);
    wait(zero(ZeroMode::MayUnmap)).unwrap();
    assert!(wait(storage.allocated()).unwrap() < before);
    let run = wait(storage.extent(at(0), bytes(u64::MAX))).unwrap().unwrap();
    assert!(run.hole);
    assert_eq!(run.length, bytes(1 << 19));
    let run = wait(storage.extent(at(1 << 19), bytes(100))).unwrap().unwrap();
    assert!(!run.hole);
    assert_eq!(run.length, bytes(100));
}

#[test]
fn zeroing_past_the_end_extends_and_never_cuts_a_parallel_write_off() {
    for _ in 0..50 {
        let scratch = scratch();
        let storage = FileStorage::open(&scratch.path, NEW).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let range = (at(0), bytes(20_000));
                wait(storage.zero(range.0, range.1, ZeroMode::MayUnmap, Purpose::GuestData))
                    .unwrap();
            });
            scope.spawn(|| wait(write(&storage, 50_000, b"kept")).unwrap());
        });
        let content = std::fs::read(&scratch.path).unwrap();
        assert_eq!(&content[50_000..], b"kept");
    }
}

#[test]
fn what_is_handed_to_the_disk_early_reads_as_before_whatever_the_file_is() {
    let (storage, _scratch) = file_with(b"", NEW);
    let length = 5 << 20;
    let places = (1_u8..9).map(|byte| (byte, u64::from(byte) * (5 << 20)));
    for (byte, place) in places.clone() {
        wait(write(&storage, place, &vec![byte; length])).unwrap();
    }
    for (byte, place) in places {
        let (found, _) = wait(read(&storage, place, length)).unwrap();
        assert!(found.iter().all(|found| *found == byte), "{byte}");
    }
    let options = FileOptions { writeback: Writeback::Early, ..FileOptions::read_write() };
    let nothing = FileStorage::open("/dev/null", options).unwrap();
    wait(write(&nothing, 0, &vec![1; 32 << 20])).unwrap();
}

#[test]
fn discarding_past_the_end_does_not_change_the_length() {
    let (storage, scratch) = file_with(&[7; 5000], NEW);
    wait(storage.discard(at(100), bytes(1 << 30), Purpose::GuestData)).unwrap();
    let content = std::fs::read(&scratch.path).unwrap();
    assert_eq!(content.len(), 5000);
    assert!(content[100..].iter().all(|byte| *byte == 0));
}

#[test]
fn opening_and_closing_for_writing_leaves_the_file_untouched() {
    for caching in [Caching::PageCache, Caching::Direct] {
        let (storage, scratch) = file_with(&[7; 5000], NEW);
        drop(storage);
        let before = std::fs::metadata(&scratch.path).unwrap();
        let options = FileOptions { caching, ..FileOptions::read_write() };
        let storage = FileStorage::open(&scratch.path, options).unwrap();
        drop(storage);
        let after = std::fs::metadata(&scratch.path).unwrap();
        assert_eq!((before.ctime(), before.ctime_nsec()), (after.ctime(), after.ctime_nsec()));
        assert_eq!(before.len(), after.len());
    }
}

#[test]
fn errors_say_what_where_and_why() {
    let scratch = scratch();
    let error = FileStorage::open(&scratch.path, FileOptions::read_only()).unwrap_err();
    assert_eq!(error.errno(), 2);
    assert_eq!(error.operation(), Operation::Open);
    let want =
        format!("{}: open failed: No such file or directory (os error 2)", scratch.path.display());
    assert_eq!(error.to_string(), want);

    let directory = scratch.directory.path();
    let error = FileStorage::open(directory, FileOptions::read_only()).unwrap_err();
    assert_eq!(error.errno(), 21);

    std::fs::write(&scratch.path, b"x").unwrap();
    let error = FileStorage::open(&scratch.path, FileOptions::create_new()).unwrap_err();
    assert_eq!(error.errno(), 17);
}

#[test]
fn a_full_device_is_enospc_with_the_range_and_purpose() {
    let options = FileOptions { lock: LockMode::None, ..FileOptions::read_write() };
    let storage = FileStorage::open("/dev/full", options).unwrap();
    let error = wait(write(&storage, 0x1000, &[1; 512])).unwrap_err();
    assert_eq!(error.errno(), 28);
    assert_eq!(
        error.to_string(),
        "/dev/full: write failed at 0x1000 (512 bytes) for guest-data: \
         No space left on device (os error 28)"
    );
}

#[test]
fn writing_to_a_file_opened_for_reading_fails() {
    let options = FileOptions { access: Access::ReadOnly, ..NEW };
    let (storage, scratch) = file_with(b"content", options);
    assert!(storage.capabilities().read_only);
    assert_eq!(wait(write(&storage, 0, b"x")).unwrap_err().errno(), 9);
    let zero = storage.zero(at(0), bytes(4), ZeroMode::MayUnmap, Purpose::GuestData);
    assert_eq!(wait(zero).unwrap_err().errno(), 9);
    assert_eq!(std::fs::read(&scratch.path).unwrap(), b"content");
}

#[test]
fn opening_a_fifo_is_refused_instead_of_waiting_for_its_other_end() {
    let scratch = scratch();
    let status = std::process::Command::new("mkfifo").arg(&scratch.path).status().unwrap();
    assert!(status.success());
    assert_eq!(FileStorage::open(&scratch.path, FileOptions::read_only()).unwrap_err().errno(), 29);
}

#[test]
fn offsets_outside_any_file_are_errors_and_not_panics() {
    for options in [NEW, NEW_DIRECT] {
        let (storage, _scratch) = file_with(&[7; 4096], options);
        for offset in [u64::MAX, u64::MAX - 4095, 1 << 63, (1 << 63) - 1, (1 << 63) - 4096] {
            assert!(wait(read(&storage, offset, 4096)).is_err(), "{offset:#x}");
            assert!(wait(write(&storage, offset, &[1; 4096])).is_err());
            for mode in [ZeroMode::MayUnmap, ZeroMode::KeepAllocated] {
                let zero = storage.zero(at(offset), bytes(4096), mode, Purpose::GuestData);
                assert!(wait(zero).is_err());
            }
            assert!(wait(storage.extent(at(offset), bytes(1))).unwrap().is_none());
            let discard = storage.discard(at(offset), bytes(4096), Purpose::GuestData);
            assert!(wait(discard).is_err());
        }
        assert_eq!(wait(storage.len()).unwrap(), bytes(4096));
    }
}
