//! Headers of requests, and in which form both sides speak.
//!
//! ```text
//!   compact:   magic(4) flags(2) command(2) cookie(8) offset(8) length(4)
//!   extended:  magic(4) flags(2) command(2) cookie(8) offset(8) length(8)
//! ```

use crate::protocol::wire::{Cursor, EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC};

/// The form of requests and replies that both sides agreed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Headers {
    /// Compact requests, simple replies.
    Simple,
    /// Compact requests, replies in chunks.
    Structured,
    /// 64-bit lengths both ways, replies in chunks.
    Extended,
}

/// Bytes of the longest request header.
pub const REQUEST_LENGTH_MAX: usize = 32;

impl Headers {
    /// Bytes of a request header.
    #[must_use]
    pub const fn request_length(self) -> usize {
        match self {
            Self::Simple | Self::Structured => 28,
            Self::Extended => REQUEST_LENGTH_MAX,
        }
    }
}

/// A request as it came: nothing about it is believed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bits of `wire::command_flag`.
    pub flags: u16,
    /// A number of `wire::command`.
    pub command: u16,
    /// Comes back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Length of the range, or of the payload.
    pub length: u64,
}

/// The connection is out of step: what follows cannot be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request starts with {magic:#x}")]
pub struct BadMagic {
    /// What stands where the magic number belongs.
    pub magic: u32,
}

impl Request {
    /// The request at the start of `bytes`; `None` while it is not there as a whole.
    pub fn decode(bytes: &[u8], headers: Headers) -> Result<Option<Self>, BadMagic> {
        let mut cursor = Cursor::new(bytes);
        let Some(magic) = cursor.u32() else { return Ok(None) };
        let expected = match headers {
            Headers::Simple | Headers::Structured => REQUEST_MAGIC,
            Headers::Extended => EXTENDED_REQUEST_MAGIC,
        };
        if magic != expected {
            return Err(BadMagic { magic });
        }
        Ok(Self::decode_rest(cursor, headers))
    }

    fn decode_rest(mut cursor: Cursor<'_>, headers: Headers) -> Option<Self> {
        Some(Self {
            flags: cursor.u16()?,
            command: cursor.u16()?,
            cookie: cursor.u64()?,
            offset: cursor.u64()?,
            length: match headers {
                Headers::Simple | Headers::Structured => u64::from(cursor.u32()?),
                Headers::Extended => cursor.u64()?,
            },
        })
    }

    /// The bytes of the request, as a client sends them. A compact header cuts the length to 32
    /// bits.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "see above")]
    pub fn encode(&self, headers: Headers) -> Vec<u8> {
        let magic = match headers {
            Headers::Simple | Headers::Structured => REQUEST_MAGIC,
            Headers::Extended => EXTENDED_REQUEST_MAGIC,
        };
        let mut bytes = Vec::with_capacity(REQUEST_LENGTH_MAX);
        bytes.extend(magic.to_be_bytes());
        bytes.extend(self.flags.to_be_bytes());
        bytes.extend(self.command.to_be_bytes());
        bytes.extend(self.cookie.to_be_bytes());
        bytes.extend(self.offset.to_be_bytes());
        match headers {
            Headers::Simple | Headers::Structured => {
                bytes.extend((self.length as u32).to_be_bytes());
            }
            Headers::Extended => bytes.extend(self.length.to_be_bytes()),
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Headers, Request};

    fn headers() -> impl Strategy<Value = Headers> {
        prop_oneof![Just(Headers::Simple), Just(Headers::Structured), Just(Headers::Extended)]
    }

    proptest! {
        #[test]
        fn requests_come_back_as_they_were_sent(
            headers in headers(),
            (flags, command, cookie) in (any::<u16>(), any::<u16>(), any::<u64>()),
            (offset, length) in (any::<u64>(), any::<u32>()),
        ) {
            let request = Request { flags, command, cookie, offset, length: u64::from(length) };
            let bytes = request.encode(headers);
            prop_assert_eq!(bytes.len(), headers.request_length());
            prop_assert_eq!(Request::decode(&bytes, headers), Ok(Some(request)));
            let short = &bytes[..bytes.len() - 1];
            prop_assert_eq!(Request::decode(short, headers), Ok(None));
        }

        #[test]
        fn any_bytes_decode_without_panic(
            headers in headers(),
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let _decoded = Request::decode(&bytes, headers);
        }
    }
}
