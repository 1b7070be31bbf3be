//! Certificates from a folder.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use cowl_testkit::are_installed;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::daemon::{Daemon, images, program};

/// Writes an authority, and a certificate for each side, under the names that everybody uses.
fn write_certificates(folder: &Path) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(folder.join("ca-cert.pem"), authority.pem()).unwrap();
    for side in ["server", "client"] {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &authority).unwrap();
        std::fs::write(folder.join(format!("{side}-cert.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{side}-key.pem")), key.serialize_pem()).unwrap();
    }
}

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
