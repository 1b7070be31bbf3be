//! Getting a file system into the tree, and out of it again.
//!
//! Who may call `mount(2)` does; everybody else asks `fusermount3`, a program that is installed
//! with the rights for it. It does the mount and sends the descriptor of the connection back over a
//! socket, which is its standard input here.
//!
//! Invariant: nothing is unmounted but what was mounted here. A path alone does not say so, because
//! somebody else may have unmounted, and mounted something else in the same place.

use std::ffi::CString;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, statx};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::protocol::reply::Kind;
use crate::server::{Access, Sharing};

/// The device that connections begin at.
pub(crate) const DEVICE: &str = "/dev/fuse";

/// Does mounts for those who may not.
const HELPER: &str = "fusermount3";

/// Why something was not mounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The mount point is not there, or cannot be looked at.
    #[error("mount point {}: {source}", path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The mount point is neither a plain file nor a directory.
    #[error("mount point {} is neither a plain file nor a directory", path.display())]
    MountPointKind {
        /// The mount point.
        path: PathBuf,
    },
    /// The name of a file in a directory is empty, too long, or has a slash in it.
    #[error("{name:?} is no name for a file")]
    Name {
        /// The name.
        name: String,
    },
    /// The kernel has no FUSE, or not for this process.
    #[error("/dev/fuse: {source}")]
    Device {
        /// What the system said.
        source: io::Error,
    },
    /// The system refuses the mount.
    #[error("mounting at {}: {source}", path.display())]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Only the helper may mount, and it did not.
    #[error("fusermount3 does not mount at {}: {message}", path.display())]
    Helper {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        message: String,
    },
    /// The kernel did not greet as it should.
    #[error("handshake with the kernel: {source}")]
    Handshake {
        /// What went wrong.
        source: io::Error,
    },
}

/// What is to be mounted.
#[derive(Clone, Debug)]
pub(crate) struct Request<'a> {
    pub(crate) at: &'a Path,
    /// Stands for a device in the table of mounts.
    pub(crate) source: &'a str,
    pub(crate) access: Access,
    pub(crate) sharing: Sharing,
}

/// A place in the tree with a file system of ours.
#[derive(Debug)]
pub(crate) struct Mount {
    path: PathBuf,
    kind: Kind,
    /// Tells this mount from all others in the same place; `None` where the kernel cannot.
    id: Option<u64>,
}

/// How to take a file system out of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// If nobody uses it.
    Plain,
    /// In any case; whoever uses it keeps it until he is done.
    Lazy,
}

impl Mount {
    /// Mounts; the descriptor is the server's end of the connection.
    pub(crate) fn new(request: &Request<'_>) -> Result<(Self, OwnedFd), MountError> {
        let at = request.at;
        let no_mount_point = |source| MountError::MountPoint { path: at.to_owned(), source };
        // Relative paths change their meaning when the process changes its directory.
        let path = std::fs::canonicalize(at).map_err(no_mount_point)?;
        let metadata = std::fs::metadata(&path).map_err(no_mount_point)?;
        let kind = match (metadata.is_file(), metadata.is_dir()) {
            (true, _) => Kind::File,
            (_, true) => Kind::Directory,
            _ => return Err(MountError::MountPointKind { path }),
        };
        let device = match mount_directly(&path, metadata.mode(), request)? {
            Some(device) => device,
            None => mount_with_helper(&path, request)?,
        };
        let id = id_of(&path);
        Ok((Self { path, kind, id }, device))
    }

    /// What the mount point is, and so the root of the file system.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether what one sees in the place is this mount, as far as the kernel can tell.
    pub(crate) fn is_there(&self) -> bool {
        self.id.is_none() || self.id == id_of(&self.path)
    }

    /// Takes it out of the tree.
    pub(crate) fn unmount(&self, manner: Manner) -> io::Result<()> {
        if !self.is_there() {
            return Err(io::ErrorKind::NotFound.into());
        }
        let flags = match manner {
            Manner::Plain => UnmountFlags::NOFOLLOW,
            Manner::Lazy => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
        };
        match rustix::mount::unmount(&self.path, flags) {
            Err(Errno::PERM) => unmount_with_helper(&self.path, manner),
            result => Ok(result?),
        }
    }
}

