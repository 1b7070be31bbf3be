//! Our client as a storage, on our server and on qemu-nbd.

use std::path::Path;

use cowl::{
    ByteCount, Disk, FileOptions, Follow, HostOffset, OpenOptions, StorageError, StorageOpener,
};
use cowl_nbd::{NbdStorage, NbdUri};
use cowl_storage::{Allocation, IoBuffer, Operation, Purpose, Storage, ZeroMode};
use pollster::block_on;

use crate::qemu_nbd::QemuNbd;
use crate::serving::{Serving, client, sample_raw};
use cowl_testkit::are_installed;

const MIB: u64 = 1 << 20;
const DATA: Purpose = Purpose::GuestData;

fn connect(uri: &str) -> NbdStorage {
    NbdStorage::connect(&NbdUri::parse(uri).unwrap(), Path::new(uri)).unwrap()
}

fn write(storage: &NbdStorage, at: u64, bytes: &[u8]) {
    let (outcome, buffer) =
        block_on(storage.write(HostOffset::new(at), IoBuffer::from_slice(bytes), DATA));
    outcome.unwrap();
    assert_eq!(&buffer[..], bytes);
}

fn read(storage: &NbdStorage, at: u64, length: usize) -> (u64, Vec<u8>) {
    let mut buffer = IoBuffer::zeroed(length);
    buffer.fill(0xee);
    let (outcome, buffer) = block_on(storage.read(HostOffset::new(at), buffer, DATA));
    (outcome.unwrap().get(), buffer.to_vec())
}

/// Everything that a storage does, on an empty export of 64 MiB.
fn exercise(storage: &NbdStorage) {
    let size = 64 * MIB;
    assert_eq!(block_on(storage.len()).unwrap().get(), size);
    write(storage, 12_345, &[7; 100_000]);
    assert_eq!(read(storage, 12_345, 100_000), (100_000, vec![7; 100_000]));
    // More than one request takes.
    write(storage, 2 * MIB, &[9; 40 << 20]);
    let (count, bytes) = read(storage, MIB, 50 << 20);
    assert_eq!(count, 50 << 20);
    assert!(bytes[..1 << 20].iter().all(|&byte| byte == 0));
    assert!(bytes[1 << 20..41 << 20].iter().all(|&byte| byte == 9));
    assert!(bytes[41 << 20..].iter().all(|&byte| byte == 0));
    // The end: reads stop there, writes fail.
    assert_eq!(read(storage, size - 512, 1024), (512, vec![0; 1024]));
    let past = storage.write(HostOffset::new(size - 1), IoBuffer::zeroed(2), DATA);
    assert_eq!(block_on(past).0.unwrap_err().errno(), 28);
    let at = |at| HostOffset::new(at);
    let zero = storage.zero(at(2 * MIB), ByteCount::new(MIB), ZeroMode::MayUnmap, DATA);
    block_on(zero).unwrap();
    block_on(storage.discard(at(3 * MIB), ByteCount::new(MIB), DATA)).unwrap();
    let keep = storage.allocate(at(4 * MIB), ByteCount::new(MIB), Allocation::WriteZeros, DATA);
    block_on(keep).unwrap();
    assert!(read(storage, 2 * MIB, 3 << 20).1.iter().all(|&byte| byte == 0));
    assert!(block_on(storage.set_len(ByteCount::new(MIB), DATA)).is_err());
    block_on(storage.barrier(Purpose::Barrier)).unwrap();
    block_on(storage.settle());
    let extent = |from| block_on(storage.extent(at(from), ByteCount::new(size))).unwrap();
    assert!(extent(2 * MIB).unwrap().hole);
    assert!(!extent(6 * MIB).unwrap().hole);
    assert_eq!(extent(size), None);
}

#[test]
fn the_client_is_a_storage_on_our_server() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    exercise(&connect(&serving.uri("")));
    serving.finish();
}

#[test]
fn the_client_is_a_storage_on_qemu_nbd() {
    if !are_installed(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    client(folder.path(), "qemu-img", &["create", "-f", "qcow2", "disk.qcow2", "64M"]);
    let _server = QemuNbd::start(folder.path(), &["-f", "qcow2", "disk.qcow2"]);
    let socket = folder.path().join("qemu.socket");
    exercise(&connect(&format!("nbd+unix:///?socket={}", socket.display())));
}

#[test]
fn many_threads_share_one_connection() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    let storage = connect(&serving.uri(""));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let storage = &storage;
            scope.spawn(move || {
                for round in 0..200 {
                    let at = thread * 16 * MIB + round * 8192;
                    let bytes = [(thread * 50 + round % 50) as u8; 5000];
                    write(storage, at, &bytes);
                    assert_eq!(read(storage, at, 5000).1, bytes);
                }
            });
        }
    });
    drop(storage);
    serving.finish();
}

#[test]
fn a_server_that_goes_away_fails_what_is_under_way_and_what_follows() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    let storage = connect(&serving.uri(""));
    write(&storage, 0, &[1; 512]);
    serving.finish();
    let (outcome, buffer) =
        block_on(storage.write(HostOffset::ZERO, IoBuffer::from_slice(&[5; 512]), DATA));
    assert_eq!(outcome.unwrap_err().operation(), Operation::Write);
    assert_eq!(&buffer[..], [5; 512]);
    assert!(block_on(storage.barrier(Purpose::Barrier)).is_err());
}

/// Opens every path as the one export.
struct Remote(String);

impl StorageOpener for Remote {
    type Storage = NbdStorage;

    fn open(&self, _path: &Path, _options: FileOptions) -> Result<NbdStorage, StorageError> {
        Ok(connect(&self.0))
    }
}

#[test]
fn a_qcow2_image_is_read_from_a_server() {
    if !are_installed(&["qemu-nbd"]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let size = 40 * MIB;
    sample_raw(&folder.path().join("in.raw"), size);
    let convert = ["convert", "-c", "-f", "raw", "-O", "qcow2", "in.raw", "disk.qcow2"];
    client(folder.path(), "qemu-img", &convert);
    let _server = QemuNbd::start(folder.path(), &["-r", "-f", "raw", "disk.qcow2"]);
    let socket = folder.path().join("qemu.socket");
    let remote = Remote(format!("nbd+unix:///?socket={}", socket.display()));
    let options = OpenOptions { follow: Follow::Nothing, ..OpenOptions::local() };
    let disk = block_on(Disk::open_with(&remote, Path::new("remote"), &options)).unwrap();
    let mut bytes = vec![0; size as usize];
    block_on(disk.read_into(cowl::GuestOffset::ZERO, &mut bytes)).unwrap();
    assert!(bytes == std::fs::read(folder.path().join("in.raw")).unwrap());
}
