//! TLS on a connection: rustls fed with bytes, as the rest of the protocol is.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};

use crate::protocol::handshake::TlsPolicy;

/// TLS of a server.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificates, keys and ciphers.
    pub config: Arc<ServerConfig>,
    /// Whether clients may stay without it.
    pub policy: TlsPolicy,
}

/// Why certificates are of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of the kind.
    #[error("'{}': {source}", path.display())]
    Pem {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// Certificates and key do not go together, or are not accepted.
    #[error(transparent)]
    Config(#[from] rustls::Error),
    /// The authorities of the clients are not accepted.
    #[error(transparent)]
    ClientAuthority(#[from] rustls::server::VerifierBuilderError),
}

impl Tls {
    /// Reads PEM files: the server's certificate chain and key; with `client_authority`, clients
    /// have to show a certificate that one of those in it has signed.
    pub fn from_files(
        certificates: &Path,
        key: &Path,
        client_authority: Option<&Path>,
        policy: TlsPolicy,
    ) -> Result<Self, TlsError> {
        let chain = read_certificates(certificates)?;
        let key = PrivateKeyDer::from_pem_file(key)
            .map_err(|source| TlsError::Pem { path: key.to_owned(), source })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let builder = match client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in read_certificates(path)? {
                    roots.add(certificate)?;
                }
                let roots = Arc::new(roots);
                let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
                builder.with_client_cert_verifier(verifier.build()?)
            }
        };
        let config = Arc::new(builder.with_single_cert(chain, key)?);
        Ok(Self { config, policy })
    }
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let fail = |source| TlsError::Pem { path: path.to_owned(), source };
    let certificates = CertificateDer::pem_file_iter(path).map_err(fail)?;
    let chain = certificates.collect::<Result<Vec<_>, _>>().map_err(fail)?;
    match chain.is_empty() {
        true => Err(fail(rustls::pki_types::pem::Error::NoItemsFound)),
        false => Ok(chain),
    }
}

/// The cipher state of one connection, used by its receiving and its sending side in turns.
pub(crate) struct Cipher(RefCell<ServerConnection>);

impl Cipher {
    pub(crate) fn new(tls: &Tls) -> io::Result<Self> {
        let connection = ServerConnection::new(Arc::clone(&tls.config));
        let mut connection = connection.map_err(io::Error::other)?;
        // What is sealed is taken at once.
        connection.set_buffer_limit(None);
        Ok(Self(RefCell::new(connection)))
    }

    pub(crate) fn is_shaking_hands(&self) -> bool {
        self.0.borrow().is_handshaking()
    }

    /// Takes received bytes off the front of `sealed`. An alert for the client may be waiting
    /// after an error, too.
    pub(crate) fn absorb(&self, sealed: &mut &[u8]) -> io::Result<()> {
        let mut connection = self.0.borrow_mut();
        connection.read_tls(sealed)?;
        let outcome = connection.process_new_packets();
        outcome.map(drop).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Moves opened bytes to `plain`. `None` when more has to be received first; zero when the
    /// client has said goodbye.
    pub(crate) fn open(&self, plain: &mut [u8]) -> io::Result<Option<usize>> {
        match self.0.borrow_mut().reader().read(plain) {
            Ok(count) => Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Seals `plain` behind whatever else waits to be sent.
    pub(crate) fn seal(&self, plain: &[u8], sealed: &mut Vec<u8>) -> io::Result<()> {
        self.0.borrow_mut().writer().write_all(plain)?;
        self.take_waiting(sealed)
    }

    /// Takes what the protocol itself wants to send.
    pub(crate) fn take_waiting(&self, sealed: &mut Vec<u8>) -> io::Result<()> {
        let mut connection = self.0.borrow_mut();
        while connection.wants_write() {
            connection.write_tls(sealed)?;
        }
        Ok(())
    }

    /// Says goodbye, so that the client can tell the end from a cut.
    pub(crate) fn say_goodbye(&self, sealed: &mut Vec<u8>) -> io::Result<()> {
        self.0.borrow_mut().send_close_notify();
        self.take_waiting(sealed)
    }
}
