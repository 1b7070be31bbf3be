//! Kernel file systems on a loop device on the mounted file.

use std::path::{Path, PathBuf};

use cowl_fuse::Caching;

use crate::program::{can_loop, run, try_run};
use crate::serving::{How, Serving};

const SIZE: u64 = 512 << 20;

/// A loop device; goes when it is dropped, also by a test that fails.
struct Loop {
    device: String,
}

impl Loop {
    fn new(file: &Path, direct: &str) -> Self {
        let direct = format!("--direct-io={direct}");
        let device = run("losetup", &["-f", "--show", &direct, file.to_str().unwrap()]);
        Self { device: device.trim().to_owned() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        try_run("losetup", &["-d", &self.device]);
    }
}

/// A mounted file system; unmounted when it is dropped.
struct Mounted {
    at: PathBuf,
}

impl Mounted {
    fn new(device: &Loop, at: &Path) -> Self {
        run("mount", &[&device.device, at.to_str().unwrap()]);
        Self { at: at.to_owned() }
    }

    fn unmount(self) {
        run("umount", &[self.at.to_str().unwrap()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        try_run("umount", &["-q", self.at.to_str().unwrap()]);
    }
}

struct FileSystem {
    make: &'static [&'static str],
    check: &'static [&'static str],
}

const EXT4: FileSystem = FileSystem { make: &["mkfs.ext4", "-q"], check: &["e2fsck", "-fn"] };
const XFS: FileSystem = FileSystem { make: &["mkfs.xfs", "-q"], check: &["xfs_repair", "-n"] };

/// Makes a file system, lets fio write and verify, mounts again and compares, trims, checks.
fn exercise(file_system: &FileSystem, direct: &str, how: How) {
    let programs = [file_system.make[0], file_system.check[0], "fio", "fstrim", "umount"];
    let Some(_alone) = can_loop(&programs) else { return };
    let serving = Serving::new_image(SIZE, how);
    let at = serving.folder().join("files");
    std::fs::create_dir(&at).unwrap();
    {
        let device = Loop::new(&serving.file, direct);
        let on_device = |command: &[&str]| {
            let arguments = [&command[1..], &[device.device.as_str()]].concat();
            run(command[0], &arguments);
        };
        on_device(file_system.make);
        let mounted = Mounted::new(&device, &at);
        let fio = [
            "--name=verify",
            &format!("--directory={}", at.display()),
            "--rw=randwrite",
            "--bs=4k",
            "--size=32m",
            "--ioengine=libaio",
            "--direct=1",
            "--iodepth=16",
            "--verify=crc32c",
            "--verify_fatal=1",
        ];
        run("fio", &fio);
        let mut random = cowl_testkit::Random::new(5);
        let bytes: Vec<u8> = (0..1 << 20).flat_map(|_| random.number().to_le_bytes()).collect();
        std::fs::write(at.join("random"), &bytes).unwrap();
        run("sync", &["-f", at.to_str().unwrap()]);
        mounted.unmount();
        run("blockdev", &["--flushbufs", &device.device]);
        let mounted = Mounted::new(&device, &at);
        assert!(std::fs::read(at.join("random")).unwrap() == bytes);
        std::fs::remove_file(at.join("random")).unwrap();
        run("sync", &["-f", at.to_str().unwrap()]);
        run("fstrim", &[at.to_str().unwrap()]);
        mounted.unmount();
        on_device(file_system.check);
    }
    let folder = serving.finish();
    // Trimmed bytes went back to the host.
    let length = std::fs::metadata(folder.path().join("disk.qcow2")).unwrap();
    let allocated = std::os::unix::fs::MetadataExt::blocks(&length) * 512;
    assert!(allocated < SIZE / 2, "{allocated}");
}

#[test]
fn ext4_on_a_loop_device_keeps_everything() {
    exercise(&EXT4, "off", How::PLAIN);
}

#[test]
fn ext4_on_a_direct_loop_device_keeps_everything() {
    exercise(&EXT4, "on", How::PLAIN);
}

#[test]
fn xfs_on_a_loop_device_keeps_everything() {
    exercise(&XFS, "off", How::PLAIN);
}

#[test]
fn xfs_on_a_direct_loop_device_keeps_everything() {
    exercise(&XFS, "on", How::PLAIN);
}

#[test]
fn ext4_on_a_direct_loop_device_keeps_everything_without_the_page_cache() {
    exercise(&EXT4, "on", How { caching: Caching::Direct, ..How::PLAIN });
}

#[test]
fn xfs_on_a_loop_device_keeps_everything_without_the_page_cache() {
    exercise(&XFS, "off", How { caching: Caching::Direct, ..How::PLAIN });
}
