//! The descriptors of one request, walked with suspicion.
//!
//! Everything here is written by the guest, which may change it while it is read. Each descriptor
//! is read once; what it says is checked before it is believed.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress};

use crate::memory::{Memory, Segment};

/// Descriptors of one request: twice what the configuration allows ([`SEGMENTS_MAX`]), for drivers
/// that count otherwise. What one request holds is bounded by it.
const DESCRIPTORS_MAX: usize = 512;

/// Pieces of data of one request, as the guest is told.
pub(crate) const SEGMENTS_MAX: u32 = 254;

/// Bytes of one descriptor.
const DESCRIPTOR_SIZE: u64 = 16;

/// Bytes that one request may name, for either direction. Nothing is allocated for them.
const LENGTH_MAX: usize = 1 << 30;

/// Why a request cannot even be answered: where its status would go is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChainFault {
    /// A descriptor has a number that its table does not have.
    NumberTooLarge,
    /// A descriptor does not lie in the guest's memory.
    TableOutside,
    /// More descriptors than any request has: a loop, as a rule.
    TooLong,
    /// An indirect table within another, of no whole number of descriptors, or of none.
    Indirect,
}

/// The bytes of a request, neighbours merged.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    pub(crate) readable: Vec<Segment>,
    pub(crate) writable: Vec<Segment>,
    /// Whether bytes to read came behind bytes to write, or there are too many of them.
    pub(crate) is_malformed: bool,
}

/// Where descriptors lie.
#[derive(Clone, Copy)]
struct Table {
    at: u64,
    count: u64,
}

/// Reads the chain that starts with descriptor `head`.
pub(crate) fn walk(
    memory: &Memory,
    table_at: u64,
    queue_size: u16,
    head: u16,
) -> Result<Chain, ChainFault> {
    let mut chain = Chain::default();
    let mut table = Table { at: table_at, count: u64::from(queue_size) };
    let mut is_indirect = false;
    let mut number = head;
    for _ in 0..DESCRIPTORS_MAX {
        let descriptor = read(memory, table, number)?;
        if descriptor.refers_to_indirect_table() {
            let length = u64::from(descriptor.len());
            // The last of its table, and not a table within a table.
            if is_indirect || descriptor.has_next() || !length.is_multiple_of(DESCRIPTOR_SIZE) {
                return Err(ChainFault::Indirect);
            }
            is_indirect = true;
            table = Table { at: descriptor.addr().0, count: length / DESCRIPTOR_SIZE };
            number = 0;
            continue;
        }
        chain.append(&descriptor);
        if !descriptor.has_next() {
            return Ok(chain);
        }
        number = descriptor.next();
    }
    Err(ChainFault::TooLong)
}

fn read(memory: &Memory, table: Table, number: u16) -> Result<Descriptor, ChainFault> {
    let number = u64::from(number);
    if table.count <= number {
        return Err(ChainFault::NumberTooLarge);
    }
    let at = table.at.checked_add(number * DESCRIPTOR_SIZE).ok_or(ChainFault::TableOutside)?;
    memory.guest.read_obj(GuestAddress(at)).map_err(|_| ChainFault::TableOutside)
}

impl Chain {
    fn append(&mut self, descriptor: &Descriptor) {
        let segment = Segment { at: descriptor.addr().0, length: descriptor.len() as usize };
        let list = match descriptor.is_write_only() {
            true => &mut self.writable,
            false => {
                self.is_malformed |= !self.writable.is_empty();
                &mut self.readable
            }
        };
        match list.last_mut() {
            Some(last) if last.at.checked_add(last.length as u64) == Some(segment.at) => {
                last.length = last.length.saturating_add(segment.length);
            }
            _ if segment.length == 0 => {}
            _ => list.push(segment),
        }
    }

    /// Takes the last byte to write: where the status goes.
    pub(crate) fn take_status(&mut self) -> Option<u64> {
        let last = self.writable.last_mut()?;
        last.length -= 1;
        let at = last.at.checked_add(last.length as u64);
        if last.length == 0 {
            self.writable.pop();
        }
        at
    }

    /// Takes the first bytes to read; `None` where there are fewer or they lie nowhere.
    pub(crate) fn take_head<const N: usize>(&mut self, memory: &Memory) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        memory.gather(&self.readable, 0, &mut bytes)?;
        let mut rest = N;
        let mut whole = 0;
        for segment in &mut self.readable {
            let taken = rest.min(segment.length);
            segment.at += taken as u64;
            segment.length -= taken;
            rest -= taken;
            whole += usize::from(segment.length == 0);
            if rest == 0 {
                break;
            }
        }
        self.readable.drain(..whole);
        Some(bytes)
    }
}

/// How many bytes `segments` have; `None` where it is more than a request may have, or where one
/// of them is not memory of the guest.
pub(crate) fn length_of(memory: &Memory, segments: &[Segment]) -> Option<usize> {
    let mut length = 0_usize;
    for segment in segments {
        length = length.checked_add(segment.length).filter(|&length| length <= LENGTH_MAX)?;
        if !memory.contains(*segment) {
            return None;
        }
    }
    Some(length)
}
