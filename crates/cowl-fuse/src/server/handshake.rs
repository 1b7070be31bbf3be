//! What is said before the first request.

use std::io;
use std::io::{IoSlice, IoSliceMut};

use rustix::io::Errno;

use super::{Connection, Options};
use crate::mount::MountError;
use crate::protocol::init::{self, Agreed, Init, Terms};
use crate::protocol::reply;
use crate::protocol::request::{HEADER_LENGTH, Header};

/// The opcode of the greeting.
const INIT: u32 = 26;

/// What the kernel must find room for at the least.
const GREETING_MAX: usize = 8192;

/// Smallest requests that the kernel can be bound to.
const REQUEST_MAX_MIN: u32 = 4096;

/// Largest ones: what it takes when its limit is raised.
const REQUEST_MAX_MAX: u32 = 16 << 20;

/// What is asked of the kernel.
pub(super) fn terms(options: &Options) -> Terms {
    let pages = options.request_max.clamp(REQUEST_MAX_MIN, REQUEST_MAX_MAX) / REQUEST_MAX_MIN;
    Terms { request_max: pages * REQUEST_MAX_MIN, background_max: options.background_max.max(1) }
}

impl Connection {
    /// Answers the greeting of the kernel, which it sends by itself when it mounts.
    pub(super) fn shake_hands(&self, terms: Terms) -> Result<Agreed, MountError> {
        self.try_to_shake_hands(terms).map_err(|source| MountError::Handshake { source })
    }

    fn try_to_shake_hands(&self, terms: Terms) -> io::Result<Agreed> {
        let out_of_step = |words| io::Error::new(io::ErrorKind::InvalidData, words);
        let device = self.device();
        let Some(device) = device.as_ref() else { return Err(Errno::NOTCONN.into()) };
        let mut bytes = [0; GREETING_MAX];
        let length = rustix::io::retry_on_intr(|| {
            rustix::io::readv(device, &mut [IoSliceMut::new(&mut bytes)])
        })?;
        let header = Header::decode(&bytes[..length], length).map_err(io::Error::other)?;
        if header.opcode != INIT {
            return Err(out_of_step("it does not begin with a greeting"));
        }
        let init = Init::decode(&bytes[HEADER_LENGTH..length]).map_err(io::Error::other)?;
        let Some((answer, agreed)) = init::answer(&init, terms) else {
            return Err(out_of_step("the kernel is too old"));
        };
        let head = reply::header(header.unique, 0, answer.len());
        rustix::io::retry_on_intr(|| {
            rustix::io::writev(device, &[IoSlice::new(&head), IoSlice::new(&answer)])
        })?;
        Ok(agreed)
    }
}
