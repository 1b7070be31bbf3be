//! A guest kernel on a qcow2 image: what it writes is there after a reboot, and a server that is
//! killed under it is replaced without an error.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use compio::runtime::Runtime;
use cowl::{Access, Disk, FileOptions, FileStorage, OpenOptions, StorageError, StorageOpener};
use cowl_storage::UringStorage;
use cowl_vhost_user::{Export, Listener, Server, ServerOptions};
use tempfile::TempDir;

use crate::guest::Kit;

/// Where a process finds out that it is to serve: image and socket.
const IMAGE: &str = "COWL_TEST_SERVE_IMAGE";
const SOCKET: &str = "COWL_TEST_SERVE_SOCKET";

struct Ring;

impl StorageOpener for Ring {
    type Storage = UringStorage;

    fn open(&self, path: &Path, options: FileOptions) -> Result<UringStorage, StorageError> {
        Ok(FileStorage::open(path, options)?.into())
    }
}

/// Serves an image until the process is killed. Not a test by itself: the tests below start it as a
/// process of its own, because what they kill must not be theirs.
#[test]
#[ignore = "the other tests start it"]
fn serve_until_killed() {
    let (image, socket) = (std::env::var_os(IMAGE).unwrap(), std::env::var_os(SOCKET).unwrap());
    let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::local() };
    let open = Disk::open_with(&Ring, image.as_ref(), &options);
    let disk = Arc::new(Runtime::new().unwrap().block_on(open).unwrap());
    let export = Export::new(disk, Listener::bind(socket.as_ref()).unwrap());
    let server = Server::new([export], ServerOptions { threads: 2 }).unwrap();
    let run = || {
        let server = server.clone();
        std::thread::spawn(move || Runtime::new().unwrap().block_on(server.run()))
    };
    for thread in [run(), run()] {
        thread.join().unwrap().unwrap();
    }
}

/// A server in a process of its own.
struct ServerProcess(Child);

impl ServerProcess {
    fn start(image: &Path, socket: &Path) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "booting::serve_until_killed"])
            .env(IMAGE, image)
            .env(SOCKET, socket)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        Self(child)
    }

    /// As kill -9 does it.
    fn kill(mut self) {
        self.0.kill().unwrap();
        let _killed = self.0.wait().unwrap();
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// An image and the place of a socket.
fn image() -> Option<(TempDir, PathBuf, PathBuf)> {
    if !cowl_testkit::is_available() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let create = ["create", "-f", "qcow2", "disk.qcow2", "256M"];
    let _created = cowl_testkit::run(cowl_testkit::Tool::Img, folder.path(), &create)
        .expect_success("qemu-img create");
    let (image, socket) = (folder.path().join("disk.qcow2"), folder.path().join("socket"));
    Some((folder, image, socket))
}

fn check_image(folder: &Path) {
    let check = ["check", "-f", "qcow2", "disk.qcow2"];
    let output = cowl_testkit::run(cowl_testkit::Tool::Img, folder, &check);
    // What a killed server leaves are leaks at most (3).
    assert!([0, 3].contains(&output.code), "{} {}", output.stdout, output.stderr);
}

/// Makes a file system and 16 files of random bytes with their sums, from two processors at once.
const WRITE: &str = r#"
[ "$(ls -d /sys/block/vda/mq/* | wc -l)" = 2 ]
mkfs.ext4 -q -F /dev/vda
mount -t ext4 /dev/vda /mnt
fill() { for i in 1 2 3 4 5 6 7 8; do
  dd if=/dev/urandom of=/mnt/$1-$i bs=64k count=16 2>/dev/null
  [ $((i % 3)) = 0 ] && sync; sha256sum /mnt/$1-$i >> /mnt/sums-$1; echo "WROTE $1-$i"; done; }
fill a & first=$!; fill b; wait $first
sync; umount /mnt
echo 3 > /proc/sys/vm/drop_caches
"#;

const READ: &str = r#"
mount -t ext4 /dev/vda /mnt
cat /mnt/sums-a /mnt/sums-b | wc -l
[ "$(cat /mnt/sums-a /mnt/sums-b | wc -l)" = 16 ]
sha256sum -c /mnt/sums-a /mnt/sums-b
rm /mnt/a-*; sync; fstrim -v /mnt
umount /mnt
"#;

#[test]
fn a_guest_finds_after_a_reboot_what_it_wrote() {
    let (Some(kit), Some((folder, image, socket))) = (Kit::find(), image()) else { return };
    let server = ServerProcess::start(&image, &socket);
    kit.start(folder.path(), &socket, WRITE).finish();
    // The same server, another front-end.
    kit.start(folder.path(), &socket, READ).finish();
    server.kill();
    check_image(folder.path());
}

#[test]
fn a_server_killed_under_a_guest_is_replaced_without_an_error() {
    let (Some(kit), Some((folder, image, socket))) = (Kit::find(), image()) else { return };
    let mut server = ServerProcess::start(&image, &socket);
    let mut machine = kit.start(folder.path(), &socket, WRITE);
    for mark in ["WROTE b-2", "WROTE b-5", "WROTE b-7"] {
        let _line = machine.await_line(mark);
        server.kill();
        server = ServerProcess::start(&image, &socket);
    }
    machine.finish();
    kit.start(folder.path(), &socket, READ).finish();
    server.kill();
    check_image(folder.path());
}
