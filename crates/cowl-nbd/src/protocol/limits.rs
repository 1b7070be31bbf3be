//! Every limit of the protocol engine, with its reason.

/// Bytes of a read or write payload: what the protocol's document asks servers to accept and
/// clients not to exceed, and what INFO_BLOCK_SIZE says.
pub const PAYLOAD_MAX: u32 = 32 << 20;

/// Bytes of an option that are kept. A LIST or SET of metadata contexts is the longest honest one;
/// the rest of a longer one is read past, and it is answered with ERR_TOO_BIG.
pub const OPTION_LENGTH_MAX: usize = 64 << 10;

/// Bytes of an option that are read past. A client that announces more is not worth the wait.
pub const OPTION_SKIP_MAX: u32 = 32 << 20;

/// Options before transmission: an honest client sends about ten, one that lists a thousand exports
/// and asks about each a few thousand.
pub const OPTION_COUNT_MAX: u32 = 10_000;

/// Bytes of a name, by the protocol's document.
pub const NAME_LENGTH_MAX: usize = 4096;

/// Payload bytes of a refused request that are read past, so that the connection survives the
/// mistake of an honest client. More ends the connection.
pub const PAYLOAD_SKIP_MAX: u64 = 4 * PAYLOAD_MAX as u64;

/// Descriptors of one block status reply, per context: 64 KiB or 128 KiB of reply. The client asks
/// again for the rest.
pub const DESCRIPTOR_COUNT_MAX: usize = 8192;

/// Reads shorter than this are answered with bytes without asking where the holes are: asking costs
/// about as much as the read.
pub const SPARSE_READ_MIN: u32 = 32 << 10;

/// Holes shorter than this inside a read are sent as bytes: a chunk of its own costs more.
pub const SPARSE_HOLE_MIN: u64 = 4 << 10;

/// Bytes that one CACHE request reads: it is advice, and must not be a way to keep a disk busy.
pub const CACHE_MAX: u64 = PAYLOAD_MAX as u64;

/// Dirty bitmaps of an export that clients can ask about; with the other contexts they fill a set.
pub const BITMAP_COUNT_MAX: usize = 14;

/// Context ids in the payload of one block status request: no more exist, and a client has no
/// reason to repeat them.
pub const STATUS_ID_COUNT_MAX: usize = 16;
