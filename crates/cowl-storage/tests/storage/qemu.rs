//! The installed QEMU, as the other side of a lock.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use crate::common::skip;

/// Whether QEMU's programs are there. Says so loudly where they are not: nothing was tested then.
pub(crate) fn is_installed() -> bool {
    let installed = ["qemu-img", "qemu-io"]
        .iter()
        .all(|name| Command::new(name).arg("--version").output().is_ok_and(|o| o.status.success()));
    if !installed {
        skip("qemu-img and qemu-io are not installed; image locks were NOT tested");
    }
    installed
}

/// Runs a program to its end.
pub(crate) fn run(program: &str, arguments: &[&str], path: &Path) -> Output {
    Command::new(program).args(arguments).arg(path).stdin(Stdio::null()).output().unwrap()
}

/// Creates a small qcow2 image.
pub(crate) fn create_qcow2(path: &Path) {
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(path)
        .arg("1M")
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// A `qemu-io` that has an image open until it is dropped.
pub(crate) struct Holder {
    child: Child,
}

impl Holder {
    pub(crate) fn open(arguments: &[&str], path: &Path) -> Self {
        let mut child = Command::new("qemu-io")
            .args(arguments)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It prompts once the image is open.
        let mut prompt = [0; 8];
        child.stdout.as_mut().unwrap().read_exact(&mut prompt).unwrap();
        assert_eq!(&prompt, b"qemu-io>");
        Self { child }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let asked =
            self.child.stdin.take().is_some_and(|mut stdin| stdin.write_all(b"quit\n").is_ok());
        assert!(asked && self.child.wait().is_ok() || std::thread::panicking());
    }
}
