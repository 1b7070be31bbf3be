//! `UringStorage` against the model, on several rings at once, and with futures dropped half-way.

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Waker};

use crate::common::{
    NEW, NEW_DIRECT, Scratch, Step, at, bytes, check_against_model, file_with, read, scratch, write,
};
use cowl_storage::{FileOptions, IoBuffer, Purpose, Storage, UringStorage, ZeroMode, ring_runtime};
use proptest::prelude::*;

fn wait<T>(future: impl Future<Output = T>) -> T {
    ring_runtime().unwrap().block_on(future)
}

fn uring_with(content: &[u8], options: FileOptions) -> (UringStorage, Scratch) {
    let (storage, scratch) = file_with(content, options);
    (storage.into(), scratch)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(80) })]

    #[test]
    fn any_sequence_of_operations_acts_as_on_a_vector(steps in crate::steps::steps()) {
        let scratch = scratch();
        let storage = UringStorage::open(&scratch.path, NEW).unwrap();
        wait(check_against_model(&storage, &steps));
    }

    #[test]
    fn any_sequence_of_operations_acts_as_on_a_vector_with_direct_io(steps in crate::steps::steps()) {
        let scratch = scratch();
        let storage = UringStorage::open(&scratch.path, NEW_DIRECT).unwrap();
        wait(check_against_model(&storage, &steps));
    }
}

#[test]
fn the_storage_itself_belongs_to_no_thread() {
    fn assert_send_sync<T: Send + Sync>(_: &T) {}
    let (storage, _scratch) = uring_with(b"content", NEW);
    assert_send_sync(&storage);
}

#[test]
fn what_the_page_cache_has_is_read_inline_and_the_rest_is_not() {
    let (storage, _scratch) = uring_with(&[7; 5000], NEW);
    let mut found = [0; 4096];
    let purpose = Purpose::GuestData;
    // Written a moment ago, so it is there.
    assert_eq!(storage.try_read(at(0), &mut found, purpose).unwrap().unwrap(), bytes(4096));
    assert_eq!(found, [7; 4096]);
    // Whether a short count is the end of the file or of the cache cannot be told.
    assert!(storage.try_read(at(4096), &mut found, purpose).is_none());
    assert!(storage.try_read(at(u64::MAX), &mut found, purpose).is_none());
    let (storage, _scratch) = uring_with(&[7; 4096], NEW_DIRECT);
    let mut found = IoBuffer::zeroed(4096);
    assert!(storage.try_read(at(0), &mut found, purpose).is_none());
}

#[test]
fn more_buffers_than_one_request_takes_are_read_and_written_in_order() {
    let scratch = scratch();
    let storage = UringStorage::open(&scratch.path, NEW).unwrap();
    let lengths: Vec<usize> = (0..1500).map(|index| index % 5).collect();
    let steps = [
        Step::WriteVectored { at: 13, lengths: lengths.clone(), fill: 3 },
        Step::ReadVectored { at: 11, lengths },
    ];
    wait(check_against_model(&storage, &steps));
}

#[test]
fn rings_of_several_threads_share_one_storage() {
    for options in [NEW, NEW_DIRECT] {
        let (storage, scratch) = uring_with(&[0; 64 << 10], options);
        std::thread::scope(|scope| {
            for lane in 0..4_u64 {
                let storage = &storage;
                scope.spawn(move || {
                    let fill = u8::try_from(lane).unwrap() + 1;
                    wait(async {
                        for block in 0..64 {
                            // With O_DIRECT four threads change parts of the same block.
                            write(storage, block * 512 + lane * 128, &[fill; 128]).await.unwrap();
                            // And each its own blocks as a whole.
                            let own = (32 << 10) + (block / 8 * 4 + lane) * 1024;
                            write(storage, own, &[fill; 1024]).await.unwrap();
                        }
                        storage.barrier(Purpose::Barrier).await.unwrap();
                    });
                });
            }
        });
        let content = std::fs::read(&scratch.path).unwrap();
        for (index, byte) in content.iter().enumerate() {
            let lane = if index < 32 << 10 { index % 512 / 128 } else { index % 4096 / 1024 };
            assert_eq!(usize::from(*byte), lane + 1, "byte {index:#x}");
        }
    }
}

/// Polls once, so that the request is with the kernel, and drops the future.
async fn start_and_drop<T>(future: impl Future<Output = T>) {
    let mut future = pin!(future);
    let polled = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    drop(polled);
}

#[test]
fn dropped_requests_harm_neither_memory_nor_later_requests() {
    for options in [NEW, NEW_DIRECT] {
        let (storage, scratch) = uring_with(&[7; 1 << 20], options);
        wait(async {
            for round in 0..200_u64 {
                let offset = round % 64 * 4096;
                let target = at(offset);
                let buffer = IoBuffer::zeroed(64 << 10);
                start_and_drop(storage.read(target, buffer, Purpose::GuestData)).await;
                let whole = IoBuffer::from_slice(&[7; 8192]);
                start_and_drop(storage.write(target, whole, Purpose::GuestData)).await;
                let partial = IoBuffer::from_slice(&[7; 100]);
                start_and_drop(storage.write(at(offset + 50), partial, Purpose::GuestData)).await;
                let range = (at(1 << 20), bytes(4096));
                let mode = ZeroMode::MayUnmap;
                start_and_drop(storage.zero(range.0, range.1, mode, Purpose::GuestData)).await;
                start_and_drop(storage.barrier(Purpose::Barrier)).await;
                // Memory that was freed too early would be handed out here and scribbled on.
                let canary = vec![0x55_u8; 64 << 10];
                let (found, _) = read(&storage, offset, 4096).await.unwrap();
                assert_eq!(found, [7; 4096]);
                assert!(canary.iter().all(|byte| *byte == 0x55));
            }
            storage.barrier(Purpose::Barrier).await.unwrap();
        });
        let content = std::fs::read(&scratch.path).unwrap();
        assert_eq!(content[..1 << 20], vec![7; 1 << 20]);
    }
}

