//! A virtual machine: a Debian kernel with busybox, under qemu without hardware help.
//!
//! The kernel is taken from an unpacked package (`COWL_GUEST_KERNEL`, or `guest-kernel` in the
//! target folder, where `.ci/run` puts it); everything else from this machine.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// Modules in the order in which they need each other.
const MODULES: [&str; 6] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
];

/// Seconds after which a machine is given up.
const PATIENCE: &str = "300";

/// What runs first: makes the usual mounts, loads the modules, then does what the test wants.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/tools:/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
while read -r module; do insmod "/modules/$module.ko"; done < /modules/order
for wait in 1 2 3 4 5 6 7 8 9 10; do [ -b /dev/vda ] || sleep 0.2; done
sh -e /command </dev/null 2>&1
echo "GUEST ENDED $?"
poweroff -f
"#;

/// What a guest is made of.
pub(crate) struct Kit {
    kernel: PathBuf,
    modules: PathBuf,
    busybox: PathBuf,
    mkfs: PathBuf,
}

impl Kit {
    /// `None`, loudly, where something is missing; `COWL_REQUIRE_GUEST=1` makes that a failure.
    pub(crate) fn find() -> Option<Self> {
        let required = std::env::var_os("COWL_REQUIRE_GUEST").is_some_and(|value| value == "1");
        match Self::look() {
            Ok(kit) => Some(kit),
            Err(missing) => {
                assert!(!required, "COWL_REQUIRE_GUEST=1 but there is no {missing}");
                eprintln!("SKIPPED: no {missing}; no virtual machine was started");
                None
            }
        }
    }

    fn look() -> Result<Self, String> {
        program("qemu-system-x86_64")?;
        program("timeout")?;
        let root = kernel_folder();
        let boot = root.join("boot");
        let is_kernel = |path: &PathBuf| name_of(path).starts_with("vmlinuz-");
        let kernel = entries(&boot).into_iter().find(is_kernel);
        let kernel = kernel.ok_or(format!("kernel in {}", boot.display()))?;
        let release = name_of(&kernel).trim_start_matches("vmlinuz-").to_owned();
        let modules = ["lib/modules", "usr/lib/modules"]
            .map(|folder| root.join(folder).join(&release).join("kernel/drivers"));
        let modules = modules.into_iter().find(|folder| folder.is_dir());
        let modules = modules.ok_or(format!("modules of {release} in {}", root.display()))?;
        let (busybox, mkfs) = (program("busybox")?, program("mke2fs")?);
        if !libraries(&busybox).is_empty() {
            return Err("busybox without libraries (busybox-static)".to_owned());
        }
        Ok(Self { kernel, modules, busybox, mkfs })
    }

    /// The files of the guest as an archive that a kernel unpacks.
    fn initial_files(&self, command: &str) -> Vec<u8> {
        let mut archive = Archive::default();
        for folder in ["bin", "dev", "proc", "sys", "mnt", "tools", "modules"] {
            archive.folder(folder);
        }
        archive.file("init", 0o755, INIT.as_bytes());
        archive.file("command", 0o644, command.as_bytes());
        archive.file("bin/busybox", 0o755, &fs::read(&self.busybox).unwrap());
        archive.file("tools/mkfs.ext4", 0o755, &fs::read(&self.mkfs).unwrap());
        for library in libraries(&self.mkfs) {
            archive.file_in_folders(&library);
        }
        for module in MODULES {
            let path = find_file(&self.modules, &format!("{module}.ko")).unwrap();
            archive.file(&format!("modules/{module}.ko"), 0o644, &fs::read(path).unwrap());
        }
        archive.file("modules/order", 0o644, format!("{}\n", MODULES.join("\n")).as_bytes());
        archive.end()
    }

