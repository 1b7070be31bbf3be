//! `mount`: files in images, images as files, and how both end.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test that cannot go on has failed, and a skip is printed"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use cowl_testkit::Output;
use tempfile::TempDir;

fn run(program: &str, arguments: &[&str]) -> Output {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new(program);
    Output::of(command.args(arguments).env("PATH", format!("{path}:/usr/sbin:/sbin")))
}

fn run_well(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments);
    assert_eq!(output.code, 0, "{program} {arguments:?}: {output:?}");
    output.stdout
}

fn is_installed(program: &str) -> bool {
    let found = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"]
        .iter()
        .any(|folder| Path::new(folder).join(program).is_file());
    let required = std::env::var_os("COWL_REQUIRE_ORACLE").is_some_and(|value| value == "1");
    assert!(found || !required, "COWL_REQUIRE_ORACLE=1 but {program} is missing");
    if !found {
        eprintln!("SKIPPED: {program} is not installed");
    }
    found
}

fn can_mount() -> bool {
    if !cowl_testkit::is_available() {
        return false;
    }
    if let Err(error) = fs::File::options().read(true).write(true).open("/dev/fuse") {
        eprintln!("SKIPPED: /dev/fuse: {error}");
        return false;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: only root mounts file systems");
        return false;
    }
    true
}

fn can_loop(programs: &[&str]) -> bool {
    if !can_mount() {
        return false;
    }
    if !Path::new("/dev/loop-control").exists() {
        eprintln!("SKIPPED: there is no /dev/loop-control");
        return false;
    }
    programs.iter().all(|program| is_installed(program))
}

/// A folder with an image and a mount point, unmounted when it is dropped.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("mnt")).unwrap();
        let place = Self { folder };
        run_well("qemu-img", &["create", "-f", "qcow2", &place.text("disk.qcow2"), "256M"]);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    fn mount(&self, options: &[&str]) -> Output {
        let operands = [self.text("disk.qcow2"), self.text("mnt")];
        let operands: Vec<&str> = operands.iter().map(String::as_str).collect();
        run(env!("CARGO_BIN_EXE_cowl"), &[&["mount"], options, &operands].concat())
    }

    fn unmount(&self) -> Output {
        run(env!("CARGO_BIN_EXE_cowl"), &["mount", "--unmount", &self.text("mnt")])
    }

    /// Makes a file system on the disk, through the disk as a file.
    fn format(&self, make: &[&str]) {
        let mounted = self.mount(&["--fuse-only"]);
        assert_eq!((mounted.code, mounted.stderr.as_str()), (0, ""));
        let disk = self.text("mnt/disk.qcow2");
        run_well(make[0], &[&make[1..], &[disk.as_str()]].concat());
        let unmounted = self.unmount();
        assert_eq!((unmounted.code, unmounted.stderr.as_str()), (0, ""));
    }

    fn check(&self) {
        run_well("qemu-img", &["check", &self.text("disk.qcow2")]);
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(self.folder.path().to_str().unwrap()), "{mounts}");
    }

    /// Waits until nobody has the image open for writing.
    fn wait_until_closed(&self) {
        let disk = self.text("disk.qcow2");
        for _ in 0..2000 {
            let tried = run("qemu-io", &["-f", "qcow2", "-c", "flush", &disk]);
            if tried.code == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the image was not closed in 20 seconds");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if mounts.contains(self.folder.path().to_str().unwrap_or("?")) {
            run("umount", &["--lazy", &self.text("mnt")]);
        }
    }
}

/// A command in the foreground, ended when the test fails.
struct Foreground {
    child: Child,
}

impl Drop for Foreground {
    fn drop(&mut self) {
        run("kill", &[&self.child.id().to_string()]);
        self.child.wait().ok();
    }
}

#[test]
fn files_written_to_a_mounted_image_are_there_the_next_time() {
    if !can_loop(&["losetup", "mount", "mkfs.ext4", "e2fsck"]) {
        return;
    }
    let place = Place::new();
    place.format(&["mkfs.ext4", "-q", "-F"]);
    let mounted = place.mount(&[]);
    assert_eq!((mounted.code, mounted.stdout.as_str(), mounted.stderr.as_str()), (0, "", ""));
    fs::write(place.path("mnt/hello"), vec![7; 3 << 20]).unwrap();
    let unmounted = place.unmount();
    assert_eq!((unmounted.code, unmounted.stderr.as_str()), (0, ""));
    place.check();
    let mounted = place.mount(&["-r", "-t", "ext4", "-o", "noexec"]);
    assert_eq!((mounted.code, mounted.stderr.as_str()), (0, ""));
    assert_eq!(fs::read(place.path("mnt/hello")).unwrap(), vec![7; 3 << 20]);
    let refused = fs::write(place.path("mnt/new"), b"x").unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(30));
    // Somebody who knows nothing of this command.
    run_well("umount", &[&place.text("mnt")]);
    place.wait_until_closed();
    place.check();
    assert_eq!(place.unmount().code, 1);
}

