//! One thing at a time: sizes, permissions, holes, names.

use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};

use cowl_fuse::{Access, Caching, Sharing};
use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use rustix::io::Errno;

use crate::program::{are_installed, can_mount, is_root, try_run};
use crate::serving::{How, Place, Serving, new_image};

const MIB: u64 = 1 << 20;

#[test]
fn a_directory_has_the_file_and_nothing_else() {
    let Some(_alone) = can_mount() else { return };
    let serving = Serving::new_image(MIB, How { place: Place::InDirectory, ..How::PLAIN });
    let folder = serving.file.parent().unwrap();
    let names: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["disk.img"]);
    assert_eq!(fs::metadata(&serving.file).unwrap().len(), MIB);
    let missing = File::open(folder.join("other")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let refused = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    assert_eq!(refused(File::create(folder.join("new")).map(drop)), Some(1));
    assert_eq!(refused(fs::create_dir(folder.join("new"))), Some(1));
    assert_eq!(refused(fs::remove_file(&serving.file)), Some(1));
    assert_eq!(refused(fs::rename(&serving.file, folder.join("x"))), Some(1));
    assert_eq!(refused(fs::hard_link(&serving.file, folder.join("x"))), Some(1));
    serving.finish();
}

#[test]
fn a_file_of_fixed_size_is_a_disk() {
    let Some(_alone) = can_mount() else { return };
    for caching in [Caching::PageCache, Caching::Direct] {
        let serving = Serving::new_image(MIB, How { caching, ..How::PLAIN });
        let file = serving.open();
        file.write_all_at(&[7; 1000], 0).unwrap();
        assert_eq!(file.set_len(2 * MIB).unwrap_err().raw_os_error(), Some(1));
        assert_eq!(file.set_len(0).unwrap_err().raw_os_error(), Some(1));
        file.set_len(MIB).unwrap();
        assert_eq!(file.write_at(&[8; 100], MIB).unwrap_err().raw_os_error(), Some(28));
        assert_eq!(file.write_at(&[8; 100], MIB - 60).unwrap(), 60);
        assert_eq!(file.read_at(&mut [0; 100], MIB - 60).unwrap(), 60);
        assert_eq!(file.read_at(&mut [0; 100], MIB).unwrap(), 0);
        assert_eq!(file.read_at(&mut [0; 100], MIB * 1000).unwrap(), 0);
        assert_eq!(fallocate(&file, FallocateFlags::empty(), MIB, 512), Err(Errno::NOSPC));
        assert_eq!(fallocate(&file, FallocateFlags::ZERO_RANGE, MIB, 512), Err(Errno::NOSPC));
        // As a shell does it with `>`.
        drop(File::create(&serving.file).unwrap());
        let mut bytes = Vec::new();
        File::open(&serving.file).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, MIB);
        assert_eq!(bytes[..1000], [7; 1000]);
        assert_eq!(bytes[MIB as usize - 60..], [8; 60]);
        drop(file);
        serving.finish();
    }
}

#[test]
fn holes_are_told_and_punched_to_the_byte() {
    let Some(_alone) = can_mount() else { return };
    let serving = Serving::new_image(64 * MIB, How::PLAIN);
    let file = serving.open();
    assert_eq!(seek(&file, SeekFrom::Data(0)), Err(Errno::NXIO));
    assert_eq!(seek(&file, SeekFrom::Hole(5)), Ok(5));
    file.write_all_at(&[1; 3 << 20], 8 * MIB).unwrap();
    assert_eq!(seek(&file, SeekFrom::Data(0)), Ok(8 * MIB));
    assert_eq!(seek(&file, SeekFrom::Data(9 * MIB + 1)), Ok(9 * MIB + 1));
    assert_eq!(seek(&file, SeekFrom::Hole(9 * MIB)), Ok(11 * MIB));
    assert_eq!(seek(&file, SeekFrom::Data(11 * MIB)), Err(Errno::NXIO));
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, punch, 9 * MIB - 3, MIB + 7).unwrap();
    let mut around = [9; 5];
    file.read_exact_at(&mut around, 9 * MIB - 5).unwrap();
    assert_eq!(around, [1, 1, 0, 0, 0]);
    file.read_exact_at(&mut around, 10 * MIB + 2).unwrap();
    assert_eq!(around, [0, 0, 1, 1, 1]);
    assert_eq!(seek(&file, SeekFrom::Hole(8 * MIB)), Ok(9 * MIB));
    // Behind the end there is nothing to punch.
    fallocate(&file, punch, 100 * MIB, MIB).unwrap();
    for refused in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(fallocate(&file, refused, 0, MIB), Err(Errno::OPNOTSUPP));
    }
    drop(file);
    serving.finish();
}

