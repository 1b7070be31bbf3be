//! Many requests under way at a time on one thread, which take a way of their own to the kernel.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use cowl_format::HostOffset;
use cowl_storage::{IoBuffer, Purpose, Storage, UringStorage, ring_runtime};
use futures_util::future::join_all;

use crate::common::{NEW, NEW_DIRECT, at, bytes, scratch};

const BLOCK: usize = 4096;
const DEPTH: u64 = 64;

fn block(number: u64) -> HostOffset {
    at(number * BLOCK as u64)
}

async fn write_block(storage: &UringStorage, number: u64, mark: u8) {
    let mut buffer = IoBuffer::for_requests(BLOCK);
    buffer.fill(mark);
    storage.write(block(number), buffer, Purpose::GuestData).await.0.unwrap();
}

async fn read_block(storage: &UringStorage, number: u64) -> u8 {
    let buffer = IoBuffer::for_requests(BLOCK);
    let (result, buffer) = storage.read(block(number), buffer, Purpose::GuestData).await;
    assert_eq!(result.unwrap(), bytes(BLOCK as u64));
    assert!(buffer.iter().all(|byte| *byte == buffer[0]), "block {number} is of two writes");
    buffer[0]
}

fn mark(number: u64, round: u64) -> u8 {
    u8::try_from((number * 7 + round * 13) % 251).unwrap()
}

/// Fills the blocks with `mark`, and lets the queue see that there are many requests.
async fn warm_up(storage: &UringStorage, mark: u8) {
    join_all((0..DEPTH).map(|number| write_block(storage, number, mark))).await;
    for _ in 0..4 {
        join_all((0..DEPTH).map(|number| read_block(storage, number))).await;
    }
}

#[test]
fn each_of_many_reads_and_writes_moves_its_own_bytes() {
    for options in [NEW, NEW_DIRECT] {
        let scratch = scratch();
        let storage = Rc::new(UringStorage::open(&scratch.path, options).unwrap());
        ring_runtime().unwrap().block_on(async {
            let tasks = (0..DEPTH).map(|number| {
                let storage = Rc::clone(&storage);
                compio::runtime::spawn(async move {
                    for round in 0..40 {
                        write_block(&storage, number, mark(number, round)).await;
                        assert_eq!(read_block(&storage, number).await, mark(number, round));
                    }
                })
            });
            for task in tasks.collect::<Vec<_>>() {
                task.await.unwrap();
            }
            storage.barrier(Purpose::Barrier).await.unwrap();
        });
        let content = std::fs::read(&scratch.path).unwrap();
        for (number, block) in (0..).zip(content.chunks(BLOCK)) {
            assert!(block.iter().all(|byte| *byte == mark(number, 39)), "block {number}");
        }
    }
}

type Request<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// Polls each once, so that it is under way.
fn start<'a>(requests: impl Iterator<Item = Request<'a>>) -> Vec<Request<'a>> {
    let started = requests.map(|mut request| {
        let pending = request.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending();
        (pending, request)
    });
    started.filter_map(|(is_pending, request)| is_pending.then_some(request)).collect()
}

#[test]
fn dropped_transfers_are_carried_out_and_settle_waits_for_them() {
    let scratch = scratch();
    let storage = UringStorage::open(&scratch.path, NEW_DIRECT).unwrap();
    ring_runtime().unwrap().block_on(async {
        warm_up(&storage, 1).await;
        for round in 0..30 {
            let storage = &storage;
            let writes = (0..DEPTH).map(|number| {
                Box::pin(write_block(storage, number, mark(number, round))) as Request<'_>
            });
            let started = start(writes);
            assert!(!started.is_empty());
            drop(started);
            storage.settle().await;
            let found = join_all((0..DEPTH).map(|number| read_block(storage, number))).await;
            assert!((0..).zip(found).all(|(number, found)| found == mark(number, round)));
        }
    });
}

#[test]
fn memory_of_dropped_reads_is_not_written_to_by_the_kernel_later() {
    let scratch = scratch();
    let storage = UringStorage::open(&scratch.path, NEW_DIRECT).unwrap();
    ring_runtime().unwrap().block_on(async {
        warm_up(&storage, 7).await;
        for _ in 0..50 {
            let reads = (0..DEPTH).map(|number| {
                let storage = &storage;
                Box::pin(async move { assert_eq!(read_block(storage, number).await, 7) })
                    as Request<'_>
            });
            drop(start(reads));
            // Memory that was given back too early would be handed out here.
            let canaries: Vec<_> = (0..2 * DEPTH).map(|_| IoBuffer::for_requests(BLOCK)).collect();
            join_all((0..DEPTH).map(|number| read_block(&storage, number))).await;
            assert!(canaries.iter().all(|canary| canary.iter().all(|byte| *byte == 0)));
        }
    });
}

#[test]
fn a_runtime_ends_after_the_transfers_that_it_began() {
    let scratch = scratch();
    let storage = UringStorage::open(&scratch.path, NEW_DIRECT).unwrap();
    for round in 1..20 {
        let runtime = ring_runtime().unwrap();
        // Kept beyond the runtime, on purpose.
        let started = runtime.block_on(async {
            warm_up(&storage, 0).await;
            let storage = &storage;
            start((0..DEPTH).map(|number| {
                Box::pin(write_block(storage, number, mark(number, round))) as Request<'_>
            }))
        });
        assert!(!started.is_empty());
        drop(runtime);
        let content = std::fs::read(&scratch.path).unwrap();
        drop(started);
        for (number, block) in (0..).zip(content.chunks(BLOCK)) {
            assert!(block.iter().all(|byte| *byte == mark(number, round)), "block {number}");
        }
    }
}

#[test]
fn errors_of_many_requests_are_those_of_one() {
    let scratch = scratch();
    let storage = UringStorage::open(&scratch.path, NEW_DIRECT).unwrap();
    let read_only = cowl_storage::FileOptions {
        caching: NEW_DIRECT.caching,
        lock: cowl_storage::LockMode::None,
        ..cowl_storage::FileOptions::read_only()
    };
    let unwritable = UringStorage::open(&scratch.path, read_only).unwrap();
    ring_runtime().unwrap().block_on(async {
        warm_up(&storage, 7).await;
        let writes = (0..DEPTH).map(|number| {
            let buffer = IoBuffer::zeroed(BLOCK);
            unwritable.write(block(number), buffer, Purpose::GuestData)
        });
        for (result, buffer) in join_all(writes).await {
            assert_eq!((result.unwrap_err().errno(), buffer.len()), (9, BLOCK));
        }
        // Behind the end: what is there, and zeros.
        let reads = (0..DEPTH).map(|number| {
            let mut buffer = IoBuffer::zeroed(2 * BLOCK);
            buffer.fill(9);
            storage.read(block(DEPTH - 1 + number), buffer, Purpose::GuestData)
        });
        for (number, (result, buffer)) in join_all(reads).await.into_iter().enumerate() {
            let there = if number == 0 { BLOCK } else { 0 };
            assert_eq!(result.unwrap(), bytes(there as u64));
            assert!(buffer[there..].iter().all(|byte| *byte == 0));
        }
    });
}
