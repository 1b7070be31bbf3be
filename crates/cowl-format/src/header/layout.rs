//! Where each field of the header lies, and how long the header is.
//!
//! The table in `header.rs` says what the fields are; the assertions tie the offsets together.

pub(super) const VERSION_OFFSET: usize = 4;
pub(super) const BACKING_OFFSET_OFFSET: usize = 8;
pub(super) const BACKING_LENGTH_OFFSET: usize = 16;
pub(super) const CLUSTER_BITS_OFFSET: usize = 20;
pub(super) const SIZE_OFFSET: usize = 24;
pub(super) const CRYPT_METHOD_OFFSET: usize = 32;
pub(super) const L1_ENTRIES_OFFSET: usize = 36;
pub(super) const L1_OFFSET_OFFSET: usize = 40;
pub(super) const REFCOUNT_TABLE_OFFSET_OFFSET: usize = 48;
pub(super) const REFCOUNT_TABLE_CLUSTERS_OFFSET: usize = 56;
pub(super) const SNAPSHOT_COUNT_OFFSET: usize = 60;
pub(super) const SNAPSHOT_OFFSET_OFFSET: usize = 64;
pub(super) const HEADER_LEN_V2: usize = 72;
pub(super) const INCOMPATIBLE_OFFSET: usize = 72;
pub(super) const COMPATIBLE_OFFSET: usize = 80;
pub(super) const AUTOCLEAR_OFFSET: usize = 88;
pub(super) const REFCOUNT_ORDER_OFFSET: usize = 96;
pub(super) const HEADER_LENGTH_OFFSET: usize = 100;
pub(super) const HEADER_LEN_V3_MIN: usize = 104;
pub(super) const COMPRESSION_TYPE_OFFSET: usize = 104;
pub(super) const HEADER_LEN_V3: usize = 112;
pub(super) const HEADER_LENGTH_V2: u32 = 72;
pub(super) const HEADER_LENGTH_V3: u32 = 112;

const _: () = assert!(SNAPSHOT_OFFSET_OFFSET + size_of::<u64>() == HEADER_LEN_V2);
const _: () = assert!(HEADER_LENGTH_OFFSET + size_of::<u32>() == HEADER_LEN_V3_MIN);
const _: () = assert!(HEADER_LENGTH_V2 as usize == HEADER_LEN_V2);
const _: () = assert!(HEADER_LENGTH_V3 as usize == HEADER_LEN_V3);
const _: () = assert!(COMPRESSION_TYPE_OFFSET + 8 == HEADER_LEN_V3);
