//! Exports of NBD servers in the place of files: `cowl serve` and qemu-nbd on the other side.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cowl_testkit::are_installed;
use tempfile::TempDir;

/// A server that is killed when dropped.
struct Server(Child);

impl Server {
    /// Starts `program` in `folder` and waits for the file `socket`.
    fn start(folder: &Path, program: &str, arguments: &[&str]) -> Self {
        let child = Command::new(program)
            .args(arguments)
            .current_dir(folder)
            .env("PATH", "/usr/bin:/bin")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        while !folder.join("socket").exists() {
            assert!(start.elapsed() < Duration::from_secs(30), "{program} does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self(child)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        Command::new("kill").arg(self.0.id().to_string()).status().unwrap();
        self.0.wait().unwrap();
    }
}

fn run(folder: &Path, program: &str, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["-k", "5", "60", program])
        .args(arguments)
        .current_dir(folder)
        .env("PATH", "/usr/bin:/bin")
        .output()
        .unwrap()
}

/// Runs ours, or another program, which has to succeed.
fn ok(folder: &Path, program: &str, arguments: &[&str]) -> String {
    let program = if program == "cowl" { env!("CARGO_BIN_EXE_cowl") } else { program };
    let output = run(folder, program, arguments);
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A folder with `disk.qcow2` that has some data, and `raw`, its content.
fn images() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let script = "qemu-img create -q -f qcow2 disk.qcow2 48M && \
                  qemu-io -c 'write -P 7 1M 3M' -c 'write -P 9 40M 1M' disk.qcow2 >/dev/null && \
                  qemu-img convert -O raw disk.qcow2 raw && \
                  qemu-img create -q -f qcow2 target.qcow2 48M";
    ok(folder.path(), "sh", &["-c", script]);
    folder
}

#[test]
fn exports_of_either_server_stand_for_files() {
    if !are_installed(&["qemu-nbd"]) {
        return;
    }
    let folder = images();
    let folder = folder.path();
    let socket = folder.join("socket").to_str().unwrap().to_owned();
    let uri = format!("nbd+unix:///?socket={socket}");
    let older = format!("nbd:unix:{socket}");
    let list =
        format!("driver=raw,file.driver=nbd,file.server.type=unix,file.server.path={socket}");
    let cowl = env!("CARGO_BIN_EXE_cowl");
    let ours = ["serve", "-q", "--log-level=off", "-k", &socket, "target.qcow2"];
    let theirs =
        ["-t", "-f", "qcow2", "--shared=4", "--discard=unmap", "-k", &socket, "target.qcow2"];
    for (program, arguments) in [(cowl, &ours[..]), ("qemu-nbd", &theirs[..])] {
        {
            let _server = Server::start(folder, program, arguments);
            // There: into an export that exists, data and holes.
            ok(folder, "cowl", &["convert", "-n", "-f", "raw", "-O", "raw", "raw", &uri]);
            ok(folder, "cowl", &["compare", "-f", "raw", "-F", "raw", "raw", &uri]);
            // And back, under each kind of name.
            for (index, name) in [&uri, &older].into_iter().enumerate() {
                let copy = format!("copy{index}.qcow2");
                ok(folder, "cowl", &["convert", "-f", "raw", "-O", "qcow2", name, &copy]);
                ok(folder, "qemu-img", &["compare", "disk.qcow2", &copy]);
            }
            ok(folder, "cowl", &["convert", "--image-opts", "-O", "raw", &list, "copy.raw"]);
            ok(folder, "cmp", &["raw", "copy.raw"]);
            let info = ok(folder, "cowl", &["info", "--output=json", &uri]);
            let info: serde_json::Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info["virtual-size"], 48 << 20);
            assert_eq!(info["format"], "raw");
            let map = ok(folder, "cowl", &["map", "--output=json", "-f", "raw", &uri]);
            let map: Vec<serde_json::Value> = serde_json::from_str(&map).unwrap();
            let data = map.iter().filter(|entry| entry["zero"] == false);
            assert_eq!(data.map(|entry| entry["length"].as_u64().unwrap()).sum::<u64>(), 4 << 20);
            let write = ["io", "-f", "raw", "-c", "write -P 1 0 64k", "-c", "flush", &uri];
            ok(folder, "cowl", &write);
        }
        ok(folder, "qemu-img", &["check", "-q", "target.qcow2"]);
        ok(folder, "qemu-io", &["-c", "read -P 1 0 64k", "target.qcow2"]);
    }
}

