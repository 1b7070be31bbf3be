//! What once went wrong under users who did not mean well, or who meant something else.

use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::Duration;

use cowl_testkit::are_installed;

use crate::daemon::{Daemon, images, program};

/// A `serve` that has to end by itself.
pub(crate) fn refused(folder: &std::path::Path, arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["20", env!("CARGO_BIN_EXE_cowl"), "serve"]).args(arguments);
    let output = command.current_dir(folder).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    output
}

pub(crate) fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn virtual_machines_are_answered_from_the_smallest_sandbox() {
    if !are_installed(&[]) {
        return;
    }
    let daemon = Daemon::start(&["--export", "image=disk.qcow2,vhost-user=vhost"]);
    let mut front_end = UnixStream::connect(daemon.path().join("vhost")).unwrap();
    front_end.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    // GET_FEATURES: request 1, version 1, no payload.
    let ask: Vec<u8> = [1_u32, 1, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    front_end.write_all(&ask).unwrap();
    let mut answer = [0; 20];
    front_end.read_exact(&mut answer).unwrap();
    assert_eq!(answer[..4], 1_u32.to_ne_bytes());
    assert_ne!(answer[12..], [0; 8]);
    drop(front_end);
    daemon.finish();
}

#[test]
fn a_client_that_names_no_export_never_gets_another_disk_than_before() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    for (first, is_named) in [("image=disk.raw,format=raw,name=", false), ("disk.raw", true)] {
        let second = "image=disk.qcow2,name=b";
        let daemon =
            Daemon::start(&["--control", "control", "--export", first, "--export", second]);
        let size = |export: &str| {
            let asked = Command::new("nbdinfo").args(["--size", &daemon.uri(export)]).output();
            asked.map(|output| output.status.success().then_some(output.stdout)).unwrap()
        };
        assert_eq!(size("").unwrap(), b"16777216\n");
        let name = if is_named { "disk.raw" } else { "" };
        let remove = format!(r#"{{"command": "remove-export", "export": "{name}"}}"#);
        daemon.control().result(&remove);
        assert_eq!(size(""), None);
        assert_eq!(size("b").unwrap(), b"67108864\n");
        daemon.finish();
    }
}

#[test]
fn a_mounted_file_grows_where_that_was_asked_for() {
    if !are_installed(&[]) || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("SKIP: no /dev/fuse; no file was mounted");
        return;
    }
    for image in ["disk.qcow2", "disk.raw"] {
        let folder = images();
        std::fs::write(folder.path().join("file"), b"").unwrap();
        let daemon = Daemon::start_in(folder, &["--fuse", "file", "--growable", image]);
        let path = daemon.path().join("file");
        let file = std::fs::File::options().read(true).write(true).open(&path).unwrap();
        file.write_all_at(&[7; 4096], 70 << 20).unwrap();
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().len(), (70 << 20) + 4096);
        file.set_len(80 << 20).unwrap();
        let mut bytes = [1; 4096];
        file.read_exact_at(&mut bytes, 70 << 20).unwrap();
        assert_eq!(bytes, [7; 4096]);
        file.read_exact_at(&mut bytes, 79 << 20).unwrap();
        assert_eq!(bytes, [0; 4096]);
        drop(file);
        let folder = daemon.finish();
        let info = program(folder.path(), "qemu-img", &["info", "--output=json", image]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        assert_eq!(info["virtual-size"], 80 << 20);
    }
}

#[test]
fn one_place_takes_one_file() {
    if !are_installed(&[]) || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("SKIP: no /dev/fuse; no file was mounted");
        return;
    }
    let folder = images();
    std::fs::create_dir_all(folder.path().join("place/inner")).unwrap();
    for (one, other) in [("place", "place/../place"), ("place", "place/inner")] {
        let one = format!("image=disk.qcow2,name=a,fuse={one}");
        let other = format!("image=disk.raw,format=raw,name=b,fuse={other}");
        let output = refused(folder.path(), &["--export", &one, "--export", &other]);
        assert!(words(&output).contains("the mount point of another export"), "{output:?}");
    }
    // What is said of one image is not inherited by the next.
    let export = ["--export", "image=disk.raw,format=raw,name=b"];
    let daemon = Daemon::start_in(folder, &["--fuse", "place", export[0], export[1], "disk.qcow2"]);
    assert_eq!(std::fs::read_dir(daemon.path().join("place")).unwrap().count(), 1);
    daemon.finish();
}

#[test]
fn files_of_another_daemon_stay() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    let first = Daemon::start(&["--pid-file", "pid", "disk.qcow2"]);
    let pid = std::fs::read(first.path().join("pid")).unwrap();
    let other = ["-k", "other", "--pid-file", "pid", "disk.raw"];
    let output = refused(first.path(), &other);
    assert!(words(&output).contains("a running process has it"), "{output:?}");
    assert_eq!(std::fs::read(first.path().join("pid")).unwrap(), pid);
    // A daemon that takes its place under the same names.
    std::fs::remove_file(first.path().join("socket")).unwrap();
    std::fs::remove_file(first.path().join("pid")).unwrap();
    let second = Command::new(env!("CARGO_BIN_EXE_cowl"))
        .args(["serve", "-q", "--fork", "-k", "socket", "--pid-file", "pid", "-f", "raw"])
        .arg("disk.raw")
        .current_dir(first.path())
        .status();
    assert!(second.unwrap().success());
    let folder = {
        let mut first = first;
        first.signal("TERM");
        assert_eq!(first.wait().code(), Some(0));
        std::mem::replace(&mut first.folder, tempfile::tempdir().unwrap())
    };
    let uri = format!("nbd+unix:///?socket={}", folder.path().join("socket").display());
    assert_eq!(program(folder.path(), "nbdinfo", &["--size", &uri]).trim(), "16777216");
    let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
    crate::daemon::kill(pid.trim().parse().unwrap(), "TERM");
}

