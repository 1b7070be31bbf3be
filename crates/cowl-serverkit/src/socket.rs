//! Unix sockets by their path.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the socket of a process that was killed may live on: the kernel takes its ring apart
/// afterwards, and an accept that waits there holds the socket.
const DYING: Duration = Duration::from_secs(1);
const DYING_PAUSE: Duration = Duration::from_millis(20);

/// A listening socket at `path`. A socket that is there and that nobody listens on is replaced;
/// whether that is so may take a second to show, for which this blocks. Anything else at `path` is
/// left alone, and the error is `AddrInUse`.
pub fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let until = Instant::now() + DYING;
    loop {
        match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => match is_dead(path) {
                true => std::fs::remove_file(path)?,
                false if until <= Instant::now() => return Err(error),
                false => std::thread::sleep(DYING_PAUSE),
            },
            outcome => return outcome,
        }
    }
}

/// Whether `path` is a socket that was left behind.
fn is_dead(path: &Path) -> bool {
    let is_socket =
        std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket());
    let outcome = UnixStream::connect(path);
    is_socket && outcome.is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::bind_unix;

    #[test]
    fn only_sockets_that_nobody_listens_on_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = bind_unix(&path).unwrap();
        assert_eq!(bind_unix(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
        drop(first);
        bind_unix(&path).unwrap();

        let file = folder.path().join("file");
        std::fs::write(&file, "kept").unwrap();
        assert_eq!(bind_unix(&file).unwrap_err().kind(), ErrorKind::AddrInUse);
        assert_eq!(std::fs::read(&file).unwrap(), b"kept");
    }
}
