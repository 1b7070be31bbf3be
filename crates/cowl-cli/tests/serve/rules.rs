//! How requests are carried out: discards, zeros, caches, windows, overlays, snapshots.

use cowl_testkit::are_installed;

use crate::daemon::{Daemon, images, program};

/// Bytes of the disk that are stored as data.
fn data_bytes(daemon: &Daemon) -> u64 {
    let text = program(daemon.path(), "qemu-img", &["map", "-U", "--output=json", "disk.qcow2"]);
    let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let data = list.iter().filter(|entry| entry["data"] == true);
    data.map(|entry| entry["length"].as_u64().unwrap()).sum()
}

const MIB: u64 = 1 << 20;

#[test]
fn discards_give_back_space_unless_they_are_ignored() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    for (discard, data) in [("unmap", 2 * MIB), ("ignore", 4 * MIB)] {
        let daemon = Daemon::start(&["--discard", discard, "disk.qcow2"]);
        let commands = ["-c", "write -P 1 0 4M", "-c", "discard 2M 2M", "-c", "flush"];
        daemon.client("qemu-io", &[&["-f", "raw"], &commands[..], &["URI"]].concat());
        assert_eq!(data_bytes(&daemon), data, "{discard}");
        daemon.finish();
    }
}

#[test]
fn writes_of_zeros_are_found() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    for (mode, data) in [("off", 4 * MIB), ("on", 0), ("unmap", 0)] {
        let daemon = Daemon::start(&["--detect-zeroes", mode, "disk.qcow2"]);
        let commands = ["-c", "write -P 0 0 4M", "-c", "read -P 0 0 4M", "-c", "flush"];
        daemon.client("qemu-io", &[&["-f", "raw"], &commands[..], &["URI"]].concat());
        assert_eq!(data_bytes(&daemon), data, "{mode}");
        daemon.finish();
    }
}

#[test]
fn a_window_shows_its_part_and_no_more() {
    if !are_installed(&["qemu-io", "nbdinfo"]) {
        return;
    }
    let folder = images();
    let fill = ["-f", "raw", "-c", "write -P 1 0 4M", "-c", "write -P 2 4M 4M", "disk.raw"];
    program(folder.path(), "qemu-io", &fill);
    let arguments = [
        "--export",
        "image=disk.raw,format=raw,name=low,size=4M",
        "--export",
        "image=disk.raw,format=raw,name=high,offset=4M,size=4M",
        "disk.qcow2",
    ];
    let daemon = Daemon::start_in(folder, &arguments);
    for (export, pattern) in [("low", "read -P 1 0 4M"), ("high", "read -P 2 0 4M")] {
        let uri = daemon.uri(export);
        assert_eq!(program(daemon.path(), "nbdinfo", &["--size", &uri]).trim(), "4194304");
        program(daemon.path(), "qemu-io", &["-f", "raw", "-c", pattern, &uri]);
    }
    let write = ["-f", "raw", "-c", "write -P 3 0 1M", &daemon.uri("high")];
    program(daemon.path(), "qemu-io", &write);
    let folder = daemon.finish();
    let read = ["-f", "raw", "-c", "read -P 1 0 4M", "-c", "read -P 3 4M 1M", "disk.raw"];
    program(folder.path(), "qemu-io", &read);
}

#[test]
fn changes_of_a_temporary_overlay_are_thrown_away() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    let folder = images();
    program(folder.path(), "qemu-io", &["-c", "write -P 1 0 1M", "disk.qcow2"]);
    let before = std::fs::read(folder.path().join("disk.qcow2")).unwrap();
    let overlays = folder.path().join("tmp");
    std::fs::create_dir(&overlays).unwrap();
    let daemon = Daemon::start_in(folder, &["-s", "disk.qcow2"]);
    let commands = ["-c", "read -P 1 0 1M", "-c", "write -P 2 0 1M", "-c", "read -P 2 0 1M"];
    daemon.client("qemu-io", &[&["-f", "raw"], &commands[..], &["URI"]].concat());
    let folder = daemon.finish();
    assert_eq!(std::fs::read(folder.path().join("disk.qcow2")).unwrap(), before);
}

#[test]
fn an_internal_snapshot_is_shown_read_only() {
    if !are_installed(&["qemu-io", "nbdinfo"]) {
        return;
    }
    let folder = images();
    program(folder.path(), "qemu-io", &["-c", "write -P 1 0 1M", "disk.qcow2"]);
    program(folder.path(), "qemu-img", &["snapshot", "-c", "then", "disk.qcow2"]);
    program(folder.path(), "qemu-io", &["-c", "write -P 2 0 1M", "disk.qcow2"]);
    let daemon = Daemon::start_in(folder, &["-l", "then", "disk.qcow2"]);
    daemon.client("qemu-io", &["-r", "-f", "raw", "-c", "read -P 1 0 1M", "URI"]);
    let info = daemon.client("nbdinfo", &["--json", "URI"]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["exports"][0]["is_read_only"], true);
    daemon.finish();
}

