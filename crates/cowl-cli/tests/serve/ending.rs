//! How a daemon ends, and how it goes into the background.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::{Duration, Instant};

use cowl_testkit::are_installed;

use crate::daemon::{Daemon, images, kill, program};

const SIGTERM: i32 = 15;

/// A client that has begun to send a write and never ends it.
pub(crate) fn stalled_client(daemon: &Daemon) -> UnixStream {
    let mut stream = UnixStream::connect(daemon.path().join("socket")).unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    let mut bytes = vec![0, 0, 0, 3];
    // NBD_OPT_EXPORT_NAME of the default export.
    bytes.extend(*b"IHAVEOPT\0\0\0\x01\0\0\0\0");
    stream.write_all(&bytes).unwrap();
    let mut chosen = [0; 10];
    stream.read_exact(&mut chosen).unwrap();
    let mut write = vec![0x25, 0x60, 0x95, 0x13, 0, 0, 0, 1];
    write.extend([0; 16]);
    write.extend(65536_u32.to_be_bytes());
    write.extend([1; 100]);
    stream.write_all(&write).unwrap();
    stream
}

#[test]
fn a_second_signal_ends_at_once_and_loses_nothing_that_was_flushed() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    let mut daemon = Daemon::start(&["--pid-file", "pid", "disk.qcow2"]);
    daemon.client("qemu-io", &["-f", "raw", "-c", "write -P 5 0 3M", "-c", "flush", "URI"]);
    let _client = stalled_client(&daemon);
    daemon.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    daemon.signal("TERM");
    let status = daemon.wait();
    // The first signal may have been enough where the client had not been accepted yet.
    assert!(status.signal() == Some(SIGTERM) || status.code() == Some(0), "{status}");
    for name in ["socket", "pid"] {
        assert!(!daemon.path().join(name).exists(), "{name} was left behind");
    }
    // Leaks are what an end without a close may cost.
    let mut check = Command::new("qemu-img");
    check.args(["check", "disk.qcow2"]).current_dir(daemon.path());
    let code = check.output().unwrap().status.code();
    assert!(matches!(code, Some(0 | 3)), "{code:?}");
    program(daemon.path(), "qemu-io", &["-c", "read -P 5 0 3M", "disk.qcow2"]);
}

#[test]
fn a_killed_daemon_loses_nothing_that_was_flushed_and_starts_again() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    let mut daemon = Daemon::start(&["disk.qcow2"]);
    daemon.client("qemu-io", &["-f", "raw", "-c", "write -P 5 0 3M", "-c", "flush", "URI"]);
    daemon.signal("KILL");
    daemon.wait();
    let folder = std::mem::replace(&mut daemon.folder, tempfile::tempdir().unwrap());
    // The socket that it left behind is taken over.
    let daemon = Daemon::start_in(folder, &["disk.qcow2"]);
    daemon.client("qemu-io", &["-f", "raw", "-c", "read -P 5 0 3M", "URI"]);
    daemon.client("qemu-io", &["-f", "raw", "-c", "write -P 6 0 3M", "URI"]);
}

#[test]
fn without_persistence_the_last_client_ends_it() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    let mut daemon = Daemon::start(&["--persistent=off", "disk.qcow2"]);
    std::thread::sleep(Duration::from_millis(200));
    assert!(daemon.child.try_wait().unwrap().is_none());
    daemon.client("qemu-io", &["-f", "raw", "-c", "write -P 5 0 3M", "URI"]);
    assert_eq!(daemon.wait().code(), Some(0));
    program(daemon.path(), "qemu-io", &["-c", "read -P 5 0 3M", "disk.qcow2"]);
    program(daemon.path(), "qemu-img", &["check", "-q", "disk.qcow2"]);
}

