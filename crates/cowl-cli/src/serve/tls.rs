//! Certificates in a folder, under the names that QEMU and libvirt use.

use std::path::PathBuf;

use cowl_serve::{Tls, TlsPolicy};

use crate::failure::{Failure, Kind};
use crate::option_list::OptionList;

/// A folder with `server-cert.pem`, `server-key.pem` and, to judge clients, `ca-cert.pem`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TlsFolder {
    pub(crate) path: PathBuf,
    /// Clients have to show a certificate.
    pub(crate) verifies_clients: bool,
}

impl TlsFolder {
    /// Reads what is there.
    pub(crate) fn load(&self, policy: TlsPolicy) -> Result<Tls, Failure> {
        let file = |name: &str| self.path.join(name);
        let authority = self.verifies_clients.then(|| file("ca-cert.pem"));
        let (certificate, key) = (file("server-cert.pem"), file("server-key.pem"));
        for path in authority.iter().chain([&certificate, &key]) {
            if let Err(error) = std::fs::File::open(path) {
                let reason = crate::disk::system_words(&error);
                let message = format!("Unable to access credentials {}: {reason}", path.display());
                return Err(Failure::new(Kind::Open, message).about(path));
            }
        }
        Tls::from_files(&certificate, &key, authority.as_deref(), policy)
            .map_err(|error| Failure::new(Kind::Open, format!("TLS credentials: {error}")))
    }
}

/// Credentials as QEMU's tools take them: `--object tls-creds-x509,id=ID,dir=FOLDER,...`.
pub(crate) struct TlsObject {
    /// What `--tls-creds` calls it.
    pub(crate) id: String,
    pub(crate) folder: TlsFolder,
}

impl TlsObject {
    /// Reads the definition `text`; `None` when it is of another kind.
    pub(crate) fn parse(text: &str) -> Result<Option<Self>, Failure> {
        let list = OptionList::parse(text, Some("qom-type"));
        match list.get("qom-type") {
            Some("tls-creds-x509") => {}
            Some("tls-creds-psk" | "tls-creds-anon") => {
                let kind = list.get("qom-type").unwrap_or_default();
                let message = format!(
                    "'{kind}' is not available in this version: the TLS library has certificates \
                     only; use tls-creds-x509"
                );
                return Err(Failure::new(Kind::NotAvailable, message));
            }
            _ => return Ok(None),
        }
        let mut folder = TlsFolder { path: PathBuf::new(), verifies_clients: true };
        for (key, value) in list.iter() {
            match (key, value) {
                ("qom-type" | "id" | "endpoint", _) => {}
                ("dir", path) => folder.path = path.into(),
                ("verify-peer", "on" | "yes") => folder.verifies_clients = true,
                ("verify-peer", "off" | "no") => folder.verifies_clients = false,
                ("verify-peer", _) => {
                    return Err(Failure::usage("Parameter 'verify-peer' expects 'on' or 'off'"));
                }
                _ => return Err(Failure::usage(format!("Parameter '{key}' is unexpected"))),
            }
        }
        let id = list.get("id").ok_or_else(|| Failure::usage("Parameter 'id' is missing"))?;
        if list.get("endpoint") != Some("server") {
            return Err(Failure::usage("Expecting TLS credentials with a server endpoint"));
        }
        Ok(Some(Self { id: id.to_owned(), folder }))
    }
}
