//! Requests of the kernel.
//!
//! ```text
//!   length 4 | opcode 4 | unique 8 | node 8 | uid 4 | gid 4 | pid 4 | extensions 2 | padding 2
//!   arguments, by opcode
//!   payload of a write
//! ```
//!
//! The arguments of a write end where its payload begins, at byte [`HEAD_LENGTH`]: a read of the
//! device that splits there has the payload in a buffer of its own, whatever the request turns out
//! to be.

use super::wire::{Fields, Malformed};

/// Bytes of the header of a request.
pub const HEADER_LENGTH: usize = 40;

/// Bytes of a write before its payload.
pub const HEAD_LENGTH: usize = HEADER_LENGTH + 40;

/// Longest arguments that are looked at: a name of 1024 bytes and what stands around it.
pub const ARGUMENTS_MAX: usize = 2048;

/// The header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the whole request.
    pub length: u32,
    /// What is asked for.
    pub opcode: u32,
    /// Names the request in its reply.
    pub unique: u64,
    /// The file or directory it is about.
    pub node: u64,
    /// The user who asks.
    pub uid: u32,
}

impl Header {
    /// Reads the header of a request of `received` bytes.
    pub fn decode(bytes: &[u8], received: usize) -> Result<Self, Malformed> {
        let mut fields = Fields::new(bytes);
        let header = Self {
            length: fields.u32()?,
            opcode: fields.u32()?,
            unique: fields.u64()?,
            node: fields.u64()?,
            uid: fields.u32()?,
        };
        let (_gid, _pid) = (fields.u32()?, fields.u32()?);
        let (_extensions, _padding) = (fields.u16()?, fields.u16()?);
        if usize::try_from(header.length).ok() != Some(received) {
            return Err(fields.malformed());
        }
        Ok(header)
    }
}

/// Where `lseek` looks for something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whence {
    /// The next data, `SEEK_DATA`.
    Data,
    /// The next hole, `SEEK_HOLE`.
    Hole,
}

/// A time to set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// The time of the request.
    Now,
    /// Seconds since 1970, and nanoseconds.
    At(i64, u32),
}

/// What is to be changed about a file; `None` stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Permissions, with or without the file type.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Last access.
    pub accessed: Option<Time>,
    /// Last change of content.
    pub modified: Option<Time>,
}

/// A request, without the payload of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Which node has this name in a directory?
    Lookup(Vec<u8>),
    /// Nodes that the kernel does not know any more. Wants no answer.
    Forget,
    /// Attributes.
    GetAttributes,
    /// Changes attributes.
    SetAttributes(Change),
    /// Opens a file, with the flags of `open(2)`.
    Open {
        /// Flags of `open(2)`.
        flags: u32,
    },
    /// Reads from a file.
    Read {
        /// First byte.
        at: u64,
        /// Bytes.
        length: u32,
    },
    /// Writes to a file.
    Write {
        /// First byte.
        at: u64,
        /// Bytes, all of which follow.
        length: u32,
    },
    /// Size and free space of the file system.
    Statistics,
    /// An open file is closed for good.
    Release,
    /// An open directory is.
    ReleaseDirectory,
    /// Makes a file durable.
    Sync,
    /// Somebody closes a file; the last chance to tell of errors.
    Flush,
    /// Opens a directory.
    OpenDirectory,
    /// Lists a directory.
    ReadDirectory {
        /// The entry to start with.
        at: u64,
        /// Bytes that the answer may have.
        length: u32,
    },
    /// Asks whether something is allowed.
    Access,
    /// Allocates, punches or zeroes.
    Allocate {
        /// First byte.
        at: u64,
        /// Bytes.
        length: u64,
        /// Flags of `fallocate(2)`.
        mode: u32,
    },
    /// Looks for data or holes.
    Seek {
        /// Where to start.
        at: u64,
        /// For what.
        whence: Whence,
    },
    /// The kernel is done with the file system.
    Destroy,
    /// Would change what is in the directory.
    ChangeDirectory,
    /// Anything else.
    Unknown,
}

impl Request {
    /// Reads the arguments of a request.
    pub fn decode(header: &Header, arguments: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields::new(arguments);
        Ok(match header.opcode {
            1 => Self::Lookup(fields.name()?.to_vec()),
            2 | 42 => Self::Forget,
            3 => Self::GetAttributes,
            4 => Self::SetAttributes(decode_change(&mut fields)?),
            // Create, link, mkdir, mknod, rename, rmdir, symlink, tmpfile, unlink.
            35 | 13 | 9 | 8 | 12 | 45 | 11 | 6 | 51 | 10 => Self::ChangeDirectory,
            14 => Self::Open { flags: fields.u32()? },
            15 => {
                let (at, length) = decode_range(&mut fields)?;
                Self::Read { at, length }
            }
            16 => {
                let (at, length) = decode_range(&mut fields)?;
                let payload = u64::from(header.length).checked_sub(HEAD_LENGTH as u64);
                if payload != Some(u64::from(length)) {
                    return Err(fields.malformed());
                }
                Self::Write { at, length }
            }
            17 => Self::Statistics,
            18 => Self::Release,
            29 => Self::ReleaseDirectory,
            20 | 30 => Self::Sync,
            25 => Self::Flush,
            27 => Self::OpenDirectory,
            28 => {
                let (at, length) = decode_range(&mut fields)?;
                Self::ReadDirectory { at, length }
            }
            34 => Self::Access,
            38 => Self::Destroy,
            43 => {
                let _handle = fields.u64()?;
                Self::Allocate { at: fields.u64()?, length: fields.u64()?, mode: fields.u32()? }
            }
            46 => {
                let _handle = fields.u64()?;
                let at = fields.u64()?;
                let whence = match fields.u32()? {
                    3 => Whence::Data,
                    4 => Whence::Hole,
                    _ => return Err(fields.malformed()),
                };
                Self::Seek { at, whence }
            }
            _ => Self::Unknown,
        })
    }
}

