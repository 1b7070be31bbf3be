//! A guest kernel on a qcow2 image: what it writes is there after a reboot, and a server that is
//! killed under it is replaced without an error.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use compio::runtime::Runtime;
use cowl::{Access, Disk, Error, OpenOptions, Rings};
use cowl_storage::UringStorage;
use cowl_vhost_user::{Export, Listener, Server, ServerOptions};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::dying::Dying;
use crate::guest::Kit;

/// Where a process finds out that it is to serve: image, socket, and after how many writes it dies.
const IMAGE: &str = "COWL_TEST_SERVE_IMAGE";
const SOCKET: &str = "COWL_TEST_SERVE_SOCKET";
const WRITES: &str = "COWL_TEST_SERVE_WRITES";

/// For a server that does not die by itself.
const FOR_EVER: u64 = u64::MAX;

/// How long a server may take to begin, and to die.
const PATIENCE: Duration = Duration::from_secs(120);

/// Opens an image that a killed server may have had.
///
/// Its locks outlive a process by what it had in its ring: the kernel gives them back when the last
/// of these writes has ended. It must not be opened before, or such a write would overwrite what
/// this server writes.
fn open(image: &Path) -> Disk<UringStorage> {
    let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::local() };
    let runtime = Runtime::new().unwrap();
    let since = Instant::now();
    loop {
        match runtime.block_on(Disk::open_with(&Rings, image, &options)) {
            Err(Error::Storage(error))
                if error.lock_conflict().is_some() && since.elapsed() < PATIENCE =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            outcome => return outcome.unwrap(),
        }
    }
}

/// Serves an image until the process is killed. Not a test by itself: the tests below start it as a
/// process of its own, because what they kill must not be theirs.
#[test]
#[ignore = "the other tests start it"]
fn serve_until_killed() {
    let (image, socket) = (std::env::var_os(IMAGE).unwrap(), std::env::var_os(SOCKET).unwrap());
    let writes = std::env::var(WRITES).unwrap().parse().unwrap();
    let disk = Arc::new(Dying::after(writes, open(image.as_ref())));
    let export = Export::new(disk, Listener::bind(socket.as_ref()).unwrap());
    let server = Server::new([export], ServerOptions { threads: 2 }).unwrap();
    let run = || {
        let server = server.clone();
        std::thread::spawn(move || cowl_storage::ring_runtime().unwrap().block_on(server.run()))
    };
    for thread in [run(), run()] {
        thread.join().unwrap().unwrap();
    }
}

fn is_killed(status: ExitStatus) -> bool {
    status.signal() == Some(Signal::KILL.as_raw())
}

/// A server in a process of its own.
struct ServerProcess(Child);

impl ServerProcess {
    /// Returns once front-ends can connect, or it has died as it should.
    fn start(image: &Path, socket: &Path, writes: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "booting::serve_until_killed"])
            .env(IMAGE, image)
            .env(SOCKET, socket)
            .env(WRITES, writes.to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while std::os::unix::net::UnixStream::connect(socket).is_err() {
            match child.try_wait().unwrap() {
                Some(status) if is_killed(status) => break,
                Some(status) => panic!("the server ended before it served: {status}"),
                None => std::thread::sleep(Duration::from_millis(5)),
            }
        }
        Self(child)
    }

    /// Waits until it has died by itself.
    fn await_death(mut self) {
        let since = Instant::now();
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => break assert!(is_killed(status), "{status}"),
                None => assert!(since.elapsed() < PATIENCE, "the server has nothing to write"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
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

/// An image, created with `option`, and the place of a socket.
fn image(option: &str) -> Option<(TempDir, PathBuf, PathBuf)> {
    if !cowl_testkit::is_available() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let create = ["create", "-f", "qcow2", "-o", option, "disk.qcow2", "256M"];
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
/// The writes are small, so that many are in flight at a time; nothing is discarded, so that tables
/// which are complete stay it.
const WRITE: &str = r#"
[ "$(ls -d /sys/block/vda/mq/* | wc -l)" = 2 ]
echo 16 > /sys/block/vda/queue/max_sectors_kb
mkfs.ext4 -q -F -E nodiscard /dev/vda
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

/// An image without clusters.
const EMPTY: &str = "preallocation=off";

/// An image whose tables are complete: a write changes nothing but data.
const PREALLOCATED: &str = "preallocation=metadata";

#[test]
fn a_guest_finds_after_a_reboot_what_it_wrote() {
    let (Some(kit), Some((folder, image, socket))) = (Kit::find(), image(EMPTY)) else { return };
    let server = ServerProcess::start(&image, &socket, FOR_EVER);
    kit.start(folder.path(), &socket, WRITE).finish();
    // The same server, another front-end.
    kit.start(folder.path(), &socket, READ).finish();
    server.kill();
    check_image(folder.path());
}

/// Servers die one after another under a guest that writes, after it has done `before`.
fn check_survives(option: &str, before: &str) {
    let (Some(kit), Some((folder, image, socket))) = (Kit::find(), image(option)) else { return };
    let serve = |writes| ServerProcess::start(&image, &socket, writes);
    let server = serve(100);
    let machine = kit.start(folder.path(), &socket, &format!("{before}\n{WRITE}"));
    server.await_death();
    // Each of them left later writes answered and earlier ones not.
    for _ in 0..4 {
        serve(50).await_death();
    }
    // The machine connects every 100 ms, so some of these die while they take over.
    for pause in [0, 50, 80, 100, 120] {
        let server = serve(FOR_EVER);
        std::thread::sleep(Duration::from_millis(pause));
        server.kill();
    }
    let server = serve(FOR_EVER);
    machine.finish();
    kit.start(folder.path(), &socket, READ).finish();
    server.kill();
    check_image(folder.path());
}

#[test]
fn a_server_killed_under_a_guest_is_replaced_without_an_error() {
    check_survives(PREALLOCATED, "");
}

/// Tables that change with a write are in the file before the guest is told that it is done.
#[test]
fn a_server_killed_under_a_guest_that_fills_an_empty_image_leaves_what_it_answered() {
    check_survives(EMPTY, "");
}

#[test]
fn a_server_killed_under_a_guest_without_a_write_cache_leaves_what_it_answered() {
    check_survives(EMPTY, "echo 'write through' > /sys/block/vda/cache_type");
}
