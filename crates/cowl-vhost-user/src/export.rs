//! Exports: a device, a socket, and what the guest is told about it.

use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use cowl_block::BlockDevice;
use rustix::net::SendFlags;

use crate::Listener;

/// Queues of one export that a front-end can use at most, whatever is asked for.
pub(crate) const QUEUES_MAX: u16 = 256;

/// Entries of one queue that a front-end can use at most: the bound of QEMU.
pub(crate) const QUEUE_SIZE_MAX: u16 = 1024;

/// A device as a disk of virtual machines, one at a time.
pub struct Export<E> {
    /// The device.
    pub device: Arc<E>,
    /// Where its front-ends connect. One is served at a time; the next when it has gone.
    pub listener: Listener,
    /// Whether changes are refused, also where the device takes them.
    pub read_only: bool,
    /// What the guest sees as the serial number; its first 20 bytes.
    pub serial: String,
    /// Queues that the front-end may use; 1 to 256. Each of them can make the server hold up to
    /// 8 MiB of copied data and as much for requests in flight.
    pub queues_max: u16,
    /// Entries that a queue may have; a power of two up to 1024.
    pub queue_size_max: u16,
    /// What the guest takes for the smallest unit of the disk, in bytes: a power of two, at least
    /// 512. Data always comes in sectors of 512 bytes.
    pub block_size: u32,
}

impl<E: BlockDevice> Export<E> {
    /// `device` at `listener`, to be changed where the device can be, with blocks of 512 bytes.
    #[must_use]
    pub fn new(device: Arc<E>, listener: Listener) -> Self {
        Self {
            device,
            listener,
            read_only: false,
            serial: String::new(),
            // As many as a guest with that many processors would use; unused ones cost nothing.
            queues_max: 64,
            queue_size_max: QUEUE_SIZE_MAX,
            block_size: 512,
        }
    }

    pub(crate) fn into_parts(self) -> (Served<E>, Listener) {
        let queues_max = self.queues_max.clamp(1, QUEUES_MAX);
        let size = self.queue_size_max.clamp(2, QUEUE_SIZE_MAX);
        // The power of two at or below it.
        let queue_size_max = 1 << size.ilog2();
        let block_size = self.block_size.clamp(512, 1 << 20).next_power_of_two();
        let export = Facts {
            device: self.device,
            read_only: self.read_only,
            serial: self.serial,
            queues_max,
            queue_size_max,
            block_size,
        };
        let served = Served { export, channel: Mutex::default(), connected: AtomicBool::default() };
        (served, self.listener)
    }
}

/// An export without its socket; every number within its limits.
pub(crate) struct Facts<E> {
    pub(crate) device: Arc<E>,
    pub(crate) read_only: bool,
    pub(crate) serial: String,
    pub(crate) queues_max: u16,
    pub(crate) queue_size_max: u16,
    pub(crate) block_size: u32,
}

/// An export while the server has it.
pub(crate) struct Served<E> {
    pub(crate) export: Facts<E>,
    /// On which the front-end of the moment hears about changes.
    pub(crate) channel: Mutex<Option<UnixStream>>,
    pub(crate) connected: AtomicBool,
}

/// CONFIG_CHANGE_MSG: number 2, version 1, no payload, no reply wanted.
const CONFIG_CHANGE: [u8; 12] = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

impl<E: BlockDevice> Served<E> {
    pub(crate) fn is_read_only(&self) -> bool {
        self.export.read_only || self.export.device.is_read_only()
    }

    pub(crate) fn set_channel(&self, channel: Option<UnixStream>) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = channel;
    }

    /// Tells the front-end, if there is one that listens, to read the configuration again.
    pub(crate) fn announce_config(&self) {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = channel.as_ref() {
            // A front-end that does not read its messages is not waited for.
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let _full_or_gone = rustix::net::send(channel, &CONFIG_CHANGE, flags);
        }
    }
}