    /// Starts a machine with the disk that is served at `socket`.
    pub(crate) fn start(&self, folder: &Path, socket: &Path, command: &str) -> Machine {
        let files = folder.join("initrd");
        fs::write(&files, self.initial_files(command)).unwrap();
        let chardev = format!("socket,id=disk,path={},reconnect-ms=100", socket.display());
        // A guest whose disk does not answer would wait for ever.
        let mut qemu = Command::new("timeout");
        qemu.args([PATIENCE, "qemu-system-x86_64"])
            .args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-machine", "q35,memory-backend=memory", "-accel", "tcg,thread=multi"])
            .args(["-cpu", "max", "-m", "256", "-smp", "2", "-serial", "stdio", "-nic", "none"])
            .args(["-object", "memory-backend-memfd,id=memory,size=256M,share=on"])
            .args(["-chardev", &chardev])
            .args(["-device", "vhost-user-blk-pci,chardev=disk,num-queues=2"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&files)
            .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off rdinit=/init"])
            .stdin(Stdio::null())
            // It tells of each server that goes away.
            .stderr(Stdio::null())
            .stdout(Stdio::piped());
        let mut qemu = qemu.spawn().unwrap();
        let console = BufReader::new(qemu.stdout.take().unwrap());
        Machine { qemu, console, seen: Vec::new() }
    }
}

/// A running machine; it is switched off when dropped.
pub(crate) struct Machine {
    qemu: Child,
    console: BufReader<std::process::ChildStdout>,
    seen: Vec<String>,
}

impl Machine {
    /// Reads the console up to a line that contains `mark`.
    pub(crate) fn await_line(&mut self, mark: &str) -> String {
        loop {
            let mut line = Vec::new();
            let count = self.console.read_until(b'\n', &mut line).unwrap();
            let line = String::from_utf8_lossy(&line).trim().to_owned();
            assert_ne!(count, 0, "the machine ended before {mark:?}:\n{}", self.seen.join("\n"));
            self.seen.push(line.clone());
            if line.contains(mark) {
                return line;
            }
        }
    }

    /// Waits until the command has ended well and the machine is off.
    pub(crate) fn finish(mut self) {
        let line = self.await_line("GUEST ENDED");
        assert!(line.ends_with("GUEST ENDED 0"), "{}", self.seen.join("\n"));
        assert!(self.qemu.wait().unwrap().success());
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // To `timeout`, which hands it on.
        let pid = rustix::process::Pid::from_child(&self.qemu);
        let _ended = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ended = self.qemu.wait();
    }
}

fn kernel_folder() -> PathBuf {
    if let Some(folder) = std::env::var_os("COWL_GUEST_KERNEL") {
        return folder.into();
    }
    // The test lies in TARGET/PROFILE/deps.
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(3).unwrap().join("guest-kernel")
}

fn program(name: &str) -> Result<PathBuf, String> {
    let folders =
        ["/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(|folder| Path::new(folder).join(name));
    folders.into_iter().find(|path| path.is_file()).ok_or(name.to_owned())
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> =
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn find_file(folder: &Path, name: &str) -> Option<PathBuf> {
    entries(folder).into_iter().find_map(|path| match path.is_dir() {
        true => find_file(&path, name),
        false => (name_of(&path) == name).then_some(path),
    })
}

/// The libraries that a program loads, and what loads them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let path =
        |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    text.lines().filter_map(path).collect()
}

/// A cpio archive ("newc"), as the kernel wants it.
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    count: u32,
    folders: BTreeSet<PathBuf>,
}

impl Archive {
    fn folder(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[]);
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entry(name, 0o100_000 | mode, content);
    }

    /// A file under its own path, with the folders that lead to it.
    fn file_in_folders(&mut self, path: &Path) {
        let relative = path.strip_prefix("/").unwrap();
        let folders: Vec<_> = relative.ancestors().skip(1).collect();
        for folder in folders.into_iter().rev().filter(|folder| !folder.as_os_str().is_empty()) {
            if self.folders.insert(folder.to_owned()) {
                self.folder(&folder.to_string_lossy());
            }
        }
        self.file(&relative.to_string_lossy(), 0o755, &fs::read(path).unwrap());
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.count += 1;
        let name_length = name.len() as u32 + 1;
        let length = content.len() as u32;
        let fields = [self.count, mode, 0, 0, 1, 0, length, 0, 0, 0, 0, name_length, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn end(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }
}
