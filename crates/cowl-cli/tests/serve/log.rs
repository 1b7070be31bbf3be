//! The log: nobody waits for it, and nothing of an image is lost to it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use cowl_testkit::are_installed;

use crate::daemon::{Daemon, images, program};
use crate::surprises::{refused, words};

/// Takes the default export and goes; each time that is a line of the log.
fn come_and_go(daemon: &Daemon) {
    let mut stream = UnixStream::connect(daemon.path().join("socket")).unwrap();
    let mut ask = 1_u32.to_be_bytes().to_vec();
    ask.extend(b"IHAVEOPT");
    ask.extend([0, 0, 0, 1, 0, 0, 0, 0]);
    stream.write_all(&ask).unwrap();
}

#[test]
fn a_log_whose_reader_has_gone_costs_no_client_and_no_data() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    let mut daemon = Daemon::start_with(images(), &["-x", "", "disk.qcow2"], Stdio::piped());
    drop(daemon.child.stderr.take());
    daemon.client("qemu-io", &["-t", "unsafe", "-f", "raw", "-c", "write -P 3 0 1M", "URI"]);
    come_and_go(&daemon);
    let folder = daemon.finish();
    let read = ["-f", "qcow2", "-c", "read -P 3 0 1M", "disk.qcow2"];
    assert!(!program(folder.path(), "qemu-io", &read).contains("failed"));
}

#[test]
fn a_log_that_nobody_reads_stops_nobody() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    let mut daemon = Daemon::start_with(images(), &["disk.qcow2"], Stdio::piped());
    let unread = daemon.child.stderr.take();
    for _ in 0..3000 {
        come_and_go(&daemon);
    }
    assert_eq!(daemon.client("nbdinfo", &["--size", "URI"]).trim(), "67108864");
    daemon.finish();
    drop(unread);
}

#[test]
fn a_log_is_not_written_into_a_backing_file() {
    if !are_installed(&[]) {
        return;
    }
    let folder = images();
    let create = ["create", "-q", "-f", "qcow2", "-b", "disk.raw", "-F", "raw", "overlay.qcow2"];
    program(folder.path(), "qemu-img", &create);
    let before = std::fs::read(folder.path().join("disk.raw")).unwrap();
    let serve = ["-k", "s", "--log-file", "disk.raw", "--log-level", "trace", "overlay.qcow2"];
    let output = refused(folder.path(), &serve);
    assert!(words(&output).contains("it is an image or a part of one"), "{output:?}");
    assert!(std::fs::read(folder.path().join("disk.raw")).unwrap() == before);
    assert!(!folder.path().join("s").exists());
    // A file that only holds a number could be somebody's disk as well.
    std::fs::write(folder.path().join("number"), "12345\n").unwrap();
    let output = refused(
        folder.path(),
        &["-k", "s", "--pid-file", "number", "-f", "raw", "--read-only", "number"],
    );
    assert!(words(&output).contains("it is an image"), "{output:?}");
    assert_eq!(std::fs::read(folder.path().join("number")).unwrap(), b"12345\n");
}

#[test]
fn a_log_file_gets_every_line_of_the_start() {
    if !are_installed(&[]) {
        return;
    }
    let daemon = Daemon::start(&["--log-file", "log", "disk.qcow2"]);
    let folder = daemon.finish();
    let log = std::fs::read_to_string(folder.path().join("log")).unwrap();
    assert!(log.contains("serving") && log.contains("closed"), "{log}");
}
