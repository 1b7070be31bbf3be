//! Sockets that a service manager hands over.

use std::os::unix::fs::symlink;
use std::path::Path;

use cowl_testkit::are_installed;

use crate::daemon::{images, program};

/// Plays the service manager: listens, and starts `argv` with so many copies of the socket. With
/// `ask` it asks whoever serves for the size of the disk, and ends it, in the background too where
/// there is a pid file; else it waits for its end.
const MANAGER: &str = r#"
import os, signal, socket, subprocess, sys, time
count, ask, argv = int(sys.argv[1]), sys.argv[2] == "ask", sys.argv[3:]
listening = socket.socket(socket.AF_UNIX)
listening.bind("handed-over")
listening.listen(5)
child = os.fork()
if child == 0:
    for number in range(count):
        os.dup2(listening.fileno(), 10 + number)
    for number in range(count):
        os.dup2(10 + number, 3 + number)
        os.set_inheritable(3 + number, True)
    os.environ["LISTEN_FDS"] = str(count)
    os.environ["LISTEN_PID"] = str(os.getpid())
    os.dup2(1, 2)
    signal.alarm(30)
    os.execv(argv[0], argv)
os.environ["PATH"] = "/usr/bin:/bin"
if ask:
    uri = "nbd+unix:///?socket=handed-over"
    print(subprocess.run(["nbdinfo", "--size", uri], capture_output=True, text=True).stdout, end="")
    pid = int(open("pid").read()) if os.path.exists("pid") else child
    os.kill(pid, signal.SIGTERM)
    while os.path.exists("pid"): time.sleep(0.01)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
os.unlink("handed-over")
print("code", code)
"#;

fn manage(folder: &Path, count: &str, ask: &str, words: &[&str]) -> String {
    let mut arguments = vec!["-c", MANAGER, count, ask];
    arguments.extend(words);
    program(folder, "python3", &arguments)
}

#[test]
fn a_socket_that_was_handed_over_is_served() {
    if !are_installed(&["nbdinfo", "python3"]) {
        return;
    }
    let folder = images();
    let cowl = env!("CARGO_BIN_EXE_cowl");
    let serve = [cowl, "serve", "-q", "--log-level=off", "--socket-activation", "disk.qcow2"];
    assert_eq!(manage(folder.path(), "1", "ask", &serve), "67108864\ncode 0\n");
    let link = folder.path().join("qemu-nbd");
    symlink(cowl, &link).unwrap();
    let link = link.to_str().unwrap();
    let both = ["-t", "-f", "qcow2", "disk.qcow2"];
    let words: Vec<_> = std::iter::once(link).chain(both).collect();
    assert_eq!(manage(folder.path(), "1", "ask", &words), "67108864\ncode 0\n");
    // Also by a process that goes to the background.
    let words = [&words[..], &["--fork", "--pid-file", "pid"]].concat();
    assert_eq!(manage(folder.path(), "1", "ask", &words), "67108864\ncode 0\n");
}

#[test]
fn as_qemu_nbd_it_refuses_the_same_words_beside_such_a_socket() {
    if !are_installed(&["qemu-nbd", "python3"]) {
        return;
    }
    let folder = images();
    let link = folder.path().join("qemu-nbd");
    symlink(env!("CARGO_BIN_EXE_cowl"), &link).unwrap();
    // Where `are_installed` looks.
    let theirs = "/usr/bin/qemu-nbd";
    for (count, words) in [
        ("1", &["-k", "/missing", "-f", "raw", "disk.raw"][..]),
        ("1", &["-b", "127.0.0.1", "-f", "raw", "disk.raw"]),
        ("1", &["-p", "1", "-f", "raw", "disk.raw"]),
        ("1", &["-p", "1", "-b", "::", "-k", "/missing", "-f", "raw", "disk.raw"]),
        ("1", &["-L"]),
        ("2", &["-f", "raw", "disk.raw"]),
    ] {
        let run = |program: &str| {
            let line: Vec<_> = std::iter::once(program).chain(words.iter().copied()).collect();
            let said = manage(folder.path(), count, "wait", &line);
            // QEMU's name is its path as called; so is ours.
            said.replace(program, "qemu-nbd")
        };
        assert_eq!(run(link.to_str().unwrap()), run(theirs), "{words:?}");
    }
}
