//! Several exports of one image.

use std::time::Duration;

use cowl_testkit::are_installed;

use crate::daemon::{Daemon, images, program};

#[test]
fn one_image_is_shown_for_writing_and_for_reading() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    // In the order that needs some care: the reader comes first.
    let daemon = Daemon::start(&[
        "--control",
        "control",
        "--allow",
        ".",
        "--export",
        "image=./disk.qcow2,name=reader,read-only=on",
        "--export",
        "image=disk.qcow2,name=writer",
    ]);
    let io = |export: &str, command: &str| {
        let uri = daemon.uri(export);
        program(daemon.path(), "qemu-io", &["-r", "-f", "raw", "-c", command, &uri])
    };
    let writer = daemon.uri("writer");
    program(daemon.path(), "qemu-io", &["-f", "raw", "-c", "write -P 7 1M 64k", &writer]);
    assert!(!io("reader", "read -P 7 1M 64k").contains("failed"));
    let reader = daemon.uri("reader");
    let info = program(daemon.path(), "nbdinfo", &[&reader]);
    assert!(info.contains("is_read_only: true"), "{info}");
    // What cannot share says who is in its way.
    let refusal = daemon.control().refusal(
        r#"{"command": "add-export", "export": "x", "image": "disk.qcow2", "format": "raw"}"#,
    );
    assert!(refusal.contains("this daemon has"), "{refusal}");
    daemon.finish();
}

#[test]
fn an_export_added_while_its_image_is_removed_stands_in_nobodys_way() {
    if !are_installed(&[]) {
        return;
    }
    let folder = images();
    // A bitmap that takes a while to read: the export is being added all that time.
    let script = "qemu-img create -q -f qcow2 large.qcow2 400G && \
                  qemu-img bitmap --add -g 512 large.qcow2 bb && \
                  qemu-img bitmap --disable large.qcow2 bb";
    program(folder.path(), "sh", &["-c", script]);
    let allow = ["--control", "control", "--allow", ".", "disk.qcow2"];
    let daemon = Daemon::start_in(folder, &allow);
    let add = |export: &str, more: &str| {
        let head = r#"{"command": "add-export", "image": "large.qcow2", "format": "qcow2""#;
        format!(r#"{head}, "export": "{export}"{more}}}"#)
    };
    let remove = |export: &str| format!(r#"{{"command": "remove-export", "export": "{export}"}}"#);
    let mut other = daemon.control();
    let mut control = daemon.control();
    for _ in 0..3 {
        control.result(&add("one", ""));
        let adding = {
            let (mut control, add) = (daemon.control(), add("two", r#", "bitmaps": ["bb"]"#));
            std::thread::spawn(move || control.say(&add))
        };
        std::thread::sleep(Duration::from_millis(20));
        other.result(&remove("one"));
        let added = adding.join().unwrap();
        assert!(added.get("result").is_some(), "{added}");
        assert_eq!(control.result(&remove("two"))["closed"], true);
    }
    daemon.finish();
}
