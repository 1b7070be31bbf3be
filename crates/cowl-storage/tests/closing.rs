//! What a closed file leaves behind. In a process of its own that starts no program: a child has
//! all locks between fork and exec.
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

#[path = "storage/locking.rs"]
mod locking;

use cowl_format::HostOffset;
use cowl_storage::{
    FileOptions, FileStorage, IoBuffer, LockMode, Purpose, Storage, UringStorage, Writeback,
};

use crate::locking::{conflict, outcome};

async fn write(storage: &UringStorage, at: u64, bytes: &[u8]) {
    let buffer = IoBuffer::from_slice(bytes);
    storage.write(HostOffset::new(at), buffer, Purpose::GuestData).await.0.unwrap();
}

#[test]
fn a_file_is_nobodys_once_it_is_closed_although_its_bytes_were_on_their_way_to_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let options = FileOptions {
        lock: LockMode::ReadWrite,
        writeback: Writeback::Early,
        ..FileOptions::create()
    };
    compio::runtime::Runtime::new().unwrap().block_on(async {
        for round in 1_u8..30 {
            let storage = UringStorage::open(&path, options).unwrap();
            // Pages that go to the cache at once, and longer ones through the ring.
            for place in 0..300 {
                write(&storage, place << 16, &[round; 64 << 10]).await;
            }
            write(&storage, 300 << 16, &vec![round; 20 << 20]).await;
            if round % 2 == 0 {
                storage.barrier(Purpose::Barrier).await.unwrap();
            }
            let (at, buffer) = (HostOffset::new(299 << 16), IoBuffer::zeroed(2 << 16));
            let (result, found) = storage.read(at, buffer, Purpose::GuestData).await;
            result.unwrap();
            assert!(found.iter().all(|byte| *byte == round), "round {round}");
        }
    });
}

#[test]
fn two_writers_in_one_process_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    let first = FileStorage::open(&path, FileOptions::create()).unwrap();
    let error = FileStorage::open(&path, FileOptions::read_write()).unwrap_err();
    let conflict = conflict(&error);
    assert_eq!(conflict.holders.len(), 1);
    assert!(conflict.holders[0].is_self);
    drop(first);
    FileStorage::open(&path, FileOptions::read_write()).unwrap();
}

#[test]
fn a_lock_that_cannot_be_raised_stays_what_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, b"content").unwrap();
    let options = FileOptions { lock: LockMode::ReadOnly, ..FileOptions::read_write() };
    let first = FileStorage::open(&path, options).unwrap();
    let second = FileStorage::open(&path, options).unwrap();
    assert!(first.change_lock(LockMode::ReadWrite).is_err());
    // A half-raised lock would keep this one out.
    drop(locking::open(&path, LockMode::ReadOnly).unwrap());
    drop(second);
    first.change_lock(LockMode::ReadWrite).unwrap();
    let refused = outcome(&path, LockMode::ReadOnly);
    assert_eq!(refused.as_deref(), Some("Failed to get shared \"write\" lock"));
    first.change_lock(LockMode::None).unwrap();
    assert_eq!(outcome(&path, LockMode::ReadWrite), None);
}
