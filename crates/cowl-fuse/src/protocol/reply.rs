//! Replies to the kernel.
//!
//! ```text
//!   length 4 | errno, negative, or 0, 4 | unique 8
//!   answer, by the opcode of the request
//! ```

use super::wire::Message;

/// Bytes of the header of a reply.
pub const HEADER_LENGTH: usize = 16;

/// The header of a reply with `length` bytes behind it.
#[must_use]
pub fn header(unique: u64, errno: i32, length: usize) -> [u8; HEADER_LENGTH] {
    let length = u32::try_from(HEADER_LENGTH + length).expect("replies are at most some MiB long");
    let mut bytes = [0; HEADER_LENGTH];
    bytes[..4].copy_from_slice(&length.to_ne_bytes());
    bytes[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    bytes[8..].copy_from_slice(&unique.to_ne_bytes());
    bytes
}

/// How long the kernel may believe something, in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity(pub u64);

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A plain file.
    File,
    /// A directory.
    Directory,
}

impl Kind {
    /// As in `st_mode`.
    #[must_use]
    pub const fn mode(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
        }
    }

    /// As in a directory entry.
    const fn entry_type(self) -> u32 {
        self.mode() >> 12
    }
}

/// A point in time: seconds since 1970, and nanoseconds.
pub type Stamp = (i64, u32);

/// Attributes of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub node: u64,
    /// What it is.
    pub kind: Kind,
    /// Permissions.
    pub permissions: u32,
    /// Size in bytes.
    pub size: u64,
    /// Bytes that it takes on the host.
    pub allocated: u64,
    /// Size of a good request.
    pub block_size: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last access.
    pub accessed: Stamp,
    /// Last change of content.
    pub modified: Stamp,
    /// Last change of anything.
    pub changed: Stamp,
}

impl Attributes {
    fn encode(&self, message: Message) -> Message {
        let seconds = |stamp: Stamp| stamp.0.cast_unsigned();
        message
            .u64(self.node)
            .u64(self.size)
            .u64(self.allocated.div_ceil(512))
            .u64(seconds(self.accessed))
            .u64(seconds(self.modified))
            .u64(seconds(self.changed))
            .u32(self.accessed.1)
            .u32(self.modified.1)
            .u32(self.changed.1)
            .u32(self.kind.mode() | self.permissions & 0o7777)
            .u32(1)
            .u32(self.uid)
            .u32(self.gid)
            .u32(0)
            .u32(self.block_size)
            .u32(0)
    }
}

/// The answer to a request for attributes, or to change some.
#[must_use]
pub fn attributes(attributes: &Attributes, valid: Validity) -> Vec<u8> {
    attributes.encode(Message::default().u64(valid.0).u32(0).u32(0)).finish(104)
}

/// The answer to a look-up that found something.
#[must_use]
pub fn entry(attributes: &Attributes, name: Validity, valid: Validity) -> Vec<u8> {
    let head = Message::default().u64(attributes.node).u64(0).u64(name.0).u64(valid.0);
    attributes.encode(head.u32(0).u32(0)).finish(128)
}

/// How an opened file is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFlags(pub u32);

impl OpenFlags {
    /// The page cache of the kernel holds the file.
    pub const CACHED: Self = Self(0);
    /// All requests come here, and writes of one opener need not wait for one another.
    pub const DIRECT: Self = Self(1 << 0 | 1 << 6);
    /// Closing needs no flush.
    pub const NO_FLUSH: Self = Self(1 << 5);

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The answer to opening.
#[must_use]
pub fn opened(flags: OpenFlags) -> Vec<u8> {
    Message::default().u64(0).u32(flags.0).i32(0).finish(16)
}

/// The answer to a write: how many bytes were taken.
#[must_use]
pub fn written(length: u32) -> Vec<u8> {
    Message::default().u32(length).u32(0).finish(8)
}

/// The answer to a seek.
#[must_use]
pub fn found(at: u64) -> Vec<u8> {
    Message::default().u64(at).finish(8)
}

/// The answer to a request for statistics.
#[must_use]
pub fn statistics(block_size: u32, blocks: u64, blocks_free: u64, name_max: u32) -> Vec<u8> {
    Message::default()
        .u64(blocks)
        .u64(blocks_free)
        .u64(blocks_free)
        .u64(1)
        .u64(0)
        .u32(block_size)
        .u32(name_max)
        .u32(block_size)
        .zeros(28)
        .finish(80)
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its node.
    pub node: u64,
    /// What that is.
    pub kind: Kind,
    /// Its name.
    pub name: &'a [u8],
}

/// The entries from number `at` on, as many as fit into `length` bytes.
#[must_use]
pub fn directory(entries: &[Entry<'_>], at: u64, length: u32) -> Vec<u8> {
    let mut message = Message::default();
    let mut used = 0;
    for (entry, number) in entries.iter().zip(1_u64..) {
        let entry_length = (24 + entry.name.len()).next_multiple_of(8);
        if number <= at {
            continue;
        }
        used += entry_length;
        if usize::try_from(length).unwrap_or(usize::MAX) < used {
            break;
        }
        let name_length = u32::try_from(entry.name.len()).expect("names have at most 255 bytes");
        message = message
            .u64(entry.node)
            .u64(number)
            .u32(name_length)
            .u32(entry.kind.entry_type())
            .bytes(entry.name)
            .zeros(entry_length - 24 - entry.name.len());
    }
    message.finish_any()
}

#[cfg(test)]
mod tests {
    use super::{Entry, Kind, directory, header};

    #[test]
    fn an_error_is_negative() {
        let bytes = header(9, 28, 0);
        assert_eq!(bytes[..4], 16_u32.to_ne_bytes());
        assert_eq!(bytes[4..8], (-28_i32).to_ne_bytes());
        assert_eq!(bytes[8..], 9_u64.to_ne_bytes());
    }

    #[test]
    fn a_directory_is_told_entry_by_entry() {
        let entry = |name| Entry { node: 2, kind: Kind::File, name };
        let entries = [entry(b"."), entry(b".."), entry(b"disk.img")];
        assert_eq!(directory(&entries, 0, 4096).len(), 32 * 3);
        assert_eq!(directory(&entries, 0, 65).len(), 64);
        assert_eq!(directory(&entries, 2, 4096)[24..32], *b"disk.img");
        assert_eq!(directory(&entries, 3, 4096).len(), 0);
        assert_eq!(directory(&entries, u64::MAX, 4096).len(), 0);
        assert_eq!(directory(&entries, 0, 0).len(), 0);
    }
}
