//! The program under the name `qemu-nbd`, beside the one that has it by right.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Output};

use cowl_testkit::are_installed;

use crate::daemon::{images, kill, program};

/// Gives `arguments` to the `qemu-nbd` of a search path.
fn run(path: &str, folder: &Path, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["20", "qemu-nbd"])
        .args(arguments)
        .env("PATH", path)
        .current_dir(folder)
        .output()
        .unwrap()
}

#[test]
fn wrong_command_lines_are_answered_in_the_same_words() {
    if !are_installed(&["qemu-nbd"]) {
        return;
    }
    let folder = images();
    let links = folder.path().join("links");
    std::fs::create_dir(&links).unwrap();
    symlink(env!("CARGO_BIN_EXE_cowl"), links.join("qemu-nbd")).unwrap();
    let ours = format!("{}:/usr/bin:/bin", links.display());
    let mut differences = Vec::new();
    for line in [
        "",
        "a b",
        "-z disk.qcow2",
        "--foo disk.qcow2",
        "--bind",
        "--fork -x",
        "missing",
        "-f foo disk.qcow2",
        "-e -1 disk.qcow2",
        "-e x disk.qcow2",
        "-o x disk.qcow2",
        "-o -5 disk.qcow2",
        "-o 128M disk.qcow2",
        "-k relative disk.qcow2",
        "-k /missing/socket disk.qcow2",
        "-b 1.2.3.4 disk.qcow2",
        "-p x disk.qcow2",
        "--cache=foo disk.qcow2",
        "-n --cache=none disk.qcow2",
        "--aio=foo disk.qcow2",
        "--aio=native disk.qcow2",
        "--discard=foo disk.qcow2",
        "--detect-zeroes=foo disk.qcow2",
        "--detect-zeroes=unmap disk.qcow2",
        "--handshake-limit=x disk.qcow2",
        "--handshake-limit=-1 disk.qcow2",
        "-l foo disk.qcow2",
        "--image-opts -f qcow2 file.filename=disk.qcow2",
        "-L disk.qcow2",
        "-L -D text",
        "-L -k /missing/socket",
        "-L -b 127.0.0.1 -p 1",
        "--tls-creds=x disk.qcow2",
        "--tls-creds t --object secret,id=t,data=x disk.qcow2",
        "--object tls-creds-x509,id=t,dir=/missing,endpoint=server --tls-creds t disk.qcow2",
    ] {
        let arguments: Vec<_> = line.split_whitespace().collect();
        let theirs = run("/usr/bin:/bin", folder.path(), &arguments);
        let ours = run(&ours, folder.path(), &arguments);
        if ours != theirs {
            differences.push(format!("qemu-nbd {line}\n  {theirs:?}\n  {ours:?}"));
        }
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn what_does_not_exist_here_says_why() {
    if !are_installed(&[]) {
        return;
    }
    let folder = images();
    symlink(env!("CARGO_BIN_EXE_cowl"), folder.path().join("qemu-nbd")).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    for (line, words) in [
        ("-c /dev/nbd0 disk.qcow2", "use nbd-client"),
        ("-d /dev/nbd0", "use nbd-client"),
        ("--object tls-creds-psk,id=t,dir=/tmp,endpoint=server disk.qcow2", "tls-creds-x509"),
    ] {
        let arguments: Vec<_> = line.split_whitespace().collect();
        let output = run(&path, folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(1), "{line}: {output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains(words), "{line}: {output:?}");
    }
}

#[test]
fn scripts_for_qemu_nbd_find_what_they_know() {
    if !are_installed(&["nbdinfo", "qemu-io"]) {
        return;
    }
    let folder = images();
    symlink(env!("CARGO_BIN_EXE_cowl"), folder.path().join("qemu-nbd")).unwrap();
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    let socket = folder.path().join("socket");
    let socket = socket.to_str().unwrap();
    let serve = ["--fork", "-t", "-f", "qcow2", "-k", socket, "-x", "vol", "-D", "my disk"];
    let serve = [&serve[..], &["--pid-file=pid", "disk.qcow2"]].concat();
    let started = run(&path, folder.path(), &serve);
    assert!(started.status.success(), "{started:?}");
    assert_eq!((started.stdout.len(), started.stderr.len()), (0, 0), "{started:?}");
    let uri = format!("nbd+unix:///vol?socket={socket}");
    let info = program(folder.path(), "nbdinfo", &["--json", &uri]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["exports"][0]["description"], "my disk");
    // As qemu-nbd, it ignores discards unless it is told otherwise.
    let commands = ["-c", "write -P 1 0 1M", "-c", "discard 0 1M", "-c", "read -P 1 0 1M"];
    program(folder.path(), "qemu-io", &[&["-f", "raw"], &commands[..], &[&uri]].concat());
    let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
    kill(pid.trim().parse().unwrap(), "TERM");
    while folder.path().join("socket").exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }

    // Without -t it ends with its last client.
    let started = run(&path, folder.path(), &["--fork", "-f", "qcow2", "-k", socket, "disk.qcow2"]);
    assert!(started.status.success(), "{started:?}");
    let uri = format!("nbd+unix:///?socket={socket}");
    program(folder.path(), "qemu-io", &["-f", "raw", "-c", "read -P 1 0 1M", &uri]);
    while folder.path().join("socket").exists() {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    program(folder.path(), "qemu-img", &["check", "-q", "disk.qcow2"]);
}

#[test]
fn exports_are_listed_in_the_same_words() {
    if !are_installed(&["qemu-nbd"]) {
        return;
    }
    let folder = images();
    let links = folder.path().join("links");
    std::fs::create_dir(&links).unwrap();
    symlink(env!("CARGO_BIN_EXE_cowl"), links.join("qemu-nbd")).unwrap();
    let ours = format!("{}:/usr/bin:/bin", links.display());
    program(folder.path(), "qemu-img", &["bitmap", "--add", "disk.qcow2", "b0"]);
    let socket = folder.path().join("socket");
    let socket = socket.to_str().unwrap();
    // Either lists either.
    for path in ["/usr/bin:/bin", &ours] {
        let serve = ["--fork", "-t", "-r", "-B", "b0", "-x", "vol", "-D", "my disk", "-f", "qcow2"];
        let serve = [&serve[..], &["--pid-file=pid", "-k", socket, "disk.qcow2"]].concat();
        let started = run(path, folder.path(), &serve);
        assert!(started.status.success(), "{started:?}");
        let lists =
            ["/usr/bin:/bin", &ours].map(|path| run(path, folder.path(), &["-L", "-k", socket]));
        assert!(lists[0].status.success(), "{lists:?}");
        assert_eq!(lists[0], lists[1]);
        let pid = std::fs::read_to_string(folder.path().join("pid")).unwrap();
        kill(pid.trim().parse().unwrap(), "TERM");
        while std::path::Path::new(socket).exists() {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}