#[test]
fn a_partition_is_mounted_by_its_number() {
    if !can_loop(&["losetup", "mount", "mkfs.ext4", "sfdisk"]) {
        return;
    }
    let place = Place::new();
    let mounted = place.mount(&["--fuse-only"]);
    assert_eq!((mounted.code, mounted.stderr.as_str()), (0, ""));
    let disk = place.text("mnt/disk.qcow2");
    let script = format!("printf ',64M\\n,64M\\n' | sfdisk --quiet --no-reread {disk}");
    run_well("sh", &["-c", &script]);
    let offset = (1 + 64) << 20;
    let make = format!("offset={offset}");
    run_well("mkfs.ext4", &["-q", "-F", "-E", &make, &disk, "60M"]);
    assert_eq!(place.unmount().code, 0);
    let missing = place.mount(&["--partition", "7"]);
    assert_eq!((missing.code, missing.stderr.as_str()), (1, "cowl: The disk has no partition 7\n"));
    let mounted = place.mount(&["--partition", "2"]);
    assert_eq!((mounted.code, mounted.stderr.as_str()), (0, ""));
    fs::write(place.path("mnt/file"), b"in the second").unwrap();
    assert_eq!(place.unmount().code, 0);
    place.check();
}

#[test]
fn what_is_in_use_stays_mounted() {
    if !can_loop(&["losetup", "mount", "mkfs.ext4"]) {
        return;
    }
    let place = Place::new();
    place.format(&["mkfs.ext4", "-q", "-F"]);
    assert_eq!(place.mount(&[]).code, 0);
    let file = fs::File::create(place.path("mnt/open")).unwrap();
    let refused = place.unmount();
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("busy"), "{refused:?}");
    file.set_len(12_345).unwrap();
    drop(file);
    assert_eq!(place.unmount().code, 0);
    place.check();
    assert_eq!(place.mount(&["--fuse-only"]).code, 0);
    let file = fs::File::open(place.path("mnt/disk.qcow2")).unwrap();
    let refused = place.unmount();
    assert_eq!(refused.code, 1);
    assert!(refused.stderr.contains("is in use"), "{refused:?}");
    drop(file);
    place.wait_until_unused();
    place.check();
}

impl Place {
    /// Unmounts what is in use for a moment more.
    fn wait_until_unused(&self) {
        for _ in 0..500 {
            if self.unmount().code == 0 {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the file stays in use");
    }
}

#[test]
fn what_cannot_be_mounted_is_said_and_undone() {
    if !can_loop(&["losetup", "mount"]) {
        return;
    }
    let place = Place::new();
    let failed = place.mount(&["-t", "ext4"]);
    assert_eq!(failed.code, 1);
    assert!(failed.stderr.contains("mount failed: "), "{failed:?}");
    place.wait_until_closed();
    place.check();
    let missing = run(env!("CARGO_BIN_EXE_cowl"), &["mount", "nowhere", &place.text("mnt")]);
    assert_eq!(missing.code, 1);
    assert!(missing.stderr.contains("nowhere"), "{missing:?}");
    let unmounted = place.unmount();
    assert_eq!(unmounted.code, 1);
    assert!(unmounted.stderr.contains("Nothing is mounted at"), "{unmounted:?}");
}

#[test]
fn a_signal_ends_the_foreground_cleanly() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let child = Command::new(env!("CARGO_BIN_EXE_cowl"))
        .args(["mount", "--foreground", "--fuse-only", "disk.qcow2", "mnt"])
        .current_dir(place.folder.path())
        .spawn()
        .unwrap();
    let mut foreground = Foreground { child };
    let file = place.path("mnt/disk.qcow2");
    for _ in 0..1000 {
        if file.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    fs::File::options().write(true).open(&file).unwrap().set_len(256 << 20).unwrap();
    run_well("dd", &["if=/dev/urandom", &format!("of={}", file.display()), "bs=1M", "count=9"]);
    run_well("kill", &["-TERM", &foreground.child.id().to_string()]);
    assert_eq!(foreground.child.wait().unwrap().code(), Some(0));
    place.check();
}

#[test]
fn what_a_killed_process_left_is_unmounted() {
    if !can_loop(&["losetup", "mount", "mkfs.ext4"]) {
        return;
    }
    for options in [&["--fuse-only"][..], &[]] {
        let place = Place::new();
        place.format(&["mkfs.ext4", "-q", "-F"]);
        assert_eq!(place.mount(options).code, 0);
        let target = fs::canonicalize(place.folder.path()).unwrap().join("mnt");
        let is_ours = |folder: &fs::DirEntry| {
            fs::read_to_string(folder.path().join("target"))
                .is_ok_and(|text| Path::new(&text) == target)
        };
        let mut folders = fs::read_dir("/run/cowl/mounts").unwrap().flatten();
        let folder = folders.find(is_ours).unwrap();
        run_well("kill", &["-KILL", folder.file_name().to_str().unwrap()]);
        place.wait_until_closed();
        let unmounted = place.unmount();
        assert_eq!(unmounted.code, 1);
        assert!(unmounted.stderr.contains("without closing the image"), "{unmounted:?}");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(place.folder.path().to_str().unwrap()), "{mounts}");
        assert!(!folder.path().exists());
    }
}
