//! Block devices, over a loop device. Needs root and `losetup`; says so where they are missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Scratch, at, bytes, read, scratch, skip, wait, write};
use cowl_storage::{
    Allocation, Caching, FileOptions, FileStorage, LockMode, Purpose, Storage, UringStorage,
    ZeroMode,
};

const SIZE: u64 = 4 << 20;

/// A loop device over a file of sevens; gone when dropped.
struct LoopDevice {
    path: PathBuf,
    _backing: Scratch,
}

impl LoopDevice {
    fn attach() -> Option<Self> {
        let backing = scratch();
        std::fs::write(&backing.path, vec![7; usize::try_from(SIZE).unwrap()]).unwrap();
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&backing.path).output();
        match output {
            Ok(output) if output.status.success() => {
                let path = String::from_utf8(output.stdout).unwrap().trim_end().into();
                Some(Self { path, _backing: backing })
            }
            _ => {
                skip("no loop device to be had; block devices were NOT tested");
                None
            }
        }
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let detached = Command::new("losetup").arg("--detach").arg(&self.path).status();
        assert!(detached.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

fn options(caching: Caching) -> FileOptions {
    FileOptions { caching, lock: LockMode::None, ..FileOptions::read_write() }
}

async fn check<S: Storage>(storage: &S) {
    let purpose = Purpose::GuestData;
    assert_eq!(storage.len().await.unwrap(), bytes(SIZE));
    assert_eq!(storage.allocated().await.unwrap(), bytes(SIZE));
    // Holes are unknown: data to the end.
    let run = storage.extent(at(4096), bytes(u64::MAX)).await.unwrap().unwrap();
    assert_eq!((run.length, run.hole), (bytes(SIZE - 4096), false));

    let mut model = vec![7; 64 << 10];
    let mut zeros = |start: usize, length: usize| model[start..start + length].fill(0);
    zeros(0, 4096);
    zeros(5000, 10_000);
    zeros(20_001, 100);
    zeros(30_000, 5_000);
    for (start, length, mode) in [
        (0, 4096, ZeroMode::KeepAllocated),
        (5000, 10_000, ZeroMode::MayUnmap),
        (20_001, 100, ZeroMode::MayUnmap),
        (30_000, 5_000, ZeroMode::KeepAllocated),
    ] {
        storage.zero(at(start), bytes(length), mode, purpose).await.unwrap();
    }
    write(storage, 50_001, b"unaligned").await.unwrap();
    model[50_001..50_010].copy_from_slice(b"unaligned");
    let (found, count) = read(storage, 0, 64 << 10).await.unwrap();
    assert_eq!(count, 64 << 10);
    assert_eq!(found, model);

    // Zeros or what was there, nothing else.
    storage.discard(at(1 << 20), bytes(10_000), purpose).await.unwrap();
    let (found, _) = read(storage, 1 << 20, 12_000).await.unwrap();
    assert!(found[..10_000].iter().all(|byte| [0, 7].contains(byte)));
    assert_eq!(found[10_000..], [7; 2000]);

    storage.barrier(Purpose::Barrier).await.unwrap();
    check_the_end(storage).await;
}

async fn check_the_end<S: Storage>(storage: &S) {
    let purpose = Purpose::GuestData;
    let (found, count) = read(storage, SIZE - 1000, 4096).await.unwrap();
    assert_eq!(count, 1000);
    assert_eq!((&found[..1000], &found[1000..]), (&[7; 1000][..], &[0; 3096][..]));
    assert_eq!(write(storage, SIZE, &[1; 4096]).await.unwrap_err().errno(), 28);
    let mode = ZeroMode::KeepAllocated;
    assert!(storage.zero(at(SIZE), bytes(4096), mode, purpose).await.is_err());
    storage.discard(at(SIZE - 4096), bytes(1 << 30), purpose).await.unwrap();
    let reserve = |length| storage.allocate(at(0), bytes(length), Allocation::Reserve, purpose);
    reserve(SIZE).await.unwrap();
    assert_eq!(reserve(SIZE + 1).await.unwrap_err().errno(), 28);
    assert!(storage.set_len(bytes(SIZE * 2), Purpose::FileLength).await.is_err());
}

fn with_device(check: impl Fn(&Path)) {
    if let Some(device) = LoopDevice::attach() {
        check(&device.path);
    }
}

#[test]
fn a_block_device_is_read_written_zeroed_and_discarded_through_the_page_cache() {
    with_device(|path| {
        wait(check(&FileStorage::open(path, options(Caching::PageCache)).unwrap()));
    });
}

#[test]
fn a_block_device_is_read_written_zeroed_and_discarded_with_direct_io() {
    with_device(|path| {
        wait(check(&FileStorage::open(path, options(Caching::Direct)).unwrap()));
    });
}

#[test]
fn a_block_device_is_driven_by_a_ring() {
    for caching in [Caching::PageCache, Caching::Direct] {
        with_device(|path| {
            let storage = UringStorage::open(path, options(caching)).unwrap();
            compio::runtime::Runtime::new().unwrap().block_on(check(&storage));
        });
    }
}
