//! `nbd://HOST[:PORT][/EXPORT]` and `nbd+unix:///[EXPORT]?socket=PATH`.

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

/// The port that is assigned to NBD.
const PORT: u16 = 10809;

/// Where an export is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NbdUri {
    /// The server.
    pub(crate) server: Server,
    /// The export's name, as bytes; empty for the default one.
    pub(crate) export: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Server {
    Tcp { host: String, port: u16 },
    Unix { path: PathBuf },
}

/// A text that is no URI of an export.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Another scheme; those with TLS are not among what is known.
    #[error("'{uri}' is no nbd:// or nbd+unix:// URI")]
    Scheme {
        /// The text.
        uri: String,
    },
    /// The server's address is missing or malformed.
    #[error("'{uri}' does not say where the server is")]
    Server {
        /// The text.
        uri: String,
    },
    /// A parameter that would be ignored.
    #[error("'{uri}' has the unknown parameter '{parameter}'")]
    Parameter {
        /// The text.
        uri: String,
        /// The parameter.
        parameter: String,
    },
}

impl NbdUri {
    /// Whether `text` means to be such a URI.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.starts_with("nbd://") || text.starts_with("nbd+unix://")
    }

    /// Takes `uri` apart.
    pub fn parse(uri: &str) -> Result<Self, UriError> {
        let (scheme, rest) = uri
            .split_once("://")
            .filter(|_| Self::is_meant(uri))
            .ok_or_else(|| UriError::Scheme { uri: uri.to_owned() })?;
        let nowhere = || UriError::Server { uri: uri.to_owned() };
        let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, export) = place.split_once('/').unwrap_or((place, ""));
        let mut socket = None;
        for part in query.split('&').filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                Some(("socket", path)) if scheme == "nbd+unix" => {
                    socket = Some(decode(path).ok_or_else(nowhere)?);
                }
                _ => {
                    let (uri, parameter) = (uri.to_owned(), part.to_owned());
                    return Err(UriError::Parameter { uri, parameter });
                }
            }
        }
        let server = match (scheme, socket) {
            ("nbd+unix", Some(path)) if authority.is_empty() => {
                Server::Unix { path: std::ffi::OsString::from_vec(path).into() }
            }
            ("nbd", None) => parse_authority(authority).ok_or_else(nowhere)?,
            _ => return Err(nowhere()),
        };
        Ok(Self { server, export: decode(export).ok_or_else(nowhere)? })
    }

    pub(crate) fn connect(&self) -> io::Result<OwnedFd> {
        match &self.server {
            Server::Unix { path } => loop {
                match UnixStream::connect(path) {
                    // A ring of the same thread interrupts calls when it has news.
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    outcome => return Ok(outcome?.into()),
                }
            },
            Server::Tcp { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port))?;
                stream.set_nodelay(true)?;
                Ok(stream.into())
            }
        }
    }
}

fn parse_authority(authority: &str) -> Option<Server> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']')?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Some(PORT), |port| port.parse().ok())?;
    (!host.is_empty()).then(|| Server::Tcp { host: host.to_owned(), port })
}

/// Resolves `%2F` and the like.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::new();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        let value = digit()? * 16 + digit()?;
        decoded.push(u8::try_from(value).ok()?);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::{NbdUri, Server, UriError};

    fn tcp(host: &str, port: u16, export: &str) -> NbdUri {
        let server = Server::Tcp { host: host.to_owned(), port };
        NbdUri { server, export: export.as_bytes().to_vec() }
    }

    #[test]
    fn hosts_ports_and_exports_are_told_apart() {
        let parse = |uri| NbdUri::parse(uri).unwrap();
        assert_eq!(parse("nbd://host"), tcp("host", 10809, ""));
        assert_eq!(parse("nbd://host:1/a%20b/c"), tcp("host", 1, "a b/c"));
        assert_eq!(parse("nbd://[::1]:2/x"), tcp("::1", 2, "x"));
        let unix = parse("nbd+unix:///x?socket=/run/a%3fb");
        let path = "/run/a?b".into();
        assert_eq!(unix, NbdUri { server: Server::Unix { path }, export: b"x".to_vec() });
    }

    #[test]
    fn what_would_be_ignored_is_refused() {
        assert!(matches!(NbdUri::parse("nbds://host"), Err(UriError::Scheme { .. })));
        assert!(matches!(
            NbdUri::parse("nbd://host?tls-certificates=/x"),
            Err(UriError::Parameter { .. })
        ));
        for uri in ["nbd:///x", "nbd://h:99999", "nbd+unix:///x", "nbd+unix://h/x?socket=y"] {
            assert!(matches!(NbdUri::parse(uri), Err(UriError::Server { .. })), "{uri}");
        }
    }
}
