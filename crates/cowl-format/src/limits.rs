//! How large a structure may be, and why.
//!
//! Every limit bounds memory or work that bytes from a stranger could ask for. Where QEMU has a
//! limit, ours is the same, so that an image is either good for both or for neither.

/// Smallest cluster: 512 bytes, one sector. Below it a header does not fit.
pub const CLUSTER_BITS_MIN: u8 = 9;

/// Largest cluster: 2 MiB, QEMU's limit. It bounds every per-cluster buffer.
pub const CLUSTER_BITS_MAX: u8 = 21;

/// Smallest cluster with extended L2 entries: 32 subclusters of at least one sector.
pub const CLUSTER_BITS_EXTENDED_L2_MIN: u8 = 14;

/// Widest refcount: 64 bits.
pub const REFCOUNT_ORDER_MAX: u8 = 6;

/// Refcount order of every version 2 image: 16 bits.
pub const REFCOUNT_ORDER_V2: u8 = 4;

/// Bytes of an L1 table: 32 MiB describe 2 PiB at 64 KiB clusters. An open image keeps its L1 in
/// memory.
pub const L1_BYTES_MAX: u64 = 32 << 20;

/// Bytes of the refcount table: 8 MiB.
pub const REFCOUNT_TABLE_BYTES_MAX: u64 = 8 << 20;

/// Number of internal snapshots.
pub const SNAPSHOT_COUNT_MAX: u32 = 65_536;

/// Bytes of the snapshot table: 1 KiB for each snapshot.
pub const SNAPSHOT_TABLE_BYTES_MAX: u64 = 1024 * SNAPSHOT_COUNT_MAX as u64;

/// Bytes of extra data of one snapshot.
pub const SNAPSHOT_EXTRA_BYTES_MAX: u32 = 1024;

/// Number of persistent bitmaps.
pub const BITMAP_COUNT_MAX: u32 = 65_535;

/// Bytes of the bitmap directory: 1 KiB for each bitmap.
pub const BITMAP_DIRECTORY_BYTES_MAX: u64 = 1024 * BITMAP_COUNT_MAX as u64;

/// Entries of one bitmap table.
pub const BITMAP_TABLE_ENTRIES_MAX: u32 = 0x0800_0000;

/// Bytes of one bitmap in memory: 512 MiB.
pub const BITMAP_BYTES_MAX: u64 = 512 << 20;

/// Bytes of a bitmap's name.
pub const BITMAP_NAME_BYTES_MAX: u16 = 1023;

/// Granularity of a bitmap: 512 bytes to 2 GiB.
pub const BITMAP_GRANULARITY_BITS_MIN: u8 = 9;
/// See [`BITMAP_GRANULARITY_BITS_MIN`].
pub const BITMAP_GRANULARITY_BITS_MAX: u8 = 31;

/// Bytes of a backing file name.
pub const BACKING_NAME_BYTES_MAX: u32 = 1023;

/// Bytes of a backing format name: QEMU reads it into 16 bytes with a terminator.
pub const BACKING_FORMAT_BYTES_MAX: u32 = 15;

/// Bytes of an external data file's name: a host path.
pub const DATA_FILE_NAME_BYTES_MAX: u32 = 4096;

/// Header extensions in one image. QEMU has no limit but cluster 0; nobody has more than five.
pub const EXTENSION_COUNT_MAX: usize = 1024;

/// Host offsets in L1, L2 and bitmap entries have 56 bits.
pub const HOST_OFFSET_BITS_MAX: u32 = 56;

/// Layers of a backing chain. Each costs an open file; 200 is beyond any real chain.
pub const BACKING_DEPTH_MAX: usize = 200;
