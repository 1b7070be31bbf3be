//! Where NBD clients arrive.

use std::fmt;
use std::path::PathBuf;

use cowl_serve::Listener;

use crate::disk::system_words;
use crate::failure::{Failure, Kind};

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A unix socket.
    Unix(PathBuf),
    /// A TCP port of a host's address, both as typed.
    Tcp { host: String, port: String },
    /// The sockets that a service manager hands over.
    Inherited,
}

impl Address {
    /// Listens.
    pub(crate) fn bind(&self) -> Result<Vec<Listener>, Failure> {
        let fail = |to: &str, error: &std::io::Error| {
            let message = format!("Failed to bind socket{to}: {}", system_words(error));
            Failure::new(Kind::Open, message)
        };
        match self {
            Self::Unix(path) => match Listener::bind_unix(path) {
                Ok(listener) => Ok(vec![listener]),
                Err(error) => Err(fail(&format!(" to {}", path.display()), &error)),
            },
            Self::Tcp { host, port } => {
                let Ok(port) = port.parse::<u16>() else {
                    return Err(Failure::usage(format!(
                        "address resolution failed for {host}:{port}: Servname not supported for \
                         ai_socktype"
                    )));
                };
                let listener = Listener::bind_tcp((host.as_str(), port));
                listener.map(|listener| vec![listener]).map_err(|error| fail("", &error))
            }
            Self::Inherited => match Listener::inherited() {
                Ok(listeners) if listeners.is_empty() => {
                    let message = "No sockets were handed over: LISTEN_FDS and LISTEN_PID are not \
                                   those of a service manager";
                    Err(Failure::new(Kind::Open, message))
                }
                outcome => outcome.map_err(|error| fail("s handed over", &error)),
            },
        }
    }

    /// The address at which `listeners`, bound at this one, are found.
    pub(crate) fn found_at(&self, listeners: &[Listener]) -> Self {
        let port = listeners.first().and_then(Listener::tcp_port);
        match (self, port) {
            (Self::Tcp { host, .. }, Some(port)) => {
                Self::Tcp { host: host.clone(), port: port.to_string() }
            }
            _ => self.clone(),
        }
    }

    /// The file that is to be removed at the end.
    pub(crate) fn file(&self) -> Option<&PathBuf> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp { .. } | Self::Inherited => None,
        }
    }
}

/// As the start of a URI; the export's name follows.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "nbd+unix:///?socket={}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "nbd://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "nbd://{host}:{port}"),
            Self::Inherited => f.write_str("the sockets handed over"),
        }
    }
}
