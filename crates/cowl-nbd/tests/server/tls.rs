//! TLS: libnbd's client with certificates, and without those that it needs.

use cowl_nbd::{Listener, ServerOptions, Tls, TlsPolicy};
use tempfile::TempDir;

use crate::serving::{Serving, client, sample_raw, whole};
use cowl_testkit::{are_installed, write_certificates};

const SIZE: u64 = 40 << 20;

/// A server that demands TLS and certificates of its clients; returns its port, too.
fn serve(policy: TlsPolicy) -> (Serving, u16) {
    let folder: TempDir = tempfile::tempdir().unwrap();
    let certificates = folder.path().join("pki");
    std::fs::create_dir(&certificates).unwrap();
    write_certificates(&certificates);
    client(folder.path(), "qemu-img", &["create", "-f", "qcow2", "disk.qcow2", "40M"]);
    let tls = Tls::from_files(
        &certificates.join("server-cert.pem"),
        &certificates.join("server-key.pem"),
        Some(&certificates.join("ca-cert.pem")),
        policy,
    );
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let options = ServerOptions { tls: Some(tls.unwrap()), ..ServerOptions::standard() };
    let listeners = vec![Listener::from(socket)];
    (Serving::listening(folder, listeners, options, |disk| vec![whole(disk)]), port)
}

#[test]
fn nbdcopy_copies_both_ways_over_tls() {
    if !are_installed(&["nbdcopy"]) {
        return;
    }
    let (serving, port) = serve(TlsPolicy::Required);
    sample_raw(&serving.path().join("in.raw"), SIZE);
    let certificates = serving.path().join("pki");
    let uri = format!("nbds://localhost:{port}/?tls-certificates={}", certificates.display());
    client(serving.path(), "nbdcopy", &["in.raw", &uri]);
    client(serving.path(), "nbdcopy", &[&uri, "out.raw"]);
    client(serving.path(), "cmp", &["in.raw", "out.raw"]);
    let info = client(serving.path(), "nbdinfo", &[&uri]);
    assert!(info.contains("with TLS"), "{info}");
    serving.finish();
}

#[test]
fn who_shows_no_certificate_gets_nothing() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    let (serving, port) = serve(TlsPolicy::Required);
    let certificates = serving.path().join("pki");
    let fails = |uri: &str| {
        let mut command = std::process::Command::new("timeout");
        let output = command.args(["30", "nbdinfo", uri]).output().unwrap();
        !output.status.success() && output.status.code() != Some(124)
    };
    assert!(fails(&format!("nbd://localhost:{port}")));
    std::fs::remove_file(certificates.join("client-cert.pem")).unwrap();
    std::fs::remove_file(certificates.join("client-key.pem")).unwrap();
    let uri = format!("nbds://localhost:{port}/?tls-certificates={}", certificates.display());
    assert!(fails(&uri));
    serving.finish();
}

#[test]
fn offered_tls_is_no_must() {
    if !are_installed(&["nbdinfo"]) {
        return;
    }
    let (serving, port) = serve(TlsPolicy::Offered);
    let info = client(serving.path(), "nbdinfo", &[&format!("nbd://localhost:{port}")]);
    assert!(info.contains("without TLS"), "{info}");
    serving.finish();
}
