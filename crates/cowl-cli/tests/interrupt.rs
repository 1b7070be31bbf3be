//! A copy that is told to end leaves nothing behind.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

const SIGTERM: i32 = 15;

#[test]
fn a_terminated_copy_removes_its_file_and_dies_of_the_signal() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("in.raw"), vec![1; 8 << 20]).unwrap();
    // Slow enough to be met in the middle on any machine: the rest would take minutes.
    let mut copy = Command::new(env!("CARGO_BIN_EXE_cowl"))
        .args(["convert", "-r", "10k", "-O", "qcow2", "in.raw", "out.qcow2"])
        .current_dir(folder.path())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let names = || fs::read_dir(folder.path()).unwrap().count();
    while names() == 1 {
        assert!(copy.try_wait().unwrap().is_none(), "the copy ended by itself");
        std::thread::yield_now();
    }
    let killed = Command::new("kill").args(["-TERM", &copy.id().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(copy.wait().unwrap().signal(), Some(SIGTERM));
    assert_eq!(names(), 1);
}

#[test]
fn the_limit_for_files_is_an_error_that_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("in.raw"), vec![1; 8 << 20]).unwrap();
    for format in ["raw", "qcow2"] {
        let script = format!("ulimit -f 1024; exec \"$0\" convert -O {format} in.raw out");
        let copy = Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_cowl")])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(copy.status.code(), Some(1), "{copy:?}");
        assert!(String::from_utf8_lossy(&copy.stderr).contains("File too large"), "{copy:?}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
