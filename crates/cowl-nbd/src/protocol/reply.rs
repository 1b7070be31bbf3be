//! Heads of replies.
//!
//! ```text
//!   simple:      magic(4) error(4) cookie(8)                                  then data
//!   structured:  magic(4) flags(2) type(2) cookie(8) length(4)                then payload
//!   extended:    magic(4) flags(2) type(2) cookie(8) offset(8) length(8)      then payload
//! ```
//!
//! A head includes the fixed fields of its payload (the offset of data, a hole, an error), so that
//! what follows it is bytes of a buffer or nothing.

use crate::protocol::errno::Errno;
use crate::protocol::metadata::Context;
use crate::protocol::request::{Headers, Request};
use crate::protocol::wire::{
    EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, chunk,
};

/// Bytes of the longest head: an extended one with a hole.
pub const HEAD_LENGTH_MAX: usize = 48;

/// The first bytes of a reply or chunk.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; HEAD_LENGTH_MAX],
    length: usize,
}

impl Head {
    const EMPTY: Self = Self { bytes: [0; HEAD_LENGTH_MAX], length: 0 };

    fn push(&mut self, field: &[u8]) {
        let end = self.length + field.len();
        assert!(end <= HEAD_LENGTH_MAX, "every head fits");
        self.bytes[self.length..end].copy_from_slice(field);
        self.length = end;
    }

    /// The bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl core::fmt::Debug for Head {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Head({:02x?})", self.as_bytes())
    }
}

/// Whether a chunk is the last one of its reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// More follow.
    Earlier,
    /// The reply is complete.
    Last,
}

/// Which request is answered, and in which form.
#[derive(Clone, Copy, Debug)]
pub struct Addressee {
    /// Form of the reply.
    pub headers: Headers,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset.
    pub offset: u64,
}

impl Addressee {
    /// The sender of `request`.
    #[must_use]
    pub fn of(request: &Request, headers: Headers) -> Self {
        Self { headers, cookie: request.cookie, offset: request.offset }
    }

    /// Done, nothing to send.
    #[must_use]
    pub fn done(&self) -> Head {
        match self.headers {
            Headers::Simple => self.simple(0),
            _ => self.chunk(chunk::NONE, Position::Last, 0),
        }
    }

    /// Failed.
    #[must_use]
    pub fn failed(&self, errno: Errno) -> Head {
        if self.headers == Headers::Simple {
            return self.simple(errno.number());
        }
        // Number, and the length of a text: none.
        let mut head = self.chunk(chunk::ERROR, Position::Last, 6);
        head.push(&errno.number().to_be_bytes());
        head.push(&0u16.to_be_bytes());
        head
    }

    /// `length` bytes from offset `at` follow. A simple reply has the whole range in it.
    #[must_use]
    pub fn data(&self, at: u64, length: u32, position: Position) -> Head {
        if self.headers == Headers::Simple {
            return self.simple(0);
        }
        let mut head = self.chunk(chunk::OFFSET_DATA, position, 8 + u64::from(length));
        head.push(&at.to_be_bytes());
        head
    }

    /// `length` bytes from offset `at` are zeros. Not in simple replies.
    #[must_use]
    pub fn hole(&self, at: u64, length: u32, position: Position) -> Head {
        assert!(self.headers != Headers::Simple, "simple replies have no holes");
        let mut head = self.chunk(chunk::OFFSET_HOLE, position, 12);
        head.push(&at.to_be_bytes());
        head.push(&length.to_be_bytes());
        head
    }

    /// `count` descriptors of `context` follow, `bytes` bytes long. Not in simple replies.
    #[must_use]
    pub fn status(&self, context: Context, count: u32, bytes: u64, position: Position) -> Head {
        match self.headers {
            Headers::Simple => unreachable!("block status needs chunks, and judge() saw to it"),
            Headers::Structured => {
                let mut head = self.chunk(chunk::BLOCK_STATUS, position, 4 + bytes);
                head.push(&context.id().to_be_bytes());
                head
            }
            Headers::Extended => {
                let mut head = self.chunk(chunk::BLOCK_STATUS_EXT, position, 8 + bytes);
                head.push(&context.id().to_be_bytes());
                head.push(&count.to_be_bytes());
                head
            }
        }
    }

    fn simple(&self, error: u32) -> Head {
        let mut head = Head::EMPTY;
        head.push(&SIMPLE_REPLY_MAGIC.to_be_bytes());
        head.push(&error.to_be_bytes());
        head.push(&self.cookie.to_be_bytes());
        head
    }

    fn chunk(&self, kind: u16, position: Position, length: u64) -> Head {
        let flags = match position {
            Position::Earlier => 0,
            Position::Last => chunk::FLAG_DONE,
        };
        let extended = self.headers == Headers::Extended;
        let magic = if extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
        let mut head = Head::EMPTY;
        head.push(&magic.to_be_bytes());
        head.push(&flags.to_be_bytes());
        head.push(&kind.to_be_bytes());
        head.push(&self.cookie.to_be_bytes());
        if extended {
            head.push(&self.offset.to_be_bytes());
            head.push(&length.to_be_bytes());
        } else {
            let length = u32::try_from(length).expect("payloads are bounded by PAYLOAD_MAX");
            head.push(&length.to_be_bytes());
        }
        head
    }
}

#[cfg(test)]
mod tests {
    use super::{Addressee, Position};
    use crate::protocol::errno::Errno;
    use crate::protocol::metadata::Context;
    use crate::protocol::request::Headers;

    fn to(headers: Headers) -> Addressee {
        Addressee { headers, cookie: 0x1122_3344_5566_7788, offset: 0x1000 }
    }

    #[test]
    fn heads_have_the_documented_lengths() {
        let lengths = |headers| {
            let to = to(headers);
            [
                to.done().as_bytes().len(),
                to.failed(Errno::Io).as_bytes().len(),
                to.data(0, 512, Position::Last).as_bytes().len(),
            ]
        };
        assert_eq!(lengths(Headers::Simple), [16, 16, 16]);
        assert_eq!(lengths(Headers::Structured), [20, 26, 28]);
        assert_eq!(lengths(Headers::Extended), [32, 38, 40]);
    }

    #[test]
    fn a_hole_has_its_bytes_where_the_document_says() {
        let head = to(Headers::Structured).hole(0x2000, 0x800, Position::Earlier);
        let expected = [
            &[0x66, 0x8e, 0x33, 0xef, 0, 0, 0, 2][..],
            &[0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88],
            &[0, 0, 0, 12],
            &[0, 0, 0, 0, 0, 0, 0x20, 0],
            &[0, 0, 8, 0],
        ];
        assert_eq!(head.as_bytes(), expected.concat());
    }

    #[test]
    fn extended_status_counts_its_descriptors() {
        let head = to(Headers::Extended).status(Context::Depth, 3, 48, Position::Last);
        let bytes = head.as_bytes();
        assert_eq!(bytes[4..8], [0, 1, 0, 6]);
        assert_eq!(bytes[24..32], 56u64.to_be_bytes());
        assert_eq!(bytes[32..40], [0, 0, 0, 1, 0, 0, 0, 3]);
    }
}
