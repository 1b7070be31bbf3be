//! One disk, handed out in all three ways at once.

use std::io::Write;
use std::os::unix::fs::FileExt;

use cowl_testkit::are_installed;

use crate::daemon::{Daemon, images, program};

#[test]
fn clients_of_every_kind_see_each_others_writes() {
    if !are_installed(&["qemu-io", "nbdinfo"]) || !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("SKIP: a client or /dev/fuse is missing; nothing was served in all three ways");
        return;
    }
    let folder = images();
    std::fs::write(folder.path().join("file"), b"").unwrap();
    let export = "image=disk.qcow2,name=d,vhost-user=vhost,queues=2,serial=s1,fuse=file";
    let daemon = Daemon::start_in(folder, &["--control", "control", "--export", export]);
    let file = daemon.path().join("file");
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 64 << 20);
    program(daemon.path(), "qemu-io", &["-f", "raw", "-c", "write -P 7 1M 64k", &daemon.uri("d")]);
    let opened = std::fs::File::options().read(true).write(true).open(&file).unwrap();
    let mut bytes = [0; 65536];
    opened.read_exact_at(&mut bytes, 1 << 20).unwrap();
    assert!(bytes.iter().all(|&byte| byte == 7));
    opened.write_all_at(&[9; 4096], 8 << 20).unwrap();
    opened.sync_all().unwrap();
    drop(opened);
    program(daemon.path(), "qemu-io", &["-f", "raw", "-c", "read -P 9 8M 4k", &daemon.uri("d")]);
    // A front-end that says nothing does no harm.
    let mut idle = std::os::unix::net::UnixStream::connect(daemon.path().join("vhost")).unwrap();
    idle.write_all(&[0]).unwrap();
    let mut control = daemon.control();
    let refusal = control.refusal(r#"{"command": "remove-export", "export": "d", "force": true}"#);
    assert!(refusal.contains("stays until the daemon ends"), "{refusal}");
    control.result(r#"{"command": "resize", "export": "d", "size": 100663296}"#);
    assert_eq!(std::fs::metadata(&file).unwrap().len(), 96 << 20);
    drop(idle);
    let folder = daemon.finish();
    assert_eq!(std::fs::metadata(folder.path().join("file")).unwrap().len(), 0);
    assert!(!folder.path().join("vhost").exists());
    let read = ["-c", "read -P 7 1M 64k", "-c", "read -P 9 8M 4k", "disk.qcow2"];
    program(folder.path(), "qemu-io", &read);
}
