//! A mounted image in the test's process, and what undoes it when a test fails.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use compio::runtime::Runtime;
use cowl::{BlockDevice, Disk, OpenOptions, Rings};
use cowl_fuse::{Access, Caching, Export, MountError, Options, Server, Sharing, Sizing};
use cowl_storage::UringStorage;
use tempfile::TempDir;

pub(crate) type Image = Disk<UringStorage>;

/// Threads of a server: two, so that requests really run side by side.
const THREADS: usize = 2;

/// Where the file shows up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    OverFile,
    InDirectory,
}

/// How an image is mounted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct How {
    pub(crate) place: Place,
    pub(crate) access: Access,
    pub(crate) sizing: Sizing,
    pub(crate) caching: Caching,
    pub(crate) sharing: Sharing,
    pub(crate) memory_max: u64,
}

impl How {
    pub(crate) const PLAIN: Self = Self {
        place: Place::OverFile,
        access: Access::ReadWrite,
        sizing: Sizing::Fixed,
        caching: Caching::PageCache,
        sharing: Sharing::Owner,
        memory_max: 256 << 20,
    };
}

/// A mounted device.
pub(crate) struct Serving<E: BlockDevice + 'static> {
    folder: TempDir,
    pub(crate) server: Server<E>,
    pub(crate) file: PathBuf,
    device: Arc<E>,
    threads: Threads<E>,
}

/// The threads of a server; a test that fails unmounts and waits for them, too.
struct Threads<E: BlockDevice + 'static> {
    server: Server<E>,
    handles: Vec<JoinHandle<std::io::Result<()>>>,
}

/// A folder with a new image of `size` bytes, `disk.qcow2`.
pub(crate) fn new_image(size: u64) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let create = ["create", "-f", "qcow2", "disk.qcow2", &size.to_string()];
    let created = cowl_testkit::run(cowl_testkit::Tool::Img, folder.path(), &create);
    let _created = created.expect_success("qemu-img create");
    folder
}

impl Serving<Image> {
    /// Mounts a new image of `size` bytes.
    pub(crate) fn new_image(size: u64, how: How) -> Self {
        Self::of_image(new_image(size), how)
    }

    /// Mounts `disk.qcow2` in `folder`.
    pub(crate) fn of_image(folder: TempDir, how: How) -> Self {
        let access = match how.access {
            Access::ReadOnly => cowl::Access::ReadOnly,
            Access::ReadWrite => cowl::Access::ReadWrite,
        };
        let options = OpenOptions { access, ..OpenOptions::local() };
        let path = folder.path().join("disk.qcow2");
        let disk = Runtime::new().unwrap().block_on(Disk::open_with(&Rings, &path, &options));
        Self::of_device(folder, Arc::new(disk.unwrap()), how).unwrap()
    }

    /// Unmounts, closes the image, and lets QEMU check it. Returns the folder.
    pub(crate) fn finish(mut self) -> TempDir {
        self.end();
        let Self { folder, server, device, threads, .. } = self;
        drop((server, threads));
        let disk = Arc::try_unwrap(device).ok().expect("nobody holds the disk any more");
        Runtime::new().unwrap().block_on(disk.shut()).unwrap();
        let check = ["check", "disk.qcow2"];
        let checked = cowl_testkit::run(cowl_testkit::Tool::Img, folder.path(), &check);
        assert_eq!(checked.code, 0, "{checked:?}");
        folder
    }
}

impl<E: BlockDevice + 'static> Serving<E> {
    /// Mounts `device` in `folder`, and serves it.
    pub(crate) fn of_device(folder: TempDir, device: Arc<E>, how: How) -> Result<Self, MountError> {
        let (at, file) = match how.place {
            Place::OverFile => {
                let file = folder.path().join("mounted");
                File::create(&file).unwrap();
                (file.clone(), file)
            }
            Place::InDirectory => {
                let at = folder.path().join("mount");
                std::fs::create_dir(&at).unwrap();
                (at.clone(), at.join("disk.img"))
            }
        };
        let export = Export {
            device: Arc::clone(&device),
            name: "disk.img".to_owned(),
            access: how.access,
            sizing: how.sizing,
        };
        let How { caching, sharing, memory_max, .. } = how;
        let options = Options { caching, sharing, memory_max, ..Options::standard() };
        let server = Server::new(export, &at, options)?;
        let handles = (0..THREADS)
            .map(|_| {
                let server = server.clone();
                std::thread::spawn(move || cowl_storage::ring_runtime()?.block_on(server.run()))
            })
            .collect();
        let threads = Threads { server: server.clone(), handles };
        Ok(Self { folder, server, file, device, threads })
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The file, opened for reading and writing.
    pub(crate) fn open(&self) -> File {
        File::options().read(true).write(true).open(&self.file).unwrap()
    }

    /// Unmounts and waits for the threads.
    pub(crate) fn end(&mut self) {
        self.server.stop();
        self.join();
    }

    /// Waits for the threads of a server that ends.
    pub(crate) fn join(&mut self) {
        for thread in self.threads.handles.drain(..) {
            thread.join().unwrap().unwrap();
        }
        assert_eq!(self.server.stats().memory_used, 0);
        assert!(self.server.ending().is_some());
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let path = self.folder.path().to_str().unwrap();
        assert!(!mounts.contains(path), "{mounts}");
    }
}

impl<E: BlockDevice + 'static> Drop for Threads<E> {
    fn drop(&mut self) {
        self.server.stop();
        for thread in self.handles.drain(..) {
            thread.join().ok();
        }
    }
}