#[test]
fn who_only_looks_is_no_last_client() {
    if !are_installed(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let mut daemon = Daemon::start(&["--persistent=off", "disk.qcow2"]);
    drop(UnixStream::connect(daemon.path().join("socket")).unwrap());
    let list = format!("nbd+unix://?socket={}", daemon.path().join("socket").display());
    program(daemon.path(), "nbdinfo", &["--list", "--json", "--no-content", &list]);
    std::thread::sleep(Duration::from_millis(300));
    assert!(daemon.child.try_wait().unwrap().is_none());
    daemon.client("qemu-io", &["-f", "raw", "-c", "write -P 5 0 64k", "URI"]);
    assert_eq!(daemon.wait().code(), Some(0));
}

#[test]
fn read_only_means_it_for_throw_away_overlays_too() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    let daemon = Daemon::start(&["-r", "-s", "disk.qcow2"]);
    let info = daemon.client("nbdinfo", &["--json", "URI"]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true);
    daemon.finish();
}

#[test]
fn commands_say_what_they_cannot_do_and_never_wait_for_idle_clients() {
    if !are_installed(&["nbdsh"]) {
        return;
    }
    let folder = images();
    let more = ["--control", "control", "--allow", ".", "--export", "image=disk.raw,format=raw"];
    let daemon = Daemon::start_in(folder, &more);
    let mut control = daemon.control();
    let image = daemon.path().join("disk.qcow2");
    let add = |rest: &str| {
        let image = image.display();
        format!(r#"{{"command": "add-export", "image": "{image}", {rest}}}"#)
    };
    let refusal = control.refusal(&add(r#""export": "t", "temporary": true"#));
    assert!(refusal.contains("--sandbox=off"), "{refusal}");
    let refusal = control.refusal(&add(&format!(r#""export": "{}""#, "x".repeat(5000))));
    assert!(refusal.contains("4096"), "{refusal}");
    let refusal =
        control.refusal(&add(&format!(r#""export": "e", "description": "{}""#, "x".repeat(5000))));
    assert!(refusal.contains("4096"), "{refusal}");
    // A client that stays while the export of a raw image is removed.
    let uri = daemon.uri("");
    let script = "
import socket, json
control = socket.socket(socket.AF_UNIX)
control.settimeout(20)
control.connect('control')
lines = control.makefile('rw')
lines.write(json.dumps({'command': 'remove-export', 'export': ''}) + '\\n')
lines.flush()
assert json.loads(lines.readline()) == {'result': {'closed': False}}
assert h.pread(512, 0) == bytes(512)
";
    program(daemon.path(), "nbdsh", &["-u", &uri, "-c", script]);
    daemon.finish();
}

#[test]
fn a_log_is_not_written_into_the_image() {
    if !are_installed(&[]) {
        return;
    }
    let folder = images();
    std::os::unix::fs::symlink("disk.raw", folder.path().join("log")).unwrap();
    let before = std::fs::read(folder.path().join("disk.raw")).unwrap();
    let output = refused(folder.path(), &["-k", "s", "--log-file", "log", "-f", "raw", "disk.raw"]);
    assert!(words(&output).contains("it is an image"), "{output:?}");
    assert!(std::fs::read(folder.path().join("disk.raw")).unwrap() == before);
    // And a start that fails leaves no socket of any kind behind.
    let export = "image=disk.qcow2,vhost-user=vhost";
    refused(folder.path(), &["-k", "s", "--export", export, "--control", "missing/control"]);
    assert!(!folder.path().join("vhost").exists() && !folder.path().join("s").exists());
}

#[test]
fn a_second_signal_takes_the_mounted_file_away() {
    if !are_installed(&[]) || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("SKIP: no /dev/fuse; no file was mounted");
        return;
    }
    let folder = images();
    std::fs::write(folder.path().join("file"), b"below").unwrap();
    let mut daemon = Daemon::start_in(folder, &["--fuse", "file", "disk.qcow2"]);
    assert_eq!(std::fs::metadata(daemon.path().join("file")).unwrap().len(), 64 << 20);
    // A client in the middle of a request, so that the first signal alone takes its time.
    let _client = crate::ending::stalled_client(&daemon);
    // Twice at once is one wish; the third is another.
    daemon.signal("TERM");
    daemon.signal("TERM");
    std::thread::sleep(Duration::from_millis(300));
    daemon.signal("TERM");
    daemon.wait();
    assert_eq!(std::fs::read(daemon.path().join("file")).unwrap(), b"below");
    assert!(!daemon.path().join("socket").exists());
}
