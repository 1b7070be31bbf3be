//! The socket between `mount --unmount` and the process that serves.
//!
//! Whoever connects asks for the end. The answer comes when the image is closed: one line, `ok` or
//! what went wrong.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::about;
use super::host::{self, DISK, Folder, SOCKET, TARGET};
use crate::failure::{Failure, Kind};

const OK: &str = "ok";

/// Those who asked for the end and wait for word of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Askers {
    waiting: Arc<Mutex<Vec<UnixStream>>>,
}

impl Askers {
    /// Listens in the folder of a mount at `target`; each who connects calls `end`.
    pub(super) fn listen(
        folder: &Folder,
        target: &Path,
        end: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        let listener = UnixListener::bind(folder.join(SOCKET))?;
        fs::write(folder.join(TARGET), target.as_os_str().as_bytes())?;
        let askers = Self::default();
        let waiting = Arc::clone(&askers.waiting);
        let listen = move || {
            for asker in listener.incoming().flatten() {
                waiting.lock().unwrap_or_else(PoisonError::into_inner).push(asker);
                end();
            }
        };
        std::thread::Builder::new().name("cowl-mount-control".to_owned()).spawn(listen)?;
        Ok(askers)
    }

    /// Whether there are any.
    pub(super) fn are_waiting(&self) -> bool {
        !self.waiting.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Tells all of them how it went.
    pub(super) fn tell(&self, outcome: &Result<(), Failure>) {
        let words = match outcome {
            Ok(()) => OK.to_owned(),
            Err(failure) => failure.message.replace('\n', "; "),
        };
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for mut asker in waiting.drain(..) {
            // Who does not wait any more needs no word.
            writeln!(asker, "{words}").ok();
        }
    }
}

/// Unmounts what was mounted at `at`, and returns when its image is closed.
pub(crate) fn unmount(at: &Path) -> Result<(), Failure> {
    // A dead mount point cannot be looked at, but its parent can.
    let target = canonical(at).map_err(|error| about(at, "Could not find", &error))?;
    let socket = match find(&target) {
        Some(Found::Serving(socket)) => socket,
        Some(Found::Dead(folder)) => {
            host::unmount_dead(&target);
            host::unmount_dead(&folder.join(DISK));
            host::remove(&folder);
            let message = format!(
                "The process that served '{}' had ended without closing the image; what it left \
                 mounted is unmounted",
                at.display()
            );
            return Err(Failure::new(Kind::Io, message).about(at));
        }
        None => {
            let message = format!("Nothing is mounted at '{}' by this command", at.display());
            return Err(Failure::new(Kind::Open, message).about(at));
        }
    };
    let ask = |mut socket: UnixStream| -> io::Result<String> {
        let mut words = String::new();
        socket.read_to_string(&mut words)?;
        Ok(words)
    };
    let words = ask(socket).map_err(|error| about(at, "Could not unmount", &error))?;
    match words.trim() {
        OK => Ok(()),
        "" => {
            let message = "The serving process ended without closing the image";
            Err(Failure::new(Kind::Io, message).about(at))
        }
        words => Err(Failure::new(Kind::Io, words).about(at)),
    }
}

/// The name of a mount point without links, asking nobody who serves it.
pub(super) fn canonical(at: &Path) -> io::Result<PathBuf> {
    let Some(name) = at.file_name() else { return fs::canonicalize(at) };
    let parent = match at.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match fs::symlink_metadata(at) {
        Ok(metadata) if metadata.is_symlink() => fs::canonicalize(at),
        _ => Ok(fs::canonicalize(parent)?.join(name)),
    }
}

/// Who served `target` last.
enum Found {
    /// A process that still does.
    Serving(UnixStream),
    /// One that was killed, and left this folder.
    Dead(PathBuf),
}

fn find(target: &Path) -> Option<Found> {
    let mut dead = None;
    for entry in fs::read_dir(host::run_folder()).ok()?.flatten() {
        let folder = entry.path();
        let Ok(bytes) = fs::read(folder.join(TARGET)) else { continue };
        if bytes != target.as_os_str().as_bytes() {
            continue;
        }
        match UnixStream::connect(folder.join(SOCKET)) {
            Ok(socket) => return Some(Found::Serving(socket)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => dead = Some(folder),
            Err(_) => {}
        }
    }
    dead.map(Found::Dead)
}

#[cfg(test)]
mod tests {
    use super::canonical;

    #[test]
    fn names_are_told_without_looking_at_the_mount_point() {
        let folder = tempfile::tempdir().unwrap();
        let root = std::fs::canonicalize(folder.path()).unwrap();
        assert_eq!(canonical(&folder.path().join("missing")).unwrap(), root.join("missing"));
        std::os::unix::fs::symlink(".", folder.path().join("link")).unwrap();
        assert_eq!(canonical(&folder.path().join("link")).unwrap(), root);
        assert_eq!(canonical(&folder.path().join("link/x")).unwrap(), root.join("x"));
    }
}
