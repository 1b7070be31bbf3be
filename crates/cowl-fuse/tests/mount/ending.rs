//! How mounts end, and what becomes of who uses them.

use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cowl_fuse::{Ending, Server};

use crate::odd_device::OddDevice;
use crate::program::{can_mount, is_root, run};
use crate::serving::{How, Place, Serving};

const MIB: u64 = 1 << 20;

/// Waits for something that somebody else does.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if is_so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("{what} has not happened in 20 seconds");
}

#[test]
fn a_file_that_nobody_uses_is_unmounted() {
    let Some(_alone) = can_mount() else { return };
    for place in [Place::OverFile, Place::InDirectory] {
        let mut serving = Serving::new_image(MIB, How { place, ..How::PLAIN });
        serving.open().write_all_at(b"x", 0).unwrap();
        // The last close is told to the server later, and holds the mount until then.
        wait_until("the close", || run("sync", &[]).is_empty());
        serving.end();
        let ending = serving.server.ending();
        assert!(matches!(ending, Some(Ending::Unmounted | Ending::Detached)), "{ending:?}");
        serving.finish();
    }
}

#[test]
fn a_file_in_use_goes_all_the_same_and_its_user_is_told() {
    let Some(_alone) = can_mount() else { return };
    let mut serving = Serving::new_image(MIB, How::PLAIN);
    let file = serving.open();
    file.write_all_at(b"kept", 0).unwrap();
    serving.end();
    assert_eq!(serving.server.ending(), Some(Ending::Detached));
    // Not connected; or cut off, where the kernel took the write before the last end was closed.
    let errno = file.write_at(b"lost", 0).unwrap_err().raw_os_error();
    assert!([Some(107), Some(103)].contains(&errno), "{errno:?}");
    drop(file);
    let folder = serving.finish();
    let read = ["-f", "qcow2", "-c", "read -P 0x6b 0 1", "disk.qcow2"];
    let kept = cowl_testkit::run(cowl_testkit::Tool::Io, folder.path(), &read);
    assert!(!kept.stdout.contains("failed") && kept.code == 0, "{kept:?}");
}

#[test]
fn stopping_many_times_from_many_threads_ends_once() {
    let Some(_alone) = can_mount() else { return };
    let mut serving = Serving::new_image(MIB, How::PLAIN);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let server: Server<_> = serving.server.clone();
            scope.spawn(move || server.stop());
        }
    });
    serving.join();
    serving.server.stop();
    serving.finish();
}

#[test]
fn unmounting_from_outside_ends_the_server() {
    let Some(_alone) = can_mount() else { return };
    if !is_root() {
        return;
    }
    let mut serving = Serving::new_image(MIB, How::PLAIN);
    serving.open().write_all_at(b"x", 0).unwrap();
    run("umount", &[serving.file.to_str().unwrap()]);
    serving.join();
    assert_eq!(serving.server.ending(), Some(Ending::Outside));
    // What is mounted there now is not the server's.
    run("mount", &["--bind", "/dev/null", serving.file.to_str().unwrap()]);
    serving.server.stop();
    drop(serving.server.clone());
    run("umount", &[serving.file.to_str().unwrap()]);
    serving.finish();
}

#[test]
fn a_server_that_never_ran_leaves_no_mount() {
    let Some(_alone) = can_mount() else { return };
    use cowl_fuse::{Access, Export, Options, Sizing};
    let folder = tempfile::tempdir().unwrap();
    let export = Export {
        device: Arc::new(OddDevice::new(4096)),
        name: "disk.img".to_owned(),
        access: Access::ReadWrite,
        sizing: Sizing::Fixed,
    };
    let server = Server::new(export, folder.path(), Options::standard()).unwrap();
    assert_eq!(server.ending(), None);
    drop(server);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(folder.path().to_str().unwrap()));
}

#[test]
fn a_killed_caller_harms_nobody() {
    let Some(_alone) = can_mount() else { return };
    let device = Arc::new(OddDevice::new(MIB as usize));
    let folder = tempfile::tempdir().unwrap();
    let mut serving = Serving::of_device(folder, Arc::clone(&device), How::PLAIN).unwrap();
    *device.is_stuck.lock().unwrap() = true;
    let path = serving.file.to_str().unwrap();
    let callers: Vec<_> = (0..6)
        .map(|number| {
            let arguments = match number % 2 {
                0 => vec![format!("if={path}"), "of=/dev/null".into(), "iflag=direct".into()],
                _ => vec!["if=/dev/zero".into(), format!("of={path}"), "oflag=direct".into()],
            };
            let options = ["bs=64k", "count=4", "conv=notrunc"];
            let mut dd = Command::new("dd");
            dd.args(arguments).args(options).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    wait_until("a request of each caller", || 2 <= device.waiting.load(Ordering::SeqCst));
    let mut killed = callers;
    for caller in &mut killed {
        caller.kill().unwrap();
    }
    *device.is_stuck.lock().unwrap() = false;
    for caller in &mut killed {
        caller.wait().unwrap();
    }
    let file = serving.open();
    file.write_all_at(b"still there", 0).unwrap();
    let mut bytes = [0; 11];
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"still there");
    drop(file);
    serving.end();
}

#[test]
fn requests_under_way_are_answered_before_the_end() {
    let Some(_alone) = can_mount() else { return };
    let device = Arc::new(OddDevice::new(MIB as usize));
    let folder = tempfile::tempdir().unwrap();
    let mut serving = Serving::of_device(folder, Arc::clone(&device), How::PLAIN).unwrap();
    let file = serving.open();
    *device.is_stuck.lock().unwrap() = true;
    std::thread::scope(|scope| {
        let write = scope.spawn(|| file.write_at(&[1; 4096], 0));
        wait_until("the write", || device.waiting.load(Ordering::SeqCst) == 1);
        serving.server.stop();
        wait_until("the unmount", || serving.server.ending().is_some());
        *device.is_stuck.lock().unwrap() = false;
        assert_eq!(write.join().unwrap().unwrap(), 4096);
    });
    serving.join();
}