#[test]
fn every_cache_mode_stores_what_was_written() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    for mode in ["none", "writeback", "writethrough", "directsync", "unsafe"] {
        let daemon = Daemon::start(&["--cache", mode, "--control", "control", "disk.qcow2"]);
        daemon.client("qemu-io", &["-f", "raw", "-c", "write -P 5 64k 1M", "URI"]);
        let stats = daemon.control().result(r#"{"command": "stats"}"#);
        let barriers = stats["exports"][0]["qcow2"]["barriers"].as_u64().unwrap();
        // The client flushes when it goes, too.
        assert_eq!(barriers == 0, mode == "unsafe", "{mode}: {barriers}");
        let folder = daemon.finish();
        program(folder.path(), "qemu-io", &["-c", "read -P 5 64k 1M", "disk.qcow2"]);
    }
}

#[test]
fn no_more_clients_than_wanted_are_served_at_once() {
    if !are_installed(&["nbdsh"]) {
        return;
    }
    let daemon = Daemon::start(&["--shared=1", "disk.qcow2"]);
    let uri = daemon.uri("");
    let script = format!(
        "
import threading, time
second = nbd.NBD()
served = []
def connect():
    second.connect_uri({uri:?})
    served.append(True)
thread = threading.Thread(target=connect)
thread.start()
time.sleep(0.5)
assert not served
h.pread(512, 0)
h.shutdown()
thread.join(60)
assert served
second.pread(512, 0)
"
    );
    program(daemon.path(), "nbdsh", &["-u", &uri, "-c", &script]);
    daemon.finish();
}

#[test]
fn clients_can_ask_about_dirty_bitmaps_as_qemu_nbd_tells_them() {
    if !are_installed(&["nbdinfo", "qemu-nbd", "qemu-io"]) {
        return;
    }
    let folder = images();
    let script = "qemu-img bitmap --add -g 64k disk.qcow2 b0 && \
                  qemu-io -c 'write 1M 3M' -c 'write 40M 100k' disk.qcow2 && \
                  qemu-img bitmap --add -g 512 disk.qcow2 b1 && \
                  qemu-img bitmap --disable disk.qcow2 b1 && \
                  qemu-img bitmap --add disk.qcow2 b2 && \
                  qemu-io -c 'write 5k 1k' disk.qcow2";
    program(folder.path(), "sh", &["-c", script]);
    let map = |uri: &str, folder: &std::path::Path, name: &str| {
        let context = format!("--map=qemu:dirty-bitmap:{name}");
        program(folder, "nbdinfo", &[&context, "--json", uri])
    };
    // What qemu-nbd says of the same bitmaps.
    let socket = folder.path().join("theirs");
    let mut theirs = std::process::Command::new("qemu-nbd")
        .args(["-t", "-r", "-B", "b0", "-B", "b1", "-B", "b2", "-k"])
        .arg(&socket)
        .args(["-f", "qcow2", "disk.qcow2"])
        .current_dir(folder.path())
        .spawn()
        .unwrap();
    while !socket.exists() {
        assert!(theirs.try_wait().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let expected = ["b0", "b1", "b2"].map(|name| map(&uri, folder.path(), name));
    theirs.kill().unwrap();
    theirs.wait().unwrap();
    let arguments = ["-r", "-B", "b0", "-B", "b1", "-B", "b2", "disk.qcow2"];
    let daemon = Daemon::start_in(folder, &arguments);
    let found = ["b0", "b1", "b2"].map(|name| map(&daemon.uri(""), daemon.path(), name));
    assert_eq!(found, expected);
    assert!(expected[0].contains("\"dirty\"") && expected[2].contains("\"dirty\""), "{expected:?}");
    let folder = daemon.finish();
    // One that records writes would be out of date after the first; one that does not stays true.
    for (name, code) in [("b0", 1), ("missing", 1)] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_cowl"))
            .args(["serve", "-k", "socket", "-B", name, "disk.qcow2"])
            .current_dir(folder.path())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(&format!("Bitmap '{name}'")));
    }
    let daemon = Daemon::start_in(folder, &["-B", "b1", "disk.qcow2"]);
    assert_eq!(map(&daemon.uri(""), daemon.path(), "b1"), expected[1]);
    let folder = daemon.finish();
    // That of a backing file, for an overlay of its size.
    let overlay = ["create", "-q", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "top.qcow2"];
    program(folder.path(), "qemu-img", &overlay);
    let daemon = Daemon::start_in(folder, &["-B", "b0", "top.qcow2"]);
    assert_eq!(map(&daemon.uri(""), daemon.path(), "b0"), expected[0]);
    daemon.finish();
}
