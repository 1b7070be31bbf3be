//! What a closed file leaves behind. In a process of its own that starts no program: a child has
//! all locks between fork and exec.
#![allow(clippy::unwrap_used, reason = "a test fails by panic")]

use cowl_format::HostOffset;
use cowl_storage::{FileOptions, IoBuffer, LockMode, Purpose, Storage, UringStorage, Writeback};

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
