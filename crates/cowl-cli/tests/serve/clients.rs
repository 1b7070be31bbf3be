//! Real clients: libnbd's tools, qemu's, fio.

use cowl_testkit::are_installed;

use crate::daemon::{Daemon, images, program};

#[test]
fn nbdinfo_sees_every_image_under_its_file_name() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    let daemon = Daemon::start(&["disk.qcow2", "disk.raw"]);
    assert_eq!(daemon.announced.len(), 1);
    let list = program(daemon.path(), "nbdinfo", &["--list", "--json", &daemon.uri("")]);
    let list: serde_json::Value = serde_json::from_str(&list).unwrap();
    let exports = list["exports"].as_array().unwrap();
    let names: Vec<_> = exports.iter().map(|export| export["export-name"].as_str()).collect();
    assert_eq!(names, [Some("disk.qcow2"), Some("disk.raw")]);
    assert_eq!(exports[0]["export-size"], 64 << 20);
    assert_eq!(exports[1]["export-size"], 16 << 20);
    assert_eq!(exports[0]["can_multi_conn"], true);
    daemon.finish();
}

#[test]
fn nbdcopy_copies_both_ways() {
    if !are_installed(&["nbdcopy"]) {
        return;
    }
    let folder = images();
    program(folder.path(), "sh", &["-c", "head -c 40M /dev/urandom > in; truncate -s 64M in"]);
    let daemon = Daemon::start_in(folder, &["disk.qcow2"]);
    daemon.client("nbdcopy", &["in", "URI"]);
    daemon.client("nbdcopy", &["URI", "out"]);
    daemon.client("cmp", &["in", "out"]);
    let folder = daemon.finish();
    program(folder.path(), "qemu-img", &["compare", "-f", "raw", "in", "disk.qcow2"]);
}

#[test]
fn qemu_writes_and_reads_and_converts() {
    if !are_installed(&["qemu-io"]) {
        return;
    }
    let daemon = Daemon::start(&["disk.qcow2"]);
    let commands = [
        "write -P 7 1M 64k",
        "write -z -u 2M 1M",
        "discard 4M 1M",
        "writev -f -P 9 8M 4k",
        "read -P 7 1M 64k",
        "read -P 9 8M 4k",
        "read -P 0 2M 3M",
        "flush",
    ];
    let mut arguments = vec!["-f", "raw"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command]));
    arguments.push("URI");
    daemon.client("qemu-io", &arguments);
    daemon.client("qemu-img", &["convert", "-f", "raw", "-O", "raw", "URI", "out"]);
    let folder = daemon.finish();
    program(folder.path(), "qemu-img", &["compare", "-f", "raw", "out", "disk.qcow2"]);
}

#[test]
fn fio_verifies_what_it_wrote_over_several_connections() {
    if !are_installed(&["fio"]) {
        return;
    }
    let daemon = Daemon::start(&["--threads=2", "disk.qcow2"]);
    let uri = format!("--uri={}", daemon.uri(""));
    let common = ["--ioengine=nbd", &uri, "--bs=4k", "--iodepth=16"];
    let write =
        ["--name=w", "--rw=randwrite", "--size=16m", "--numjobs=4", "--offset_increment=16m"];
    let verify = ["--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--verify_state_save=0"];
    daemon.client("fio", &[&common[..], &write, &verify].concat());
    let mixed = ["--name=m", "--rw=randrw", "--size=32m", "--numjobs=2", "--fsync=32"];
    daemon.client("fio", &[&common[..], &mixed].concat());
    daemon.finish();
}

#[test]
fn nbdsh_gets_the_right_numbers_of_errors() {
    if !are_installed(&["nbdsh"]) {
        return;
    }
    let daemon = Daemon::start(&["--export", "image=disk.qcow2,name=rw", "-r", "disk.raw"]);
    drop(daemon);
    let daemon = Daemon::start(&[
        "--export",
        "image=disk.qcow2,name=rw",
        "--export",
        "image=disk.raw,format=raw,name=ro,read-only=on",
    ]);
    let script = "
import errno
h.set_strict_mode(0)
def errno_of(call):
    try:
        call()
    except nbd.Error as error:
        return error.errnum
size = h.get_size()
if h.is_read_only():
    assert errno_of(lambda: h.pwrite(b'x' * 512, 0)) == errno.EPERM
    assert errno_of(lambda: h.trim(512, 0)) == errno.EPERM
    assert errno_of(lambda: h.zero(512, 0)) == errno.EPERM
else:
    assert errno_of(lambda: h.pwrite(b'x' * 512, size)) == errno.ENOSPC
    h.pwrite(b'x' * 512, 0)
    h.zero(4096, 65536, nbd.CMD_FLAG_NO_HOLE)
    h.flush()
assert errno_of(lambda: h.pread(512, size)) == errno.EINVAL
";
    for export in ["rw", "ro"] {
        program(daemon.path(), "nbdsh", &["-u", &daemon.uri(export), "-c", script]);
    }
    daemon.finish();
}

#[test]
fn a_back_end_says_what_it_is_as_the_conventions_ask() {
    let output = program(
        std::path::Path::new("/"),
        env!("CARGO_BIN_EXE_cowl"),
        &["serve", "--print-capabilities"],
    );
    let said: serde_json::Value = serde_json::from_str(&output).unwrap();
    assert_eq!(said["type"], "block");
}
