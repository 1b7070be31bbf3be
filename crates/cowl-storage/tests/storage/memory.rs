//! `MemoryStorage` against the model.

use crate::common::{Step, at, bytes, check_against_model, wait, write};
use cowl_storage::{Allocation, MemoryStorage, Purpose, Storage, ZeroMode};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn any_sequence_of_operations_acts_as_on_a_vector(steps in crate::steps::steps()) {
        wait(check_against_model(&MemoryStorage::new(), &steps));
    }
}

#[test]
fn holes_come_back_where_whole_pages_are_punched() {
    let storage = MemoryStorage::from_vec(vec![7; 5 * 4096]);
    wait(storage.discard(at(100), bytes(3 * 4096), Purpose::GuestData)).unwrap();
    assert_eq!(wait(storage.allocated()).unwrap(), bytes(3 * 4096));
    let run = wait(storage.extent(at(4096), bytes(u64::MAX))).unwrap().unwrap();
    assert!(run.hole);
    assert_eq!(run.length, bytes(2 * 4096));
    wait(check_against_model(&storage, &[Step::Extents]));
}

#[test]
fn a_huge_sparse_content_costs_only_its_pages() {
    let storage = MemoryStorage::new();
    wait(write(&storage, 1 << 50, b"far")).unwrap();
    wait(storage.set_len(bytes(1 << 60), Purpose::FileLength)).unwrap();
    let run = wait(storage.extent(at(0), bytes(u64::MAX))).unwrap().unwrap();
    assert_eq!((run.length, run.hole), (bytes(1 << 50), true));
    let zero = storage.zero(at(0), bytes(1 << 59), ZeroMode::MayUnmap, Purpose::GuestData);
    wait(zero).unwrap();
    assert_eq!(wait(storage.allocated()).unwrap(), bytes(0));
}

#[test]
fn offsets_outside_any_file_are_errors_and_not_panics() {
    let storage = MemoryStorage::new();
    let purpose = Purpose::GuestData;
    assert_eq!(wait(write(&storage, u64::MAX, b"x")).unwrap_err().errno(), 27);
    let how = Allocation::Reserve;
    assert!(wait(storage.allocate(at(1 << 63), bytes(1 << 63), how, purpose)).is_err());
    assert!(wait(storage.set_len(bytes(u64::MAX), purpose)).is_err());
    assert_eq!(storage.to_vec(), []);
}

#[test]
fn threads_write_their_own_parts_at_the_same_time() {
    let storage = MemoryStorage::new();
    std::thread::scope(|scope| {
        for lane in 0..4_u64 {
            let storage = &storage;
            scope.spawn(move || {
                let fill = [u8::try_from(lane).unwrap() + 1; 100];
                for round in 0..200 {
                    wait(write(storage, (round * 4 + lane) * 100, &fill)).unwrap();
                }
            });
        }
    });
    let content = storage.to_vec();
    assert!((0..).zip(&content).all(|(index, byte)| usize::from(*byte) == index / 100 % 4 + 1));
}