/// Handle, offset and length, as reads and writes begin.
fn decode_range(fields: &mut Fields<'_>) -> Result<(u64, u32), Malformed> {
    let _handle = fields.u64()?;
    Ok((fields.u64()?, fields.u32()?))
}

fn decode_change(fields: &mut Fields<'_>) -> Result<Change, Malformed> {
    let valid = fields.u32()?;
    let (_padding, _handle) = (fields.u32()?, fields.u64()?);
    let size = fields.u64()?;
    let _lock_owner = fields.u64()?;
    let (accessed, modified) = (fields.u64()?, fields.u64()?);
    let _changed = fields.u64()?;
    let (accessed_nanos, modified_nanos) = (fields.u32()?, fields.u32()?);
    let _changed_nanos = fields.u32()?;
    let mode = fields.u32()?;
    let _unused = fields.u32()?;
    let (uid, gid) = (fields.u32()?, fields.u32()?);
    let is_valid = |bit: u32| valid & (1 << bit) != 0;
    let time = |bit: u32, now: u32, seconds: u64, nanos: u32| {
        let at = Time::At(seconds.cast_signed(), nanos);
        is_valid(bit).then(|| if is_valid(now) { Time::Now } else { at })
    };
    Ok(Change {
        mode: is_valid(0).then_some(mode),
        uid: is_valid(1).then_some(uid),
        gid: is_valid(2).then_some(gid),
        size: is_valid(3).then_some(size),
        accessed: time(4, 7, accessed, accessed_nanos),
        modified: time(5, 8, modified, modified_nanos),
    })
}

#[cfg(test)]
mod tests {
    use super::{Change, HEADER_LENGTH, Header, Request, Time, Whence};

    fn header(opcode: u32, length: u32) -> Header {
        Header { length, opcode, unique: 1, node: 1, uid: 0 }
    }

    fn words(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn a_header_tells_the_length_that_was_received() {
        let mut bytes = vec![0; HEADER_LENGTH];
        bytes[..4].copy_from_slice(&40_u32.to_ne_bytes());
        assert!(Header::decode(&bytes, 40).is_ok());
        assert!(Header::decode(&bytes, 41).is_err());
        assert!(Header::decode(&bytes[..39], 40).is_err());
    }

    #[test]
    fn no_bytes_make_decoding_panic() {
        for opcode in 0..64 {
            for length in 0..128 {
                for byte in [0, 1, 3, 0x7f, 0xff] {
                    let arguments = vec![byte; length];
                    let header = header(opcode, 40 + u32::try_from(length).unwrap());
                    let request = Request::decode(&header, &arguments);
                    if length == 127 && opcode != 1 && opcode != 46 && opcode != 16 {
                        assert!(request.is_ok(), "{opcode} {byte}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_write_is_as_long_as_its_payload() {
        let arguments = words(&[0, 4096, 512, 0, 0]);
        let write = |length| Request::decode(&header(16, length), &arguments);
        assert_eq!(write(80 + 512), Ok(Request::Write { at: 4096, length: 512 }));
        assert!(write(80 + 511).is_err());
        assert!(write(79).is_err());
    }

    #[test]
    fn names_end_with_a_zero() {
        assert_eq!(Request::decode(&header(1, 44), b"abc\0"), Ok(Request::Lookup(b"abc".to_vec())));
        assert!(Request::decode(&header(1, 43), b"abc").is_err());
    }

    #[test]
    fn seeking_knows_data_and_holes_only() {
        let seek = |whence| Request::decode(&header(46, 64), &words(&[0, 7, whence])).ok();
        assert_eq!(seek(3), Some(Request::Seek { at: 7, whence: Whence::Data }));
        assert_eq!(seek(4), Some(Request::Seek { at: 7, whence: Whence::Hole }));
        assert_eq!(seek(0), None);
    }

    #[test]
    fn a_change_has_what_its_bits_say() {
        let nanos = u64::from(9_u32) << 32;
        let tail = [nanos, u64::from(0o600_u32) << 32, u64::from(7_u32) << 32, 8];
        let change = |valid: u64| {
            let mut all = vec![valid, 0, 123, 0, 5, 6, 0];
            all.extend(tail);
            Request::decode(&header(4, 128), &words(&all))
        };
        assert_eq!(change(0), Ok(Request::SetAttributes(Change::default())));
        let expected = Change {
            mode: Some(0o600),
            uid: Some(7),
            gid: Some(8),
            size: Some(123),
            accessed: Some(Time::Now),
            modified: Some(Time::At(6, 9)),
        };
        assert_eq!(change(0b1011_1111), Ok(Request::SetAttributes(expected)));
    }
}
