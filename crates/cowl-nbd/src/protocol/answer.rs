//! Replies as a client reads them: the counterpart of `reply.rs`.

use crate::protocol::limits::PAYLOAD_MAX;
use crate::protocol::request::Headers;
use crate::protocol::wire::{
    Cursor, EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
};

/// Payload of a chunk: that of the longest read, and the fields in front of it.
const CHUNK_LENGTH_MAX: u64 = PAYLOAD_MAX as u64 + 16;

/// The first bytes of a reply or chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// Which request it answers.
    pub cookie: u64,
    /// What it says.
    pub content: Content,
    /// Whether the reply ends with it.
    pub is_last: bool,
}

/// What a reply or chunk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A simple reply: an error or zero; the data of a successful read follows.
    Simple {
        /// The error number.
        error: u32,
    },
    /// A chunk with so many bytes of payload.
    Chunk {
        /// A number of `wire::chunk`.
        kind: u16,
        /// Bytes.
        length: u32,
    },
}

/// The server is out of step, or wants too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server's reply makes no sense")]
pub struct BadAnswer;

impl AnswerHead {
    /// Bytes of a head after its magic number, which is sent first.
    #[must_use]
    pub const fn length_after(magic: u32) -> Option<usize> {
        match magic {
            SIMPLE_REPLY_MAGIC => Some(12),
            STRUCTURED_REPLY_MAGIC => Some(16),
            EXTENDED_REPLY_MAGIC => Some(28),
            _ => None,
        }
    }

    /// The head whose magic number and rest these are.
    pub fn decode(magic: u32, rest: &[u8], headers: Headers) -> Result<Self, BadAnswer> {
        Self::decode_fields(magic, Cursor::new(rest), headers).ok_or(BadAnswer)
    }

    fn decode_fields(magic: u32, mut cursor: Cursor<'_>, headers: Headers) -> Option<Self> {
        if magic == SIMPLE_REPLY_MAGIC {
            // With structured replies a server may still answer simply where there is no data.
            let error = cursor.u32()?;
            let cookie = cursor.u64()?;
            let content = Content::Simple { error };
            let is_fitting = headers != Headers::Extended;
            return is_fitting.then_some(Self { cookie, content, is_last: true });
        }
        let flags = cursor.u16()?;
        let kind = cursor.u16()?;
        let cookie = cursor.u64()?;
        let length = match (magic, headers) {
            (STRUCTURED_REPLY_MAGIC, Headers::Structured) => u64::from(cursor.u32()?),
            (EXTENDED_REPLY_MAGIC, Headers::Extended) => {
                cursor.u64()?;
                cursor.u64()?
            }
            _ => return None,
        };
        let length = u32::try_from(length).ok().filter(|&l| u64::from(l) <= CHUNK_LENGTH_MAX)?;
        let content = Content::Chunk { kind, length };
        Some(Self { cookie, content, is_last: flags & chunk::FLAG_DONE != 0 })
    }
}

/// The descriptors in the payload of a status chunk: lengths and flags. `None` when there are none.
#[must_use]
pub fn decode_status(kind: u16, payload: &[u8]) -> Option<Vec<(u64, u64)>> {
    let mut cursor = Cursor::new(payload);
    let _context = cursor.u32()?;
    if kind == chunk::BLOCK_STATUS_EXT {
        let _count = cursor.u32()?;
    }
    let mut descriptors = Vec::new();
    while !cursor.is_empty() {
        let descriptor = match kind {
            chunk::BLOCK_STATUS_EXT => (cursor.u64()?, cursor.u64()?),
            _ => (u64::from(cursor.u32()?), u64::from(cursor.u32()?)),
        };
        if descriptor.0 == 0 {
            return None;
        }
        descriptors.push(descriptor);
    }
    (!descriptors.is_empty()).then_some(descriptors)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{AnswerHead, Content, decode_status};
    use crate::protocol::errno::Errno;
    use crate::protocol::reply::{Addressee, Position};
    use crate::protocol::request::Headers;
    use crate::protocol::wire::chunk;

    fn decode(bytes: &[u8], headers: Headers) -> AnswerHead {
        let magic = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        let length = AnswerHead::length_after(magic).unwrap();
        AnswerHead::decode(magic, &bytes[4..4 + length], headers).unwrap()
    }

    #[test]
    fn what_a_server_encodes_a_client_decodes() {
        for headers in [Headers::Structured, Headers::Extended] {
            let to = Addressee { headers, cookie: 9, offset: 0 };
            let data = decode(to.data(4096, 512, Position::Earlier).as_bytes(), headers);
            let content = Content::Chunk { kind: chunk::OFFSET_DATA, length: 520 };
            assert_eq!(data, AnswerHead { cookie: 9, content, is_last: false });
            let failed = decode(to.failed(Errno::NoSpc).as_bytes(), headers);
            assert!(failed.is_last);
        }
        let to = Addressee { headers: Headers::Simple, cookie: 9, offset: 0 };
        let content = Content::Simple { error: 28 };
        let failed = decode(to.failed(Errno::NoSpc).as_bytes(), Headers::Simple);
        assert_eq!(failed, AnswerHead { cookie: 9, content, is_last: true });
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
            kind in 0u16..8,
        ) {
            for magic in [0x6744_6698, 0x668e_33ef, 0x6e8a_278c] {
                for headers in [Headers::Simple, Headers::Structured, Headers::Extended] {
                    let _head = AnswerHead::decode(magic, &bytes, headers);
                }
            }
            let _descriptors = decode_status(kind, &bytes);
        }
    }
}
