//! Numbers and texts that both commands read.

use std::time::Duration;

use crate::failure::Failure;
use crate::number;

/// Connections at a time where nothing is said.
pub(crate) const CONNECTIONS_MAX: usize = 1024;

/// How long a client may take to choose an export, where nothing is said.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest text that the protocol carries, in bytes.
const TEXT_MAX: usize = 4096;

/// Reads a number of clients; 0 stands for the most that there can be.
pub(crate) fn connections(text: &str) -> Result<usize, Failure> {
    let count = number::count("number of clients", text, 0..=1 << 20)?;
    let count = usize::try_from(count).ok().filter(|&count| count != 0);
    Ok(count.unwrap_or(CONNECTIONS_MAX))
}

/// Reads a number of seconds; 0 stands for no limit.
pub(crate) fn handshake_limit(text: &str) -> Result<Option<Duration>, Failure> {
    let seconds = number::count("handshake limit", text, 0..=u64::from(u32::MAX))?;
    Ok((seconds != 0).then(|| Duration::from_secs(seconds)))
}

/// Refuses a text that clients could not be sent.
pub(crate) fn within_limit(what: &str, text: &str) -> Result<String, Failure> {
    if TEXT_MAX < text.len() {
        return Err(Failure::usage(format!("{what} '{text}' too long")));
    }
    Ok(text.to_owned())
}