#[test]
fn in_the_background_it_serves_when_the_command_has_returned() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    let folder = images();
    let serve = ["serve", "-q", "--fork", "-k", "socket", "--pid-file", "pid", "disk.qcow2"];
    let cowl = env!("CARGO_BIN_EXE_cowl");
    // Its streams are free when it has returned: reading them to the end does not wait.
    let said = program(folder.path(), cowl, &serve);
    assert_eq!(said, "");
    let uri = format!("nbd+unix:///?socket={}", folder.path().join("socket").display());
    assert_eq!(program(folder.path(), "nbdinfo", &["--size", &uri]).trim(), "67108864");
    // It cannot be started again meanwhile, and the command says so.
    let again = Command::new(cowl)
        .args(["serve", "--fork", "-k", "other", "disk.qcow2"])
        .current_dir(folder.path())
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert!(String::from_utf8_lossy(&again.stderr).contains("write"), "{again:?}");
    assert!(!folder.path().join("other").exists());
    let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
    kill(pid.trim().parse().unwrap(), "TERM");
    let start = Instant::now();
    while folder.path().join("pid").exists() {
        assert!(start.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_service_manager_hears_when_clients_can_come() {
    if !are_installed(&[]) {
        return;
    }
    let folder = images();
    let manager = std::os::unix::net::UnixDatagram::bind(folder.path().join("notify")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_cowl"))
        .args(["serve", "-q", "-k", "socket", "--log-level=warn", "disk.qcow2"])
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    let mut news = [0; 64];
    let length = manager.recv(&mut news).unwrap();
    assert_eq!(&news[..length], b"READY=1");
    UnixStream::connect(folder.path().join("socket")).unwrap();
    kill(child.id(), "INT");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn what_cannot_be_served_leaves_no_socket_behind() {
    if !are_installed(&[]) {
        return;
    }
    let folder = images();
    for arguments in [
        &["missing.qcow2"][..],
        &["-o", "1T", "disk.qcow2"],
        &["--size", "65M", "disk.qcow2"],
        &["-l", "none", "disk.qcow2"],
        &["-s", "-l", "none", "disk.qcow2"],
        &["--pid-file", "missing/pid", "disk.qcow2"],
        &["--control", "missing/control", "disk.qcow2"],
        &["--metrics", "nowhere", "disk.qcow2"],
        &["--tls=require", "--tls-certificates=missing", "disk.qcow2"],
        &["--tls=on", "disk.qcow2"],
        &["--allow=missing", "disk.qcow2"],
        &["--detect-zeroes=unmap", "--discard=ignore", "disk.qcow2"],
        &["-x", "a", "disk.qcow2", "disk.raw"],
        &["--export", "image=disk.qcow2,name=a", "--export", "image=disk.raw,name=a"],
        &["--export", "image=disk.qcow2,nme=a"],
        &["--export", "name=a"],
        &["--threads=0", "disk.qcow2"],
        &["--log=xml", "disk.qcow2"],
        &["--log-level=a=b=c", "disk.qcow2"],
        &["--sandbox=maybe", "disk.qcow2"],
        &["--growable", "disk.qcow2"],
        &["--queues=2", "disk.qcow2"],
        &["--allow=.", "disk.qcow2"],
        &["--tls-verify-peer", "disk.qcow2"],
        &["--socket-activation", "disk.qcow2"],
        &["--persistent=maybe", "disk.qcow2"],
        &["--shared=many", "disk.qcow2"],
        &[],
    ] {
        let output = Command::new("timeout")
            .args(["20", env!("CARGO_BIN_EXE_cowl"), "serve", "-k", "socket"])
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        assert!(output.stdout.is_empty());
        assert!(!output.stderr.is_empty(), "{arguments:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "{arguments:?}");
    }
}

#[test]
fn files_that_are_named_by_mistake_are_left_alone() {
    if !are_installed(&[]) {
        return;
    }
    let folder = images();
    std::fs::write(folder.path().join("notes"), "precious").unwrap();
    let raw = std::fs::read(folder.path().join("disk.raw")).unwrap();
    for arguments in [
        &["-k", "notes", "disk.qcow2"][..],
        &["-k", "disk.raw", "disk.qcow2"],
        &["-k", "socket", "--pid-file", "notes", "disk.qcow2"],
        &["-k", "socket", "--pid-file", "disk.raw", "disk.qcow2"],
        &["-k", "socket", "--control", "notes", "disk.qcow2"],
        &["--socket-path", "notes", "disk.qcow2"],
    ] {
        let output = Command::new("timeout")
            .args(["20", env!("CARGO_BIN_EXE_cowl"), "serve"])
            .args(arguments)
            .current_dir(folder.path())
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {words}");
        assert_eq!(std::fs::read(folder.path().join("notes")).unwrap(), b"precious");
        assert!(std::fs::read(folder.path().join("disk.raw")).unwrap() == raw, "{arguments:?}");
        assert!(!folder.path().join("socket").exists(), "{arguments:?}");
    }
}

#[test]
fn a_command_that_was_begun_is_finished() {
    if !are_installed(&[]) {
        return;
    }
    let folder = images();
    // Runs of clusters, far apart: giving them back takes a moment.
    let fill = "qemu-img create -q -f qcow2 -o cluster_size=4k disk.qcow2 40G && \
                seq 0 3000 | sed 's/.*/write -q &M 4k/' | qemu-io disk.qcow2 >/dev/null";
    program(folder.path(), "sh", &["-c", fill]);
    let daemon = Daemon::start_in(folder, &["--control", "control", "disk.qcow2"]);
    let mut control = daemon.control();
    let resizing = std::thread::spawn(move || {
        let less = r#"{"command": "resize", "export": "", "size": 1048576, "shrink": true}"#;
        control.say(less)
    });
    std::thread::sleep(Duration::from_millis(50));
    let folder = daemon.finish();
    let answer = resizing.join().unwrap();
    assert!(answer.get("result").is_some(), "{answer}");
    let info = program(folder.path(), "qemu-img", &["info", "disk.qcow2"]);
    assert!(info.contains("1 MiB (1048576 bytes)"), "{info}");
}

#[test]
fn a_signal_before_the_images_are_open_leaves_nothing_behind() {
    if !are_installed(&[]) {
        return;
    }
    let owner = Daemon::start(&["disk.qcow2"]);
    let mut waiting = std::process::Command::new(env!("CARGO_BIN_EXE_cowl"))
        .args(["serve", "-k", "second", "--pid-file", "pid", "disk.qcow2"])
        .current_dir(owner.path())
        .spawn()
        .unwrap();
    let pid_file = owner.path().join("pid");
    while !pid_file.exists() {
        std::thread::sleep(Duration::from_millis(5));
    }
    crate::daemon::kill(waiting.id(), "TERM");
    waiting.wait().unwrap();
    assert!(!pid_file.exists() && !owner.path().join("second").exists());
    owner.finish();
}
