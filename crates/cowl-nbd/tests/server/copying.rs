//! libnbd's and QEMU's clients copy images both ways, and everybody has the same bytes.

use cowl_nbd::{Export, Listener, ServerOptions};

use crate::serving::{Serving, client, sample_raw, whole};
use cowl_testkit::are_installed;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 40 * MIB;

#[test]
fn nbdinfo_sees_what_the_server_can() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    let serving = Serving::with(SIZE, ServerOptions::standard(), |disk| {
        let text = "a disk for everybody".to_owned();
        let name = "fixed".to_owned();
        vec![
            Export { description: text, name: "disk".to_owned(), ..whole(disk) },
            Export { read_only: true, name, ..whole(disk) },
        ]
    });
    let json = |export: &str| -> serde_json::Value {
        let text = client(serving.path(), "nbdinfo", &["--json", &serving.uri(export)]);
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["exports"][0].clone()
    };
    let disk = json("disk");
    assert_eq!(disk["description"], "a disk for everybody");
    assert_eq!(disk["export-size"], SIZE);
    for fact in ["can_multi_conn", "can_df", "can_fast_zero", "can_fua", "can_trim", "can_cache"] {
        assert_eq!(disk[fact], true, "{fact}");
    }
    assert_eq!(disk["contexts"], serde_json::json!(["base:allocation", "qemu:allocation-depth"]));
    assert_eq!(json("fixed")["is_read_only"], true);
    // The first export serves clients that name none.
    assert_eq!(json("")["is_read_only"], false);
    let list = client(serving.path(), "nbdinfo", &["--list", &serving.uri("")]);
    assert!(list.contains("export=\"disk\"") && list.contains("export=\"fixed\""), "{list}");
    serving.finish();
}

#[test]
fn nbdcopy_brings_an_image_in_and_out() {
    if !are_installed(&["nbdcopy"]) {
        return;
    }
    let serving = Serving::new_image(SIZE);
    sample_raw(&serving.path().join("in.raw"), SIZE);
    let uri = serving.uri("");
    client(serving.path(), "nbdcopy", &["--flush", "in.raw", &uri]);
    client(serving.path(), "nbdcopy", &[&uri, "out.raw"]);
    client(serving.path(), "cmp", &["in.raw", "out.raw"]);
    let folder = serving.finish();
    client(folder.path(), "qemu-img", &["compare", "-f", "qcow2", "disk.qcow2", "in.raw"]);
}

#[test]
fn qemu_img_converts_both_ways() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(SIZE);
    sample_raw(&serving.path().join("in.raw"), SIZE);
    let uri = serving.uri("");
    let into = ["convert", "-n", "-f", "raw", "-O", "raw", "in.raw", &uri];
    client(serving.path(), "qemu-img", &into);
    let out = ["convert", "-f", "raw", "-O", "qcow2", &uri, "out.qcow2"];
    client(serving.path(), "qemu-img", &out);
    client(serving.path(), "qemu-img", &["compare", "-F", "raw", "out.qcow2", "in.raw"]);
    let folder = serving.finish();
    client(folder.path(), "qemu-img", &["compare", "-f", "qcow2", "disk.qcow2", "in.raw"]);
}

#[test]
fn qemu_io_changes_a_disk_in_every_way() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(SIZE);
    let uri = serving.uri("");
    let commands = [
        "write -P 7 1M 64k",
        "read -P 7 1M 64k",
        "write -f -P 8 1048577 511",
        "read -P 8 1048577 511",
        "read -P 7 1M 1",
        "write -z 1M 32k",
        "read -P 0 1M 32k",
        "read -P 7 1081344 32k",
        "write -z -u 1M 64k",
        "read -P 0 1M 64k",
        "write -P 9 2M 3M",
        "discard 3M 1M",
        "read -P 9 2M 1M",
        "aio_write -P 5 8M 8M",
        "aio_read 16M 8M",
        "aio_flush",
        "flush",
        "read -P 5 8M 8M",
    ];
    let mut arguments = vec!["-f", "raw"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(&uri);
    let said = client(serving.path(), "qemu-io", &arguments);
    assert!(!said.contains("failed"), "{said}");
    serving.finish();
}

#[test]
fn nbdsh_drives_the_rarer_commands() {
    if !are_installed(&["nbdsh"]) {
        return;
    }
    let serving = Serving::new_image(SIZE);
    let script = "\
h.pwrite(b'x' * 512, 4096, nbd.CMD_FLAG_FUA)
h.zero(65536, 65536, nbd.CMD_FLAG_NO_HOLE)
h.zero(65536, 262144, nbd.CMD_FLAG_FAST_ZERO)
h.cache(1048576, 0)
h.trim(65536, 0)
h.flush()
assert h.can_multi_conn()
assert h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
def fails(what, errno):
    try:
        what()
    except nbd.Error as error:
        assert error.errno == errno, error.errno
    else:
        raise AssertionError(errno)
h.set_strict_mode(0)
fails(lambda: h.pwrite(b'x' * 512, h.get_size()), 'ENOSPC')
fails(lambda: h.pread(512, h.get_size()), 'EINVAL')
";
    client(serving.path(), "nbdsh", &["-u", &serving.uri(""), "-c", script]);
    serving.finish();
}

#[test]
fn tcp_clients_are_served_too() {
    if !are_installed(&["nbdcopy"]) {
        return;
    }
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let folder = tempfile::tempdir().unwrap();
    let create = ["create", "-f", "qcow2", "disk.qcow2", "40M"];
    client(folder.path(), "qemu-img", &create);
    sample_raw(&folder.path().join("in.raw"), SIZE);
    let serving = Serving::listening(
        folder,
        vec![Listener::from(socket)],
        ServerOptions::standard(),
        |disk| vec![whole(disk)],
    );
    let uri = format!("nbd://127.0.0.1:{port}");
    client(serving.path(), "nbdcopy", &["in.raw", &uri]);
    client(serving.path(), "nbdcopy", &[&uri, "out.raw"]);
    client(serving.path(), "cmp", &["in.raw", "out.raw"]);
    serving.finish();
}
