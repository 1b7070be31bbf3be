//! A server in the test's process.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;

use cowl_vhost_user::{Export, Listener, Server, ServerOptions};
use tempfile::TempDir;

use crate::disk::TestDisk;

/// Threads of a server: two, so that queues are really spread.
const THREADS: usize = 2;

/// Bytes of the disk.
pub(crate) const DISK_SIZE: usize = 8 << 20;

pub(crate) struct Serving {
    folder: TempDir,
    pub(crate) server: Server<TestDisk>,
    pub(crate) disk: Arc<TestDisk>,
    threads: Vec<JoinHandle<std::io::Result<()>>>,
}

impl Serving {
    pub(crate) fn new() -> Self {
        Self::with(|_| {})
    }

    /// Serves an export that `change` has changed.
    pub(crate) fn with(change: impl FnOnce(&mut Export<TestDisk>)) -> Self {
        Self::on(Arc::new(TestDisk::new(DISK_SIZE)), change)
    }

    pub(crate) fn on(disk: Arc<TestDisk>, change: impl FnOnce(&mut Export<TestDisk>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&folder.path().join("socket")).unwrap();
        let mut export = Export::new(Arc::clone(&disk), listener);
        "a disk".clone_into(&mut export.serial);
        change(&mut export);
        let server = Server::new([export], ServerOptions { threads: THREADS }).unwrap();
        let threads = (0..THREADS)
            .map(|_| {
                let server = server.clone();
                std::thread::spawn(move || {
                    cowl_storage::ring_runtime().unwrap().block_on(server.run())
                })
            })
            .collect();
        Self { folder, server, disk, threads }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.path()).unwrap()
    }

    /// Stops, and returns when everything has come to its end.
    pub(crate) fn stop(mut self) {
        self.server.stop();
        for thread in self.threads.drain(..) {
            thread.join().unwrap().unwrap();
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.disk.release();
        self.server.stop();
    }
}
