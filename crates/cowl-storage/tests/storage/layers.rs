//! The layers pass everything through but the one thing they are for.

use crate::common::{at, bytes, check_against_model, content, read, wait, write};
use cowl_storage::{
    FaultEffect, FaultRule, FaultStorage, IoBuffer, MemoryStorage, Operation, Purpose,
    ReadOnlyStorage, Storage, TraceStorage, ZeroMode,
};
use proptest::prelude::*;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

    #[test]
    fn layers_without_a_task_act_as_a_vector(steps in crate::steps::steps()) {
        let storage = TraceStorage::new(FaultStorage::new(MemoryStorage::new()));
        wait(check_against_model(&storage, &steps));
    }

    #[test]
    fn a_rule_that_never_matches_changes_nothing(steps in crate::steps::steps()) {
        let storage = FaultStorage::new(MemoryStorage::new());
        storage.add(FaultRule::fail(EIO).purpose(Purpose::CryptoHeader));
        wait(check_against_model(&storage, &steps));
        prop_assert_eq!(storage.hits(), 0);
    }
}

#[test]
fn futures_of_layers_are_send_over_send_storage() {
    fn assert_send<T: Send>(_: T) {}
    let storage = TraceStorage::new(FaultStorage::new(ReadOnlyStorage::new(MemoryStorage::new())));
    assert_send(storage.read(at(0), IoBuffer::zeroed(1), Purpose::Header));
    assert_send(storage.write_vectored(at(0), vec![], Purpose::Header));
    assert_send(storage.barrier(Purpose::Barrier));
}

#[test]
fn a_trace_tells_operations_in_order_and_what_was_complete_before_what() {
    let storage = TraceStorage::new(MemoryStorage::new());
    let trace = storage.trace();
    wait(async {
        let buffer = IoBuffer::zeroed(4096);
        storage.write(at(0x10000), buffer, Purpose::RefcountBlock).await.0.unwrap();
        storage.barrier(Purpose::Barrier).await.unwrap();
        storage.try_write(at(0x40000), &[1; 8], Purpose::L2Table).unwrap().unwrap();
        storage.try_read(at(0x40000), &mut [0; 8], Purpose::L2Table).unwrap().unwrap();
        storage.set_len(bytes(9), Purpose::FileLength).await.unwrap();
        storage.len().await.unwrap();
    });
    let records = trace.records();
    let lines: Vec<_> = records.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "write refcount-block 0x10000+4096",
            "flush barrier",
            "write l2-table 0x40000+8",
            "read l2-table 0x40000+8",
            "set length file-length 0x0+9",
            "query",
        ]
    );
    assert!(records[0].finished.unwrap() < records[1].issued);
    assert!(records[1].finished.unwrap() < records[2].issued);
    assert_eq!(trace.take().len(), 6);
    assert!(trace.records().is_empty());
}

#[test]
fn a_trace_tells_failed_io() {
    let storage = TraceStorage::new(FaultStorage::new(MemoryStorage::new()));
    storage.inner().add(FaultRule::fail(ENOSPC).operation(Operation::Zero));
    let range = (at(0), bytes(8));
    let zero = storage.zero(range.0, range.1, ZeroMode::MayUnmap, Purpose::GuestData);
    assert_eq!(wait(zero).unwrap_err().errno(), ENOSPC);
    let records = storage.trace().records();
    assert_eq!(records[0].to_string(), "zero guest-data 0x0+8 failed with errno 28");
    assert_eq!(records[0].errno, Some(ENOSPC));
}

#[test]
fn rules_select_by_operation_purpose_range_and_occurrence() {
    let storage = FaultStorage::new(MemoryStorage::new());
    let rule = FaultRule::fail(ENOSPC)
        .operation(Operation::Write)
        .purpose(Purpose::GuestData)
        .touching(at(4096), bytes(1))
        .after(1)
        .times(1);
    storage.add(rule);
    wait(async {
        write(&storage, 4096, b"first passes").await.unwrap();
        write(&storage, 4097, b"beside").await.unwrap();
        let other = storage.write(at(4096), IoBuffer::from_slice(b"other"), Purpose::Header);
        other.await.0.unwrap();
        read(&storage, 4096, 4).await.unwrap();
        let error = write(&storage, 4000, &[1; 97]).await.unwrap_err();
        assert_eq!(error.errno(), ENOSPC);
        assert_eq!(error.range(), Some((at(4000), bytes(97))));
        write(&storage, 4096, b"spent").await.unwrap();
    });
    assert_eq!(storage.hits(), 1);
}

