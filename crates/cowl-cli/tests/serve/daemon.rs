//! A serving process, and clients beside it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use tempfile::TempDir;

/// A serving process in a folder with `disk.qcow2` of 64 MiB and `disk.raw` of 16 MiB.
pub(crate) struct Daemon {
    pub(crate) folder: TempDir,
    pub(crate) child: Child,
    /// What it said when clients could come.
    pub(crate) announced: Vec<String>,
}

/// A folder with both images.
pub(crate) fn images() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    program(folder.path(), "qemu-img", &["create", "-q", "-f", "qcow2", "disk.qcow2", "64M"]);
    program(folder.path(), "qemu-img", &["create", "-q", "-f", "raw", "disk.raw", "16M"]);
    folder
}

impl Daemon {
    /// Serves at `socket`, with more arguments.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        Self::start_in(images(), arguments)
    }

    /// The same, in a folder that is there.
    pub(crate) fn start_in(folder: TempDir, arguments: &[&str]) -> Self {
        Self::start_with(folder, arguments, Stdio::inherit())
    }

    /// The same, with somebody else to read the log.
    pub(crate) fn start_with(folder: TempDir, arguments: &[&str], log: Stdio) -> Self {
        let socket = folder.path().join("socket");
        let mut child = Command::new(env!("CARGO_BIN_EXE_cowl"))
            .args(["serve", "--sandbox=require", "-k"])
            .arg(socket)
            .args(arguments)
            .current_dir(folder.path())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut announced = Vec::new();
        // The last line is about metrics where there are any, else about an export.
        let wanted = if arguments.contains(&"--metrics") { "Metrics at" } else { "Serving" };
        for line in lines.by_ref() {
            announced.push(line.unwrap());
            if announced.last().unwrap().starts_with(wanted) {
                break;
            }
        }
        assert!(!announced.is_empty(), "it ended: {:?}", child.wait());
        Self { folder, child, announced }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The URI of an export.
    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.path().join("socket").display())
    }

    /// Runs a client in the folder; `URI` stands for the default export.
    pub(crate) fn client(&self, name: &str, arguments: &[&str]) -> String {
        let uri = self.uri("");
        let arguments: Vec<_> =
            arguments.iter().map(|&word| if word == "URI" { &uri } else { word }).collect();
        program(self.path(), name, &arguments)
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: &str) {
        kill(self.child.id(), signal);
    }

    /// Ends it in order, and hands over the folder; the images have to be whole.
    pub(crate) fn finish(mut self) -> TempDir {
        self.signal("TERM");
        let status = self.child.wait().unwrap();
        assert_eq!(status.code(), Some(0));
        assert!(!self.path().join("socket").exists());
        program(self.path(), "qemu-img", &["check", "-q", "disk.qcow2"]);
        std::mem::replace(&mut self.folder, tempfile::tempdir().unwrap())
    }

    pub(crate) fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// A connection to the control socket.
    pub(crate) fn control(&self) -> Control {
        let stream = UnixStream::connect(self.path().join("control")).unwrap();
        Control { lines: BufReader::new(stream) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The control socket.
pub(crate) struct Control {
    lines: BufReader<UnixStream>,
}

impl Control {
    /// Says `command` and hears the answer.
    pub(crate) fn say(&mut self, command: &str) -> serde_json::Value {
        writeln!(self.lines.get_mut(), "{command}").unwrap();
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("{command}: {line:?}"))
    }

    /// The result of a command that has to succeed.
    pub(crate) fn result(&mut self, command: &str) -> serde_json::Value {
        let answer = self.say(command);
        answer.get("result").unwrap_or_else(|| panic!("{command}: {answer}")).clone()
    }

    /// The message of a command that has to fail.
    pub(crate) fn refusal(&mut self, command: &str) -> String {
        let answer = self.say(command);
        let message = answer.pointer("/error/message").and_then(|message| message.as_str());
        message.unwrap_or_else(|| panic!("{command}: {answer}")).to_owned()
    }
}

pub(crate) fn kill(process: u32, signal: &str) {
    let sent = Command::new("kill").args([&format!("-{signal}"), &process.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// Runs a program that has to succeed, and returns its standard output.
pub(crate) fn program(folder: &Path, name: &str, arguments: &[&str]) -> String {
    let output = Command::new("timeout")
        .args(["-k", "5", "60", name])
        .args(arguments)
        .current_dir(folder)
        // Debian's Python is the one that has the module of nbdsh.
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name} {arguments:?}: {}\n{stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}
