//! Certificates from a folder.

use std::net::TcpListener;
use std::process::Command;

use cowl_testkit::{are_installed, write_certificates};

use crate::daemon::{Daemon, images, program};

#[test]
fn clients_with_certificates_are_served_and_others_are_not() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    let folder = images();
    let pki = folder.path().join("pki");
    std::fs::create_dir(&pki).unwrap();
    write_certificates(&pki);
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let tls = ["--tls=require", "--tls-certificates=pki", "--tls-verify-peer"];
    let daemon = Daemon::start_in(folder, &[&tls[..], &["-p", &port, "disk.qcow2"]].concat());
    let secret = format!("nbds://localhost:{port}/?tls-certificates={}", pki.display());
    assert_eq!(program(daemon.path(), "nbdinfo", &["--size", &secret]).trim(), "67108864");
    let plain = format!("nbd://localhost:{port}/");
    for uri in [&plain, &daemon.uri("")] {
        let refused = Command::new("nbdinfo").args(["--size", uri]).output().unwrap();
        assert!(!refused.status.success());
    }
    daemon.finish();
}