#[test]
fn a_torn_write_stores_its_first_bytes_and_fails() {
    let storage = FaultStorage::new(MemoryStorage::from_vec(b"........".to_vec()));
    storage.add(FaultRule::new(FaultEffect::Tear { length: bytes(3), errno: EIO }).times(1));
    assert_eq!(wait(write(&storage, 1, b"abcdef")).unwrap_err().errno(), EIO);
    assert_eq!(storage.into_inner().to_vec(), b".abc....");
}

#[test]
fn a_write_of_unknown_outcome_is_done_and_fails() {
    let storage = FaultStorage::new(MemoryStorage::from_vec(b"....".to_vec()));
    storage.add(FaultRule::new(FaultEffect::FailAfterwards { errno: EIO }).times(1));
    assert_eq!(wait(write(&storage, 0, b"done")).unwrap_err().errno(), EIO);
    assert_eq!(storage.into_inner().to_vec(), b"done");
}

#[test]
fn a_shortened_read_ends_early_on_every_path() {
    let storage = FaultStorage::new(MemoryStorage::from_vec(b"12345678".to_vec()));
    storage.add(FaultRule::new(FaultEffect::Shorten { length: bytes(3) }));
    assert_eq!(wait(read(&storage, 0, 8)).unwrap(), (b"123\0\0\0\0\0".to_vec(), 3));
    let mut inline = [9; 5];
    let count = storage.try_read(at(0), &mut inline, Purpose::GuestData).unwrap().unwrap();
    assert_eq!((inline, count), (*b"123\0\0", bytes(3)));
    let buffers = vec![IoBuffer::zeroed(2), IoBuffer::zeroed(2)];
    let (_, buffers) = wait(storage.read_vectored(at(0), buffers, Purpose::GuestData));
    assert_eq!([&buffers[0][..], &buffers[1][..]], [b"12", b"3\0"]);
}

#[test]
fn a_barrier_made_to_fail_once_stays_failed() {
    let storage = FaultStorage::new(MemoryStorage::new());
    storage.add(FaultRule::fail(EIO).operation(Operation::Barrier).times(1));
    for _ in 0..3 {
        assert_eq!(wait(storage.barrier(Purpose::Barrier)).unwrap_err().errno(), EIO);
    }
    storage.clear();
    assert!(wait(storage.barrier(Purpose::Barrier)).is_err());
    assert_eq!(storage.hits(), 1);
}

#[test]
fn read_only_storage_reads_and_refuses_every_change() {
    const EROFS: i32 = 30;
    let storage = ReadOnlyStorage::new(MemoryStorage::from_vec(b"content".to_vec()));
    assert!(storage.capabilities().read_only);
    let purpose = Purpose::GuestData;
    wait(async {
        let range = (at(0), bytes(4));
        let results = [
            write(&storage, 0, b"x").await,
            storage.write_vectored(at(0), vec![IoBuffer::zeroed(1)], purpose).await.0,
            storage.try_write(at(0), b"x", purpose).unwrap(),
            storage.zero(range.0, range.1, ZeroMode::MayUnmap, purpose).await,
            storage.discard(range.0, range.1, purpose).await,
            storage.allocate(range.0, range.1, cowl_storage::Allocation::Reserve, purpose).await,
            storage.set_len(bytes(1), purpose).await,
        ];
        for result in results {
            assert_eq!(result.unwrap_err().errno(), EROFS);
        }
        storage.barrier(Purpose::Barrier).await.unwrap();
        assert_eq!(content(&storage).await, b"content");
    });
}
