//! A front-end and the driver behind it: guest memory in a memory file, rings written by hand.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};

use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserInflight, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bytes of each of the two regions.
pub(crate) const REGION_SIZE: u64 = 8 << 20;

/// Where the second one lies.
pub(crate) const HIGH: u64 = 4 << 30;

/// What the front-end's addresses are above the guest's.
const USER: u64 = 0x7000_0000_0000;

/// Entries of each queue.
pub(crate) const QUEUE_SIZE: u16 = 256;

/// Where data may be put.
pub(crate) const DATA: u64 = 0x20_0000;

/// Where headers and status bytes lie, 64 bytes for each head.
const HEADERS: u64 = 0xf_0000;

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;

pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;
/// What no server writes.
pub(crate) const UNANSWERED: u8 = 0xee;

pub(crate) const F_NEXT: u16 = 1;
pub(crate) const F_WRITE: u16 = 2;
pub(crate) const F_INDIRECT: u16 = 4;

pub(crate) const FEATURE_WCE: u64 = 1 << 11;
pub(crate) const FEATURE_FLUSH: u64 = 1 << 9;
pub(crate) const FEATURE_INDIRECT: u64 = 1 << 28;
pub(crate) const FEATURE_EVENT_IDX: u64 = 1 << 29;
pub(crate) const FEATURE_PROTOCOL: u64 = 1 << 30;
pub(crate) const FEATURE_VERSION_1: u64 = 1 << 32;

/// Milliseconds until an answer is taken for missing.
const PATIENCE: i32 = 30_000;

/// A part of a chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) at: u64,
    pub(crate) length: u32,
    pub(crate) write: bool,
}

pub(crate) fn to_read(at: u64, length: u32) -> Part {
    Part { at, length, write: false }
}

pub(crate) fn to_write(at: u64, length: u32) -> Part {
    Part { at, length, write: true }
}

/// The memory of a guest; it outlives servers and front-ends.
pub(crate) struct Guest {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) file: File,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * REGION_SIZE).unwrap();
        Self::on(file)
    }

    pub(crate) fn on(file: File) -> Self {
        let region = |guest, offset| {
            let file = FileOffset::new(file.try_clone().unwrap(), offset);
            (GuestAddress(guest), REGION_SIZE as usize, Some(file))
        };
        let regions = [region(0, 0), region(HIGH, REGION_SIZE)];
        Self { memory: GuestMemoryMmap::from_ranges_with_files(regions).unwrap(), file }
    }

    /// A guest that is in the same state, in memory of its own.
    pub(crate) fn copy(&self) -> Self {
        Self::on(copy_file(&self.file))
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
    }

    pub(crate) fn get(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    pub(crate) fn regions(&self) -> [VhostUserMemoryRegionInfo; 2] {
        let region = |guest, offset| VhostUserMemoryRegionInfo {
            guest_phys_addr: guest,
            memory_size: REGION_SIZE,
            userspace_addr: USER + guest,
            mmap_offset: offset,
            mmap_handle: self.file.as_raw_fd(),
        };
        [region(0, 0), region(HIGH, REGION_SIZE)]
    }
}

/// A file with the same bytes.
pub(crate) fn copy_file(file: &File) -> File {
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let copy = tempfile::tempfile().unwrap();
    copy.write_all_at(&bytes, 0).unwrap();
    copy
}

/// One queue as its driver sees it.
pub(crate) struct Virtqueue {
    base: u64,
    next_descriptor: u16,
    pub(crate) available: u16,
    pub(crate) used: u16,
    kicked: u16,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
    pub(crate) error: EventFd,
}

impl Virtqueue {
    /// Where the next chain begins; for drivers that have a place for each request.
    pub(crate) fn place_next(&mut self, descriptor: u16) {
        self.next_descriptor = descriptor;
    }