#[test]
fn an_export_is_a_backing_file_only_where_that_is_allowed() {
    if !are_installed(&["qemu-nbd"]) {
        return;
    }
    let folder = images();
    let folder = folder.path();
    let socket = folder.join("socket").to_str().unwrap().to_owned();
    let uri = format!("nbd+unix:///?socket={socket}");
    let arguments = ["-t", "-r", "-f", "qcow2", "--shared=4", "-k", &socket, "disk.qcow2"];
    let _server = Server::start(folder, "qemu-nbd", &arguments);
    // Made by qemu-img, so that the name is what everybody writes.
    ok(folder, "qemu-img", &["create", "-q", "-f", "qcow2", "-b", &uri, "-F", "raw", "top.qcow2"]);
    let compare = ["compare", "disk.qcow2", "top.qcow2"];
    let refused = run(folder, env!("CARGO_BIN_EXE_cowl"), &compare);
    assert_eq!(refused.status.code(), Some(2));
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("is no plain local file name"), "{words}");
    ok(folder, "cowl", &["compare", "--follow-nbd", "disk.qcow2", "top.qcow2"]);
    let both = ["compare", "--follow-nbd", "--untrusted", "disk.qcow2", "top.qcow2"];
    assert_eq!(run(folder, env!("CARGO_BIN_EXE_cowl"), &both).status.code(), Some(2));
    let chain = ok(folder, "cowl", &["info", "--backing-chain", "--follow-nbd", "top.qcow2"]);
    assert!(chain.contains(&format!("image: {uri}")), "{chain}");
    // What the operator names needs no permission.
    let chosen = format!(
        "json:{{'driver':'qcow2','file.filename':'top.qcow2','backing':{{'driver':'raw',\
         'file':{{'driver':'nbd','path':'{socket}'}}}}}}"
    );
    ok(folder, "cowl", &["compare", "disk.qcow2", &chosen]);
    // A file whose name looks like a URI is a file.
    let hidden = ["create", "-q", "-u", "-f", "qcow2", "-b", "file:nbd://host/x", "-F", "raw"];
    ok(folder, "qemu-img", &[&hidden[..], &["sly.qcow2", "1M"]].concat());
    let refused = run(folder, env!("CARGO_BIN_EXE_cowl"), &["compare", "sly.qcow2", "sly.qcow2"]);
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(words.contains("No such file or directory"), "{words}");
}

#[test]
fn what_cannot_be_reached_or_made_is_said() {
    if !are_installed(&[]) {
        return;
    }
    let folder = images();
    let folder = folder.path();
    let cowl = env!("CARGO_BIN_EXE_cowl");
    for (arguments, words) in [
        (&["info", "nbd+unix:///?socket=/missing"][..], "No such file or directory"),
        (&["info", "nbd://"], "does not say where the server is"),
        (&["info", "nbd+unix:///x"], "does not say where the server is"),
        (&["convert", "-O", "raw", "raw", "nbd://localhost/"], "does not support creating"),
        (&["create", "-f", "raw", "nbd://localhost/", "1M"], "does not support creating"),
        (&["dd", "if=raw", "of=nbd://localhost/"], "does not support creating"),
    ] {
        let output = run(folder, cowl, arguments);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(words), "{arguments:?}: {said}");
    }
}
