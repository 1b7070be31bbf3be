//! A server in the test's process, on a qcow2 image that the library opened.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use compio::runtime::Runtime;
use cowl::{Access, Disk, OpenOptions, Rings};
use cowl_nbd::{Export, Exports, FastZero, Listener, Server, ServerOptions};
use cowl_storage::UringStorage;
use tempfile::TempDir;

pub(crate) type Device = Disk<UringStorage>;

/// Threads of a server: two, so that requests of one image really run side by side.
const THREADS: usize = 2;

/// A running server, and the folder with its image and its socket.
pub(crate) struct Serving {
    pub(crate) folder: TempDir,
    pub(crate) server: Server<Device>,
    disk: Arc<Device>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Serving {
    /// Serves a new image of `size` bytes.
    pub(crate) fn new_image(size: u64) -> Self {
        Self::with(size, ServerOptions::standard(), |disk| vec![whole(disk)])
    }

    /// Serves a new image with other options.
    pub(crate) fn with(
        size: u64,
        options: ServerOptions,
        exports: impl FnOnce(&Arc<Device>) -> Vec<Export<Device>>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let disk = cowl_testkit::run(
            cowl_testkit::Tool::Img,
            folder.path(),
            &["create", "-f", "qcow2", "disk.qcow2", &size.to_string()],
        );
        let _created = disk.expect_success("qemu-img create");
        Self::open(folder, options, exports)
    }

    /// Serves `disk.qcow2` in `folder`.
    pub(crate) fn open(
        folder: TempDir,
        options: ServerOptions,
        exports: impl FnOnce(&Arc<Device>) -> Vec<Export<Device>>,
    ) -> Self {
        let listener = Listener::bind_unix(&folder.path().join("socket")).unwrap();
        Self::listening(folder, vec![listener], options, exports)
    }

    pub(crate) fn listening(
        folder: TempDir,
        listeners: Vec<Listener>,
        options: ServerOptions,
        exports: impl FnOnce(&Arc<Device>) -> Vec<Export<Device>>,
    ) -> Self {
        let access = OpenOptions { access: Access::ReadWrite, ..OpenOptions::local() };
        let path = folder.path().join("disk.qcow2");
        let open = Disk::open_with(&Rings, &path, &access);
        let disk = Arc::new(Runtime::new().unwrap().block_on(open).unwrap());
        let server = Server::new(Exports::new(exports(&disk)), listeners, options);
        let threads = (0..THREADS)
            .map(|_| {
                let server = server.clone();
                std::thread::spawn(move || cowl_storage::ring_runtime()?.block_on(server.run()))
            })
            .collect();
        Self { folder, server, disk, threads }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path().join("socket")
    }

    /// The URI of an export, as libnbd and QEMU write it.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket().display())
    }

    /// Stops the server, closes the image, and lets QEMU check it. Returns the folder.
    pub(crate) fn finish(self) -> TempDir {
        self.server.stop();
        for thread in self.threads {
            thread.join().unwrap().unwrap();
        }
        assert_eq!(self.server.stats().connections, 0);
        assert_eq!(self.server.stats().memory_used, 0);
        drop(self.server);
        let disk = Arc::try_unwrap(self.disk).ok().expect("nobody holds the disk any more");
        Runtime::new().unwrap().block_on(disk.shut()).unwrap();
        let check = || {
            let words = ["check", "disk.qcow2"];
            cowl_testkit::run(cowl_testkit::Tool::Img, self.folder.path(), &words)
        };
        let mut checked = check();
        // A program that a test beside this one starts has the image's lock between fork and exec.
        for _ in 0..100 {
            if !checked.stderr.contains("lock") {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            checked = check();
        }
        assert_eq!(checked.code, 0, "{checked:?}");
        self.folder
    }
}

/// The whole disk as the default export.
pub(crate) fn whole(disk: &Arc<Device>) -> Export<Device> {
    Export { fast_zero: FastZero::Always, ..Export::whole("", Arc::clone(disk)) }
}

/// Options whose time limits a test can wait for. Only for tests of those limits: on a busy machine
/// an honest client may be this slow.
pub(crate) fn quick() -> ServerOptions {
    ServerOptions {
        handshake_timeout: Duration::from_secs(2),
        stall_timeout: Duration::from_secs(2),
        ..ServerOptions::standard()
    }
}

/// Runs a client to its end and returns what it printed.
pub(crate) fn client(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("timeout");
    command.args(["60", program]).args(arguments).current_dir(folder);
    // nbdsh is a module of the system's own Python.
    command.env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
    let output = cowl_testkit::Output::of(&mut command);
    output.expect_success(&format!("{program} {arguments:?}")).stdout
}

/// Writes a raw file with data, holes and zeros.
pub(crate) fn sample_raw(path: &Path, size: u64) {
    use std::os::unix::fs::FileExt;
    let file = std::fs::File::create(path).unwrap();
    file.set_len(size).unwrap();
    let noise: Vec<u8> =
        (0..300_000_u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 24) as u8).collect();
    for at in [0, 3 << 20, (5 << 20) + 12345, size - 300_000] {
        file.write_all_at(&noise, at).unwrap();
    }
    file.write_all_at(&vec![0; 1 << 20], 8 << 20).unwrap();
}
