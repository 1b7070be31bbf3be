//! The configuration space and the features: what the guest is told about the disk.

use cowl_block::BlockDevice;
use virtio_bindings::{virtio_blk as blk, virtio_config, virtio_ring};

use crate::chain::SEGMENTS_MAX;
use crate::export::Served;
use crate::request::{RANGE_SECTORS_MAX, RANGES_MAX, SECTOR};

/// Bytes of the space; what follows the last field reads as zeros.
pub(crate) const CONFIG_SIZE: usize = 256;

/// Where the guest switches the write cache.
pub(crate) const WRITEBACK_OFFSET: u32 = 32;

/// VHOST_USER_F_PROTOCOL_FEATURES.
pub(crate) const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Descriptors of a request besides its data: header and status.
const DESCRIPTORS_OVERHEAD: u32 = 2;

pub(crate) const EVENT_INDEX: u64 = 1 << virtio_ring::VIRTIO_RING_F_EVENT_IDX;

pub(crate) const FLUSH: u64 = 1 << blk::VIRTIO_BLK_F_FLUSH;

/// Everything that is offered.
pub(crate) fn features<E: BlockDevice>(served: &Served<E>) -> u64 {
    let always = [
        virtio_config::VIRTIO_F_VERSION_1,
        virtio_ring::VIRTIO_RING_F_EVENT_IDX,
        virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
        blk::VIRTIO_BLK_F_SEG_MAX,
        blk::VIRTIO_BLK_F_BLK_SIZE,
        blk::VIRTIO_BLK_F_FLUSH,
        blk::VIRTIO_BLK_F_TOPOLOGY,
        blk::VIRTIO_BLK_F_CONFIG_WCE,
        blk::VIRTIO_BLK_F_MQ,
    ];
    let changing = [blk::VIRTIO_BLK_F_DISCARD, blk::VIRTIO_BLK_F_WRITE_ZEROES];
    let fixed = [blk::VIRTIO_BLK_F_RO];
    let others: &[u32] = if served.is_read_only() { &fixed } else { &changing };
    always.iter().chain(others).fold(PROTOCOL_FEATURES, |bits, feature| bits | 1 << feature)
}

/// The space as `struct virtio_blk_config` lays it out.
pub(crate) fn space<E: BlockDevice>(served: &Served<E>, writeback: bool) -> [u8; CONFIG_SIZE] {
    let export = &served.export;
    let size = export.device.size().get();
    let best = export.device.request_alignment().get().max(u64::from(export.block_size));
    let best_blocks = u32::try_from(best / u64::from(export.block_size)).unwrap_or(1);
    let best_sectors = u32::try_from(best / SECTOR).unwrap_or(1);
    let room = u32::from(export.queue_size_max).saturating_sub(DESCRIPTORS_OVERHEAD);
    let segments = room.clamp(1, SEGMENTS_MAX);
    // 2 to the power of this many blocks are one block of the device.
    let physical_exponent = u8::try_from(best_blocks.ilog2()).unwrap_or(0);
    let least = u16::try_from(best_blocks).unwrap_or(1);
    let mut space = Space { bytes: [0; CONFIG_SIZE], end: 0 };
    space.put(&(size / SECTOR).to_le_bytes()); // capacity
    space.put(&[0; 4]); // size_max: not offered
    space.put(&segments.to_le_bytes());
    space.put(&[0; 4]); // geometry: not offered
    space.put(&export.block_size.to_le_bytes());
    space.put(&[physical_exponent, 0]); // and no offset to it
    space.put(&least.to_le_bytes());
    space.put(&best_blocks.to_le_bytes());
    assert!(space.end == WRITEBACK_OFFSET as usize);
    space.put(&[u8::from(writeback), 0]);
    space.put(&export.queues_max.to_le_bytes());
    space.put(&RANGE_SECTORS_MAX.to_le_bytes()); // discard
    space.put(&RANGES_MAX.to_le_bytes());
    space.put(&best_sectors.to_le_bytes());
    space.put(&RANGE_SECTORS_MAX.to_le_bytes()); // write zeroes
    space.put(&RANGES_MAX.to_le_bytes());
    space.put(&[1, 0, 0, 0]); // zeroing may unmap
    space.bytes
}

struct Space {
    bytes: [u8; CONFIG_SIZE],
    end: usize,
}

impl Space {
    fn put(&mut self, field: &[u8]) {
        self.bytes[self.end..self.end + field.len()].copy_from_slice(field);
        self.end += field.len();
    }
}
