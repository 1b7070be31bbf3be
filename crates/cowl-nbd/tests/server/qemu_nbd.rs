//! The server that everybody uses today.

use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// Ends its process when dropped.
pub(crate) struct QemuNbd(Child);

impl QemuNbd {
    /// Serves at `qemu.socket` in `folder`.
    pub(crate) fn start(folder: &Path, arguments: &[&str]) -> Self {
        let child = Command::new("qemu-nbd")
            .args(["-t", "--shared=8", "-k"])
            .arg(folder.join("qemu.socket"))
            .args(arguments)
            .current_dir(folder)
            .env("PATH", "/usr/bin:/bin")
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !folder.join("qemu.socket").exists() {
            assert!(start.elapsed() < Duration::from_secs(20), "qemu-nbd does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
