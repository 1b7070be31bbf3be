//! Certificates for tests of TLS.

use std::path::Path;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// Writes an authority and a certificate for each side into `folder`, under the names that libnbd
/// and QEMU look for: `ca-cert.pem`, `server-cert.pem`, `server-key.pem` and the client's.
pub fn write_certificates(folder: &Path) {
    let key = || KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, key()).expect("an authority");
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    };
    write("ca-cert.pem", authority.pem());
    for side in ["server", "client"] {
        let key = key();
        let params = CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &authority).expect("a certificate");
        write(&format!("{side}-cert.pem"), certificate.pem());
        write(&format!("{side}-key.pem"), key.serialize_pem());
    }
}