    pub(crate) fn new(index: u64) -> Self {
        let counter = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            base: 0x1_0000 + index * 0x1_0000,
            next_descriptor: 0,
            available: 0,
            used: 0,
            kicked: 0,
            kick: counter(),
            call: counter(),
            error: counter(),
        }
    }

    fn available_ring(&self) -> u64 {
        self.base + 0x2000
    }

    fn used_ring(&self) -> u64 {
        self.base + 0x3000
    }

    pub(crate) fn config(&self) -> VringConfigData {
        VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: USER + self.base,
            used_ring_addr: USER + self.used_ring(),
            avail_ring_addr: USER + self.available_ring(),
            log_addr: None,
        }
    }

    pub(crate) fn put_descriptor(&self, guest: &Guest, number: u16, bytes: [u8; 16]) {
        guest.put(self.base + u64::from(number) * 16, &bytes);
    }

    /// Puts `head` where the device finds it next.
    pub(crate) fn offer(&mut self, guest: &Guest, head: u16) {
        let slot = self.available_ring() + 4 + u64::from(self.available % QUEUE_SIZE) * 2;
        guest.put(slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.publish(guest, self.available);
    }

    pub(crate) fn publish(&self, guest: &Guest, index: u16) {
        let at = GuestAddress(self.available_ring() + 2);
        guest.memory.store(index.to_le(), at, Ordering::SeqCst).unwrap();
    }

    /// Asks to be called when the used ring passes `index` (event index).
    pub(crate) fn call_after(&self, guest: &Guest, index: u16) {
        guest.put(self.available_ring() + 4 + u64::from(QUEUE_SIZE) * 2, &index.to_le_bytes());
    }

    /// Asks for no calls (without event index).
    pub(crate) fn set_no_calls(&self, guest: &Guest, no_calls: bool) {
        guest.put(self.available_ring(), &u16::from(no_calls).to_le_bytes());
    }

    /// After which entry the device wants a kick (event index).
    pub(crate) fn kick_after(&self, guest: &Guest) -> u16 {
        let at = self.used_ring() + 4 + u64::from(QUEUE_SIZE) * 8;
        u16::from_le_bytes(guest.get(at, 2).try_into().unwrap())
    }

    /// Kicks where the device asked for it since the last kick (event index).
    pub(crate) fn kick_where_wanted(&mut self, guest: &Guest) {
        fence(Ordering::SeqCst);
        let wanted = self.kick_after(guest);
        let (new, old) = (self.available, self.kicked);
        if new.wrapping_sub(wanted).wrapping_sub(1) < new.wrapping_sub(old) {
            self.kick.write(1).unwrap();
        }
        self.kicked = new;
    }

    /// Writes a request and offers it; its head.
    pub(crate) fn prepare(
        &mut self,
        guest: &Guest,
        number: u32,
        sector: u64,
        data: &[Part],
    ) -> u16 {
        let slot = self.header_slot(self.next_descriptor);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&number.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        guest.put(slot, &header);
        guest.put(slot + 32, &[UNANSWERED]);
        let mut parts = vec![to_read(slot, 16)];
        parts.extend_from_slice(data);
        parts.push(to_write(slot + 32, 1));
        let head = self.write_chain(guest, &parts);
        self.offer(guest, head);
        head
    }

    fn header_slot(&self, head: u16) -> u64 {
        HEADERS + self.base + u64::from(head) * 64
    }

    pub(crate) fn status(&self, guest: &Guest, head: u16) -> u8 {
        guest.get(self.header_slot(head) + 32, 1)[0]
    }

    /// Writes a chain; its head.
    pub(crate) fn write_chain(&mut self, guest: &Guest, parts: &[Part]) -> u16 {
        let head = self.next_descriptor;
        for (index, part) in parts.iter().enumerate() {
            let number = self.next_descriptor;
            self.next_descriptor = (self.next_descriptor + 1) % QUEUE_SIZE;
            let next = (index + 1 < parts.len()).then_some(self.next_descriptor);
            self.put_descriptor(guest, number, encode(*part, next));
        }
        head
    }

    pub(crate) fn used_index(&self, guest: &Guest) -> u16 {
        let at = GuestAddress(self.used_ring() + 2);
        u16::from_le(guest.memory.load(at, Ordering::SeqCst).unwrap())
    }

    /// The next answer, if there is one: head and length.
    pub(crate) fn try_used(&mut self, guest: &Guest) -> Option<(u16, u32)> {
        if self.used_index(guest) == self.used {
            return None;
        }
        let at = self.used_ring() + 4 + u64::from(self.used % QUEUE_SIZE) * 8;
        let element = guest.get(at, 8);
        self.used = self.used.wrapping_add(1);
        let head = u32::from_le_bytes(element[..4].try_into().unwrap());
        Some((head as u16, u32::from_le_bytes(element[4..].try_into().unwrap())))
    }

    /// The next answer, for which the device has to call.
    pub(crate) fn await_used(&mut self, guest: &Guest) -> (u16, u32) {
        loop {
            if let Some(used) = self.try_used(guest) {
                return used;
            }
            self.call_after(guest, self.used);
            fence(Ordering::SeqCst);
            if self.used_index(guest) == self.used {
                await_counter(&self.call);
            }
        }
    }
}

pub(crate) fn encode(part: Part, next: Option<u16>) -> [u8; 16] {
    let flags = next.map_or(0, |_| F_NEXT) | if part.write { F_WRITE } else { 0 };
    raw_descriptor(part.at, part.length, flags, next.unwrap_or(0))
}

pub(crate) fn raw_descriptor(at: u64, length: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&at.to_le_bytes());
    bytes[8..12].copy_from_slice(&length.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}