/// Answered by the kernel alone: the server may be busy, or this very thread.
fn id_of(path: &Path) -> Option<u64> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::SYMLINK_NOFOLLOW;
    let status = statx(CWD, path, flags, StatxFlags::MNT_ID).ok()?;
    let is_told = status.stx_mask & StatxFlags::MNT_ID.bits() != 0;
    is_told.then_some(status.stx_mnt_id)
}

/// `None` when this process may not mount by itself.
fn mount_directly(
    path: &Path,
    mode: u32,
    request: &Request<'_>,
) -> Result<Option<OwnedFd>, MountError> {
    let device = match rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Ok(device) => device,
        Err(Errno::ACCESS | Errno::PERM) => return Ok(None),
        Err(errno) => return Err(MountError::Device { source: errno.into() }),
    };
    let mut options = format!(
        "fd={},rootmode={:o},user_id={},group_id={},default_permissions",
        device.as_raw_fd(),
        mode & 0o170_000,
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    if request.sharing != Sharing::Owner {
        options.push_str(",allow_other");
    }
    let options = CString::new(options).expect("numbers and words have no zero byte");
    let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
    if request.access == Access::ReadOnly {
        flags |= MountFlags::RDONLY;
    }
    let source: String = request.source.chars().filter(|char| *char != '\0').collect();
    match rustix::mount::mount(source, path, "fuse.cowl", flags, options.as_c_str()) {
        Ok(()) => Ok(Some(device)),
        Err(Errno::PERM) => Ok(None),
        Err(Errno::NODEV) => Err(MountError::Device { source: Errno::NODEV.into() }),
        Err(errno) => Err(MountError::Refused { path: path.to_owned(), source: errno.into() }),
    }
}

fn mount_with_helper(path: &Path, request: &Request<'_>) -> Result<OwnedFd, MountError> {
    let failed = |message: String| MountError::Helper { path: path.to_owned(), message };
    let refused = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => failed("it is not installed (package fuse3)".to_owned()),
        _ => failed(source.to_string()),
    };
    // A comma would end the option.
    let source: String = request
        .source
        .chars()
        .map(|char| if ",\\\0".contains(char) { '_' } else { char })
        .collect();
    let mut options = format!("fsname={source},subtype=cowl,nosuid,nodev,default_permissions");
    if request.access == Access::ReadOnly {
        options.push_str(",ro");
    }
    if request.sharing != Sharing::Owner {
        options.push_str(",allow_other");
    }
    let (ours, theirs) = UnixStream::pair().map_err(refused)?;
    let child = Command::new(HELPER)
        .args(["-o", &options, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", "0")
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(refused)?;
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(refused)?;
    match device {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Err(error) => Err(refused(error)),
        Ok(_) => Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// The descriptor that the helper sends; `None` when it ends without.
fn receive_descriptor(socket: &UnixStream) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut received = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    rustix::io::retry_on_intr(|| {
        let buffers = &mut [IoSliceMut::new(&mut byte)];
        rustix::net::recvmsg(socket, buffers, &mut received, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptor = received.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    Ok(descriptor)
}

fn unmount_with_helper(path: &Path, manner: Manner) -> io::Result<()> {
    let mut command = Command::new(HELPER);
    command.args(match manner {
        Manner::Plain => ["-u", "-q"].as_slice(),
        Manner::Lazy => ["-u", "-q", "-z"].as_slice(),
    });
    command.arg("--").arg(path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    match command.status()?.success() {
        true => Ok(()),
        // It says no more than that; the usual reason is somebody who uses the file.
        false => Err(Errno::BUSY.into()),
    }
}

/// Gives dirty pages of shared mappings to the server, as far as that goes.
pub(crate) fn write_back(path: &Path) {
    if let Ok(root) = std::fs::File::open(path) {
        // What fails here, fails again where somebody asks.
        rustix::fs::syncfs(root.as_fd()).ok();
    }
}
