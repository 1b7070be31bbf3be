//! Block status: the same answers that qemu-nbd gives for the same image.

use cowl_nbd::ServerOptions;
use tempfile::TempDir;

use crate::qemu_nbd::QemuNbd;
use crate::serving::{Serving, client, whole};
use cowl_testkit::are_installed;

/// A chain of two images with data, zeros, compressed clusters and nothing, in both layers.
fn chain() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let run = |program: &str, arguments: &[&str]| {
        client(folder.path(), program, arguments);
    };
    run("qemu-img", &["create", "-f", "qcow2", "base.qcow2", "64M"]);
    run("qemu-io", &["-c", "write -P 1 0 1M", "-c", "write -P 2 8M 3M", "base.qcow2"]);
    run("qemu-io", &["-c", "write -z -u 4M 1M", "-c", "write -c -P 3 16M 64k", "base.qcow2"]);
    let over = ["create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "disk.qcow2", "64M"];
    run("qemu-img", &over);
    run("qemu-io", &["-c", "write -P 4 512k 64k", "-c", "write -z -u 9M 1M", "disk.qcow2"]);
    run("qemu-io", &["-c", "write -P 5 40M 5M", "disk.qcow2"]);
    folder
}

/// `nbdinfo --map`, without the words.
fn map(folder: &TempDir, context: &str, socket: &str) -> Vec<serde_json::Value> {
    let uri = format!("nbd+unix:///?socket={}", folder.path().join(socket).display());
    let map = format!("--map={context}");
    let text = client(folder.path(), "nbdinfo", &[&map, "--json", &uri]);
    serde_json::from_str(&text).unwrap()
}

#[test]
fn block_status_of_a_chain_is_that_of_qemu_nbd() {
    if !are_installed(&["nbdinfo", "qemu-nbd"]) {
        return;
    }
    let folder = chain();
    let contexts = ["base:allocation", "qemu:allocation-depth"];
    let theirs = {
        let _server = QemuNbd::start(folder.path(), &["-r", "-A", "-f", "qcow2", "disk.qcow2"]);
        contexts.map(|context| map(&folder, context, "qemu.socket"))
    };
    let serving = Serving::open(folder, ServerOptions::standard(), |disk| vec![whole(disk)]);
    let ours = contexts.map(|context| map(&serving.folder, context, "socket"));
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert!(5 < theirs.len());
        assert_eq!(ours, theirs);
    }
    serving.finish();
}

#[test]
fn qemu_img_maps_a_chain_as_it_does_the_file() {
    if !are_installed(&[]) {
        return;
    }
    let folder = chain();
    let zeros = |text: String| {
        let map: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let mut runs: Vec<(u64, bool)> = Vec::new();
        for run in map {
            let (length, zero) = (run["length"].as_u64().unwrap(), run["zero"] == true);
            match runs.last_mut() {
                Some(last) if last.1 == zero => last.0 += length,
                _ => runs.push((length, zero)),
            }
        }
        runs
    };
    let file = ["map", "--output=json", "-f", "qcow2", "disk.qcow2"];
    let expected = zeros(client(folder.path(), "qemu-img", &file));
    let serving = Serving::open(folder, ServerOptions::standard(), |disk| vec![whole(disk)]);
    let served = ["map", "--output=json", "-f", "raw", &serving.uri("")];
    assert_eq!(zeros(client(serving.path(), "qemu-img", &served)), expected);
    serving.finish();
}