#[test]
fn a_barrier_cut_off_with_its_runtime_has_an_unknown_outcome_and_is_not_trusted() {
    let (storage, _scratch) = uring_with(&[7; 4096], NEW);
    wait(async {
        start_and_drop(storage.barrier(Purpose::Barrier)).await;
    });
    // The runtime is gone, and with it the task that would have told.
    assert_eq!(wait(storage.barrier(Purpose::Barrier)).unwrap_err().errno(), 5);
}

#[test]
fn a_dropped_barrier_lets_others_run() {
    let (storage, _scratch) = uring_with(&[7; 4096], NEW);
    wait(async {
        start_and_drop(storage.barrier(Purpose::Barrier)).await;
        storage.barrier(Purpose::Barrier).await.unwrap();
    });
}

#[test]
fn errors_keep_their_errno_and_facts() {
    let storage = UringStorage::open("/dev/full", crate::common::DEVICE).unwrap();
    let error = wait(write(&storage, 4096, &[1; 512])).unwrap_err();
    assert_eq!(error.errno(), 28);
    let text = error.to_string();
    assert!(text.starts_with("/dev/full: write failed at 0x1000 (512 bytes) for guest-data"));
}

#[test]
fn offsets_outside_any_file_are_errors_and_not_panics() {
    for options in [NEW, NEW_DIRECT] {
        let (storage, _scratch) = uring_with(&[7; 4096], options);
        wait(async {
            for offset in [u64::MAX, u64::MAX - 4095, 1 << 63, (1 << 63) - 1, (1 << 63) - 4096] {
                assert!(read(&storage, offset, 4096).await.is_err(), "{offset:#x}");
                assert!(write(&storage, offset, &[1; 4096]).await.is_err(), "{offset:#x}");
                let buffers = || vec![IoBuffer::zeroed(4096), IoBuffer::zeroed(4096)];
                let purpose = Purpose::GuestData;
                assert!(storage.read_vectored(at(offset), buffers(), purpose).await.0.is_err());
                assert!(storage.write_vectored(at(offset), buffers(), purpose).await.0.is_err());
            }
            assert_eq!(storage.len().await.unwrap(), bytes(4096));
        });
    }
}

/// Writes 512 pages at once, more than a ring knows, and reads them back.
async fn many_pages(storage: &UringStorage) {
    const PAGES: u64 = 512;
    let content = |page: u64| (page % 251).to_le_bytes()[0];
    let writes = (0..PAGES).map(|page| {
        let mut buffer = IoBuffer::for_requests(4096);
        buffer.fill(content(page));
        storage.write(at(page * 4096), buffer, Purpose::GuestData)
    });
    let mut buffers = Vec::new();
    for (result, buffer) in futures_util::future::join_all(writes).await {
        result.unwrap();
        buffers.push(buffer);
    }
    let reads = buffers.into_iter().enumerate().map(|(page, mut buffer)| {
        buffer.fill(0xee);
        storage.read(at(page as u64 * 4096), buffer, Purpose::GuestData)
    });
    for (page, (result, buffer)) in (0..).zip(futures_util::future::join_all(reads).await) {
        assert_eq!(result.unwrap(), bytes(4096));
        assert!(buffer.iter().all(|&byte| byte == content(page)), "page {page}");
    }
}

#[test]
fn more_buffers_than_the_ring_knows_serve_all_the_same() {
    let (storage, _scratch) = uring_with(&vec![0; 2 << 20], NEW_DIRECT);
    let runtime = ring_runtime().unwrap();
    runtime.block_on(many_pages(&storage));
    // Pages that came back are zero for who gets them next.
    let buffers: Vec<IoBuffer> = (0..512).map(|_| IoBuffer::for_requests(4096)).collect();
    assert!(buffers.iter().all(|buffer| buffer.iter().all(|&byte| byte == 0)));
}

#[test]
fn buffers_serve_on_rings_and_threads_that_they_were_not_made_for() {
    let (storage, _scratch) = uring_with(&vec![0; 2 << 20], NEW_DIRECT);
    let own = ring_runtime().unwrap();
    // A ring of this thread that knows nothing of its memory, and a second one that does.
    compio::runtime::Runtime::new().unwrap().block_on(many_pages(&storage));
    ring_runtime().unwrap().block_on(many_pages(&storage));
    own.block_on(many_pages(&storage));
    let buffers: Vec<IoBuffer> = (0..300).map(|_| IoBuffer::for_requests(4096)).collect();
    let storage = &storage;
    std::thread::scope(|scope| {
        scope.spawn(move || {
            wait(async {
                for (page, mut buffer) in buffers.into_iter().enumerate() {
                    buffer.fill(7);
                    let place = at(page as u64 * 4096);
                    let (result, buffer) = storage.write(place, buffer, Purpose::GuestData).await;
                    result.unwrap();
                    let (result, buffer) = storage.read(place, buffer, Purpose::GuestData).await;
                    assert_eq!(result.unwrap(), bytes(4096));
                    assert!(buffer.iter().all(|&byte| byte == 7));
                }
            });
        });
    });
    // They are free again, whoever dropped them.
    own.block_on(many_pages(storage));
}
