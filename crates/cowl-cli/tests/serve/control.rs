//! The control socket and the metrics.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use cowl_testkit::are_installed;

use crate::daemon::{Daemon, images, program};

#[test]
fn commands_are_carried_out_and_mistakes_are_explained() {
    if !are_installed(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let folder = images();
    let allowed = folder.path().to_str().unwrap().to_owned();
    let arguments = ["--control", "control", "--allow", &allowed, "-x", "main", "disk.qcow2"];
    let daemon = Daemon::start_in(folder, &arguments);
    let mode = std::fs::metadata(daemon.path().join("control")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut control = daemon.control();
    daemon.client("qemu-io", &["-f", "raw", "-c", "write -P 3 0 1M", "URI"]);

    let stats = control.result(r#"{"command": "stats"}"#);
    assert_eq!(stats["exports"][0]["requests"]["write"]["bytes"], 1 << 20);
    assert_eq!(stats["exports"][0]["disk-size"], 64 << 20);
    let answer = control.say(r#"{"id": [1, "x"], "command": "flush", "export": "main"}"#);
    assert_eq!(answer, serde_json::json!({ "id": [1, "x"], "result": {} }));
    assert!(control.result(r#"{"command": "help"}"#)["quit"].is_string());

    control.result(r#"{"command": "resize", "export": "main", "size": 100663296}"#);
    assert_eq!(daemon.client("nbdinfo", &["--size", "URI"]).trim(), "100663296");
    let refused = control.refusal(r#"{"command": "resize", "export": "main", "size": 0}"#);
    assert!(refused.contains("\"shrink\": true"), "{refused}");
    let less = r#"{"command": "resize", "export": "main", "size": 67108864, "shrink": true}"#;
    control.result(less);
    assert_eq!(daemon.client("nbdinfo", &["--size", "URI"]).trim(), "67108864");

    let raw = daemon.path().join("disk.raw");
    let add = format!(
        r#"{{"command": "add-export", "export": "two", "image": {raw:?}, "format": "raw"}}"#
    );
    control.result(&add);
    assert!(control.refusal(&add).contains("there is an export named 'two'"));
    let two = daemon.uri("two");
    assert_eq!(program(daemon.path(), "nbdinfo", &["--size", &two]).trim(), "16777216");
    // Its disk is closed when the answer comes: the same image can be added again.
    let remove = r#"{"command": "remove-export", "export": "two"}"#;
    assert_eq!(control.result(remove)["closed"], true);
    control.result(&add);
    assert!(control.refusal(r#"{"command": "remove-export", "export": "x"}"#).contains("'x'"));

    for wrong in ["nonsense", "[]", "{}", r#"{"command": "explode"}"#, r#"{"command": 1}"#] {
        control.refusal(wrong);
    }
    let unknown = control.refusal(r#"{"command": "flush", "exprt": "main"}"#);
    assert!(unknown.contains("unknown field `exprt`"), "{unknown}");
    daemon.finish();
}

#[test]
fn only_what_was_allowed_can_be_opened_later() {
    if !are_installed(&[]) {
        return;
    }
    let elsewhere = images();
    let outside = elsewhere.path().join("disk.raw");
    let folder = images();
    let inside = folder.path().join("disk.raw");
    // A link from inside leads outside.
    let link = folder.path().join("link.raw");
    std::os::unix::fs::symlink(&outside, &link).unwrap();
    let daemon =
        Daemon::start_in(folder, &["--control", "control", "--allow", "disk.raw", "disk.qcow2"]);
    let mut control = daemon.control();
    for path in [&outside, &link] {
        let add = format!(r#"{{"command": "add-export", "export": "o", "image": {path:?}}}"#);
        let refusal = control.refusal(&add);
        assert!(refusal.contains("outside of what the daemon may open"), "{refusal}");
    }
    control.result(&format!(
        r#"{{"command": "add-export", "export": "i", "format": "raw", "image": {inside:?}}}"#
    ));
    daemon.finish();
}

#[test]
fn an_export_that_is_removed_by_force_lets_go_of_its_clients() {
    if !are_installed(&["nbdsh"]) {
        return;
    }
    let daemon =
        Daemon::start(&["--control", "control", "--handshake-limit=1", "disk.qcow2", "disk.raw"]);
    let uri = daemon.uri("disk.qcow2");
    let script = "
import socket, json, time, os
control = socket.socket(socket.AF_UNIX)
control.connect('control')
lines = control.makefile('rw')
def say(**command):
    lines.write(json.dumps(command) + '\\n')
    lines.flush()
    return json.loads(lines.readline())
h.pwrite(b'x' * 4096, 0)
h.flush()
answer = say(command='remove-export', export='disk.qcow2')
assert answer == {'result': {'closed': False}}, answer
h.pwrite(b'y' * 4096, 4096)
h.flush()
answer = say(command='remove-export', export='disk.qcow2')
assert 'error' in answer, answer
";
    program(daemon.path(), "nbdsh", &["-u", &uri, "-c", script]);
    let script = script.split("answer = say").next().unwrap().to_owned()
        + "
answer = say(command='remove-export', export='disk.raw', force=True)
assert answer == {'result': {'closed': True}}, answer
try:
    h.pread(512, 0)
except nbd.Error:
    pass
else:
    raise Exception('still served')
";
    program(daemon.path(), "nbdsh", &["-u", &daemon.uri("disk.raw"), "-c", &script]);
    daemon.finish();
}

#[test]
fn quit_ends_the_daemon_in_order() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    let mut daemon = Daemon::start(&["--control", "control", "disk.qcow2"]);
    daemon.client("qemu-io", &["-f", "raw", "-c", "write -P 3 0 1M", "URI"]);
    daemon.control().result(r#"{"command": "quit"}"#);
    assert_eq!(daemon.wait().code(), Some(0));
    let left: Vec<_> = std::fs::read_dir(daemon.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !name.starts_with("disk."))
        .collect();
    assert_eq!(left, [""; 0]);
    program(daemon.path(), "qemu-img", &["check", "-q", "disk.qcow2"]);
    program(daemon.path(), "qemu-io", &["-c", "read -P 3 0 1M", "disk.qcow2"]);
}

/// Sends `request` and returns the whole answer.
fn http(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn metrics_are_served_and_stalled_readers_keep_nobody_waiting() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    let daemon = Daemon::start(&["--metrics", "127.0.0.1:0", "-x", "a\"b", "disk.qcow2"]);
    daemon.client("qemu-io", &["-f", "raw", "-c", "write -P 3 0 1M", "URI"]);
    let line = daemon.announced.last().unwrap();
    let address = line.strip_prefix("Metrics at http://").unwrap();
    let address = address.strip_suffix("/metrics").unwrap();
    let _stalled: Vec<_> = (0..50).map(|_| TcpStream::connect(address).unwrap()).collect();
    let start = std::time::Instant::now();
    let answer = http(address, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/openmetrics-text"));
    assert!(start.elapsed() < Duration::from_secs(10), "each of the fifty could take seconds");
    let written = r#"cowl_transferred_bytes_total{export="a\"b",kind="write"} 1048576"#;
    assert!(answer.contains(written), "{answer}");
    assert!(answer.ends_with("# EOF\n"));
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "405"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        assert!(http(address, request).starts_with(&format!("HTTP/1.1 {status} ")), "{request}");
    }
    daemon.finish();
}
