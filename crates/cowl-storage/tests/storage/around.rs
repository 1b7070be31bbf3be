//! Files whose large writes go around the page cache: they read as any other.

use cowl_storage::{
    Caching, FileOptions, FileStorage, IoBuffer, Purpose, Storage, UringStorage, ZeroMode,
};
use proptest::prelude::*;

use crate::common::{NEW, NEW_DIRECT, at, bytes, file_with, read, scratch, skip, wait};

const LARGE_DIRECT: FileOptions = FileOptions { caching: Caching::LargeWritesDirect, ..NEW };

/// A large write.
const LARGE: usize = 1 << 20;

/// A change of a file.
#[derive(Clone, Debug)]
enum Change {
    /// From `skip` bytes behind aligned memory on.
    Write {
        at: u64,
        skip: usize,
        length: usize,
        fill: u8,
    },
    Zero {
        at: u64,
        length: u64,
    },
    Truncate {
        length: u64,
    },
}

/// Large and small, aligned and not, over one another and past the end.
fn change() -> impl Strategy<Value = Change> {
    let page = 0..512_u64;
    let large = (page.clone(), 64..300_usize, any::<u8>()).prop_map(|(page, pages, fill)| {
        Change::Write { at: page * 4096, skip: 0, length: pages * 4096, fill }
    });
    let any_write = (0..2_u64 << 20, 0..2_usize, 1..400_000_usize, any::<u8>())
        .prop_map(|(at, skip, length, fill)| Change::Write { at, skip, length, fill });
    let small = (page, 1..5000_usize, any::<u8>()).prop_map(|(page, length, fill)| Change::Write {
        at: page * 4096,
        skip: 0,
        length,
        fill,
    });
    let zero =
        (0..2_u64 << 20, 1..600_000_u64).prop_map(|(at, length)| Change::Zero { at, length });
    let truncate = (0..3_u64 << 20).prop_map(|length| Change::Truncate { length });
    prop_oneof![4 => large, 2 => any_write, 3 => small, 1 => zero, 1 => truncate]
}

fn apply(storage: &FileStorage, model: &mut Vec<u8>, change: &Change) {
    let range = |at: u64, length: usize| {
        let at = usize::try_from(at).unwrap();
        at..at + length
    };
    match *change {
        Change::Write { at: offset, skip, length, fill } => {
            let mut buffer = IoBuffer::zeroed(skip + length);
            buffer.fill(fill);
            let result = storage.try_write(at(offset), &buffer[skip..], Purpose::GuestData);
            result.expect("a blocking driver answers inline").unwrap();
            let place = range(offset, length);
            model.resize(model.len().max(place.end), 0);
            model[place].fill(fill);
        }
        Change::Zero { at: offset, length } => {
            let mode = ZeroMode::MayUnmap;
            wait(storage.zero(at(offset), bytes(length), mode, Purpose::GuestData)).unwrap();
            let place = range(offset, usize::try_from(length).unwrap());
            model.resize(model.len().max(place.end), 0);
            model[place].fill(0);
        }
        Change::Truncate { length } => {
            wait(storage.set_len(bytes(length), Purpose::FileLength)).unwrap();
            model.resize(usize::try_from(length).unwrap(), 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    #[test]
    fn writes_on_both_ways_act_as_on_a_vector(changes in proptest::collection::vec(change(), 1..25)) {
        let scratch = scratch();
        let storage = FileStorage::open(&scratch.path, LARGE_DIRECT).unwrap();
        let mut model = Vec::new();
        for change in &changes {
            apply(&storage, &mut model, change);
            let (found, count) = wait(read(&storage, 0, model.len())).unwrap();
            prop_assert_eq!(count, model.len() as u64);
            prop_assert!(found == model, "after {:?}", change);
        }
        wait(storage.barrier(Purpose::Barrier)).unwrap();
        // As everybody else sees it.
        prop_assert!(std::fs::read(&scratch.path).unwrap() == model);
    }
}

fn write_large(storage: &FileStorage, offset: u64) {
    let mut buffer = IoBuffer::zeroed(LARGE);
    buffer.fill(7);
    wait(storage.write(at(offset), buffer, Purpose::GuestData)).0.unwrap();
}

#[test]
fn threads_that_write_large_and_small_parts_of_one_file_do_not_lose_each_other() {
    let (storage, scratch) = file_with(b"", LARGE_DIRECT);
    std::thread::scope(|scope| {
        for lane in 0..4_u64 {
            let storage = &storage;
            scope.spawn(move || {
                for turn in 0..6_u64 {
                    let start = (turn * 4 + lane) * 2 * LARGE as u64;
                    write_large(storage, start);
                    // Right behind it, in the page cache.
                    let mut small = IoBuffer::zeroed(4096);
                    small.fill(9);
                    let offset = at(start + LARGE as u64);
                    wait(storage.write(offset, small, Purpose::GuestData)).0.unwrap();
                }
            });
        }
    });
    wait(storage.barrier(Purpose::Barrier)).unwrap();
    let content = std::fs::read(&scratch.path).unwrap();
    for part in content.chunks(2 * LARGE) {
        assert!(part[..LARGE].iter().all(|byte| *byte == 7));
        assert!(part[LARGE..LARGE + 4096].iter().all(|byte| *byte == 9));
        assert!(part[LARGE + 4096..].iter().all(|byte| *byte == 0));
    }
    assert_eq!(content.len(), 23 * 2 * LARGE + LARGE + 4096);
}

/// Descriptors of this process that show the file at `path`.
fn descriptors(path: &std::path::Path) -> usize {
    let path = std::fs::canonicalize(path).unwrap();
    let all = std::fs::read_dir("/proc/self/fd").unwrap();
    let shows = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| std::fs::read_link(entry.path()).is_ok_and(|file| file == path))
    };
    all.map(shows).filter(|shows| *shows).count()
}

#[test]
fn only_files_that_a_blocking_driver_writes_are_open_twice() {
    let scratch = scratch();
    if FileStorage::open(&scratch.path, NEW_DIRECT).is_err() {
        return skip("this file system knows no O_DIRECT");
    }
    let path = &scratch.path;
    let storage = FileStorage::open(path, LARGE_DIRECT).unwrap();
    assert_eq!(descriptors(path), 2);
    // The ring writes on its own.
    let ring = UringStorage::from(storage);
    assert_eq!(descriptors(path), 1);
    drop(ring);
    assert_eq!(descriptors(path), 0);
    let reading = FileOptions {
        access: cowl_storage::Access::ReadOnly,
        existence: cowl_storage::Existence::MustExist,
        ..LARGE_DIRECT
    };
    let _reading = FileStorage::open(path, reading).unwrap();
    assert_eq!(descriptors(path), 1);
}