#[test]
fn blocks_and_free_space_follow_what_is_allocated() {
    let Some(_alone) = can_mount() else { return };
    let serving = Serving::new_image(64 * MIB, How::PLAIN);
    let before = fs::metadata(&serving.file).unwrap();
    assert!(before.blocks() * 512 < 2 * MIB, "{}", before.blocks());
    let free = || rustix::fs::statfs(&serving.file).unwrap();
    let (all, free_before) = (free().f_blocks, free().f_bfree);
    assert_eq!(all * 4096, 64 * MIB);
    let file = serving.open();
    file.write_all_at(&vec![3; 16 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let after = file.metadata().unwrap();
    assert!(16 * MIB <= after.blocks() * 512, "{}", after.blocks());
    assert!(free().f_bfree + 4000 < free_before);
    drop(file);
    serving.finish();
}

#[test]
fn plain_allocation_is_promised_only_where_it_is_true() {
    let Some(_alone) = can_mount() else { return };
    let serving = Serving::new_image(8 * MIB, How::PLAIN);
    let file = serving.open();
    file.write_all_at(&[3; 1 << 20], 0).unwrap();
    for mode in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE] {
        assert_eq!(fallocate(&file, mode, 0, MIB), Ok(()));
        assert_eq!(fallocate(&file, mode, 0, 2 * MIB), Err(Errno::OPNOTSUPP));
    }
    drop(file);
    serving.finish();
}

#[test]
fn a_read_only_image_cannot_be_written() {
    let Some(_alone) = can_mount() else { return };
    let how = How { access: Access::ReadOnly, ..How::PLAIN };
    let serving = Serving::of_image(new_image(MIB), how);
    let metadata = fs::metadata(&serving.file).unwrap();
    assert_eq!(metadata.permissions().mode() & 0o7777, 0o400);
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    let denied = errno(File::options().write(true).open(&serving.file).map(drop));
    assert!([Some(13), Some(30)].contains(&denied), "{denied:?}");
    let denied = errno(fs::set_permissions(&serving.file, fs::Permissions::from_mode(0o644)));
    assert_eq!(denied, Some(30));
    let mut bytes = Vec::new();
    File::open(&serving.file).unwrap().read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, vec![0; MIB as usize]);
    serving.finish();
}

#[test]
fn permissions_owner_and_times_can_be_changed() {
    let Some(_alone) = can_mount() else { return };
    if !is_root() {
        return;
    }
    let serving = Serving::new_image(MIB, How { sharing: Sharing::Everyone, ..How::PLAIN });
    let path = &serving.file;
    assert_eq!(fs::metadata(path).unwrap().mode(), 0o100_600);
    fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(path, Some(1234), Some(5678)).unwrap();
    let file = serving.open();
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_000, 7);
    file.set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    let metadata = fs::metadata(path).unwrap();
    assert_eq!((metadata.mode(), metadata.uid(), metadata.gid()), (0o100_640, 1234, 5678));
    assert_eq!(metadata.modified().unwrap(), time);
    file.write_all_at(b"x", 0).unwrap();
    assert!(time < file.metadata().unwrap().modified().unwrap());
    drop(file);
    serving.finish();
    // Who shares with nobody keeps the file.
    let serving = Serving::new_image(MIB, How::PLAIN);
    let refused = std::os::unix::fs::chown(&serving.file, Some(1234), None).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(95));
    serving.finish();
}

#[test]
fn strangers_are_admitted_as_the_options_say() {
    let Some(_alone) = can_mount() else { return };
    if !is_root() || !are_installed(&["setpriv"]) {
        return;
    }
    for (sharing, is_admitted) in
        [(Sharing::Owner, false), (Sharing::OwnerAndRoot, false), (Sharing::Everyone, true)]
    {
        let serving = Serving::new_image(MIB, How { sharing, ..How::PLAIN });
        fs::set_permissions(serving.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::set_permissions(&serving.file, fs::Permissions::from_mode(0o644)).unwrap();
        let stranger = ["--reuid=65534", "--regid=65534", "--clear-groups", "cat"];
        let file = serving.file.to_str().unwrap();
        let read = try_run("setpriv", &[&stranger[..], &[file]].concat());
        assert_eq!(read.code == 0, is_admitted, "{sharing:?} {}", read.stderr);
        assert_eq!(fs::read(&serving.file).unwrap().len() as u64, MIB);
        serving.finish();
    }
}

#[test]
fn names_that_are_none_and_places_that_are_none_are_refused() {
    let Some(_alone) = can_mount() else { return };
    use cowl_block::{RawImage, RawOptions};
    use cowl_fuse::{Export, MountError, Options, Server, Sizing};
    let storage = cowl_storage::MemoryStorage::from_vec(vec![0; 4096]);
    let device = pollster_of(RawImage::open(storage, RawOptions::whole_file()));
    let device = std::sync::Arc::new(device);
    let mount = |name: &str, at: &str| {
        let export = Export {
            device: std::sync::Arc::clone(&device),
            name: name.to_owned(),
            access: Access::ReadWrite,
            sizing: Sizing::Fixed,
        };
        Server::new(export, at.as_ref(), Options::standard()).err()
    };
    for name in ["", "a/b", &"x".repeat(256)] {
        assert!(matches!(mount(name, "/tmp"), Some(MountError::Name { .. })), "{name}");
    }
    assert!(matches!(mount("x", "/nowhere"), Some(MountError::MountPoint { .. })));
    assert!(matches!(mount("x", "/dev/null"), Some(MountError::MountPointKind { .. })));
}

fn pollster_of<T, E: std::fmt::Debug>(work: impl Future<Output = Result<T, E>>) -> T {
    compio::runtime::Runtime::new().unwrap().block_on(work).unwrap()
}