/// Waits until a counter is rung, and takes what it counted.
pub(crate) fn await_counter(counter: &EventFd) {
    let epoll = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, counter.as_raw_fd(), event).unwrap();
    let ready = epoll.wait(PATIENCE, &mut [EpollEvent::default()]).unwrap();
    assert_eq!(ready, 1, "nobody rings");
    let _count = counter.read().unwrap();
}

/// How a front-end sets things up.
pub(crate) struct Setup {
    pub(crate) queues: u64,
    pub(crate) features: u64,
    pub(crate) inflight: Option<(VhostUserInflight, File)>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let features = FEATURE_VERSION_1 | FEATURE_PROTOCOL | FEATURE_FLUSH;
        Self { queues: 1, features, inflight: None }
    }
}

/// A front-end with its guest and its queues.
pub(crate) struct FrontEnd {
    pub(crate) frontend: Frontend,
    pub(crate) guest: Guest,
    pub(crate) queues: Vec<Virtqueue>,
}

pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::BACKEND_REQ
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::INFLIGHT_SHMFD
}

/// A conversation up to the features; every message is acknowledged.
pub(crate) fn negotiate(stream: UnixStream, queues: u64, features: u64) -> Frontend {
    let mut frontend = Frontend::from_stream(stream, queues);
    frontend.set_owner().unwrap();
    let offered = frontend.get_features().unwrap();
    assert_eq!(features & !offered, 0, "{features:#x} of {offered:#x}");
    let protocol = frontend.get_protocol_features().unwrap() & protocol_features();
    frontend.set_protocol_features(protocol).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_features(features).unwrap();
    frontend
}

impl FrontEnd {
    /// One queue, the plain features.
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self::with(stream, Setup::new())
    }

    pub(crate) fn with(stream: UnixStream, setup: Setup) -> Self {
        let queues = (0..setup.queues).map(Virtqueue::new).collect();
        Self::resume(stream, setup, Guest::new(), queues)
    }

    /// Sets up queues that may have been in use before.
    pub(crate) fn resume(
        stream: UnixStream,
        setup: Setup,
        guest: Guest,
        queues: Vec<Virtqueue>,
    ) -> Self {
        let mut frontend = negotiate(stream, setup.queues, setup.features);
        if let Some((inflight, file)) = &setup.inflight {
            frontend.set_inflight_fd(inflight, file.as_raw_fd()).unwrap();
        }
        frontend.set_mem_table(&guest.regions()).unwrap();
        let mut this = Self { frontend, guest, queues };
        for index in 0..this.queues.len() {
            let base = this.queues[index].used_index(&this.guest);
            this.start_queue(index, base);
        }
        this
    }

    pub(crate) fn start_queue(&mut self, index: usize, base: u16) {
        let queue = &self.queues[index];
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, QUEUE_SIZE).unwrap();
        frontend.set_vring_base(index, base).unwrap();
        frontend.set_vring_addr(index, &queue.config()).unwrap();
        frontend.set_vring_err(index, &queue.error).unwrap();
        frontend.set_vring_call(index, &queue.call).unwrap();
        frontend.set_vring_kick(index, &queue.kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
    }

    /// Writes a request and offers it, without a kick; its head.
    pub(crate) fn prepare(&mut self, queue: usize, number: u32, sector: u64, data: &[Part]) -> u16 {
        self.queues[queue].prepare(&self.guest, number, sector, data)
    }

    pub(crate) fn submit(&mut self, queue: usize, number: u32, sector: u64, data: &[Part]) -> u16 {
        let head = self.prepare(queue, number, sector, data);
        self.queues[queue].kick.write(1).unwrap();
        head
    }

    pub(crate) fn status(&self, queue: usize, head: u16) -> u8 {
        self.queues[queue].status(&self.guest, head)
    }

    /// The next answer of a queue: its head, its status, and how much was written.
    pub(crate) fn await_answer(&mut self, queue: usize) -> (u16, u8, u32) {
        let (head, length) = self.queues[queue].await_used(&self.guest);
        (head, self.status(queue, head), length)
    }

    /// A request from its beginning to its end on queue 0: status and bytes written.
    pub(crate) fn request(&mut self, number: u32, sector: u64, data: &[Part]) -> (u8, u32) {
        let head = self.submit(0, number, sector, data);
        let (answered, status, length) = self.await_answer(0);
        assert_eq!(answered, head);
        (status, length)
    }

    /// Offers a chain as it is on queue 0.
    pub(crate) fn submit_chain(&mut self, parts: &[Part]) -> u16 {
        let queue = &mut self.queues[0];
        let head = queue.write_chain(&self.guest, parts);
        queue.offer(&self.guest, head);
        queue.kick.write(1).unwrap();
        head
    }

    /// Waits until the server gives a queue up.
    pub(crate) fn expect_broken(&self, queue: usize) {
        await_counter(&self.queues[queue].error);
    }
}
