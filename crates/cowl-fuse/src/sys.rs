//! The only unsafe code of the crate: one more descriptor for a FUSE connection.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Opcode, Setter, ioctl, opcode};

/// `FUSE_DEV_IOC_CLONE`: joins the connection of another descriptor, whose number is handed over.
const CLONE: Opcode = opcode::read::<u32>(229, 0);

/// Opens the device `path` as a further end of the connection that `of` is an end of. Requests that
/// one end has read are answered there.
pub(crate) fn clone_device(path: &str, of: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open(path, flags, Mode::empty())?;
    let number = u32::try_from(of.as_fd().as_raw_fd()).map_err(io::Error::other)?;
    // SAFETY: the opcode is that of FUSE_DEV_IOC_CLONE, which reads one u32 from the pointer, as
    // `Setter` passes it, although its direction bits say otherwise.
    let join = unsafe { Setter::<CLONE, u32>::new(number) };
    // SAFETY: `join` is what the operation expects; other devices refuse the number.
    unsafe { ioctl(&device, join) }?;
    Ok(device)
}
