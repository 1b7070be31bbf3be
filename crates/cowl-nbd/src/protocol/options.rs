//! Options of the handshake: their data decoded, their replies encoded.

use crate::protocol::limits::NAME_LENGTH_MAX;
use crate::protocol::wire::{Cursor, OPTION_MAGIC, OPTION_REPLY_MAGIC, info, option_reply};

/// Bytes in front of the data of an option: magic(8) option(4) length(4).
pub const OPTION_HEAD_LENGTH: usize = 16;

/// The head of an option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// A number of `wire::option`, or an unknown one.
    pub option: u32,
    /// Bytes of data.
    pub length: u32,
}

impl OptionHead {
    /// The head at the start of `bytes`: `None` while it is not whole, an error when it is none.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, u64> {
        let mut cursor = Cursor::new(bytes);
        let Some(magic) = cursor.u64() else { return Ok(None) };
        if magic != OPTION_MAGIC {
            return Err(magic);
        }
        let (Some(option), Some(length)) = (cursor.u32(), cursor.u32()) else { return Ok(None) };
        Ok(Some(Self { option, length }))
    }
}

/// What GO and INFO ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoQuery<'a> {
    /// Name of the export.
    pub name: &'a [u8],
    /// Whether the client wants the export's name back.
    pub wants_name: bool,
    /// Whether it wants a description.
    pub wants_description: bool,
}

impl<'a> InfoQuery<'a> {
    /// The query in the data of the option; `None` when there is none.
    #[must_use]
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let name = name(cursor.string()?)?;
        let count = cursor.u16()?;
        let mut query = Self { name, wants_name: false, wants_description: false };
        for _ in 0..count {
            match cursor.u16()? {
                info::NAME => query.wants_name = true,
                info::DESCRIPTION => query.wants_description = true,
                _ => {}
            }
        }
        cursor.is_empty().then_some(query)
    }
}

/// What LIST_META_CONTEXT and SET_META_CONTEXT ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextQuery<'a> {
    /// Name of the export.
    pub name: &'a [u8],
    /// Names or namespaces of contexts.
    pub queries: Vec<&'a [u8]>,
}

impl<'a> ContextQuery<'a> {
    /// The query in the data of the option; `None` when there is none.
    #[must_use]
    pub fn decode(data: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(data);
        let name = name(cursor.string()?)?;
        let count = cursor.u32()?;
        let mut queries = Vec::new();
        // Each query takes four bytes of data at least, so a hostile count ends with the data.
        for _ in 0..count {
            queries.push(cursor.string()?);
        }
        cursor.is_empty().then_some(Self { name, queries })
    }
}

fn name(name: &[u8]) -> Option<&[u8]> {
    (name.len() <= NAME_LENGTH_MAX).then_some(name)
}

/// Appends replies to one option.
pub(crate) struct Replies<'a> {
    pub(crate) option: u32,
    pub(crate) out: &'a mut Vec<u8>,
}

impl Replies<'_> {
    pub(crate) fn ack(&mut self) {
        self.reply(option_reply::ACK, &[]);
    }

    pub(crate) fn error(&mut self, kind: u32, text: &str) {
        self.reply(kind, &[text.as_bytes()]);
    }

    pub(crate) fn server(&mut self, name: &str, description: &str) {
        let length = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let parts = [&length.to_be_bytes()[..], name.as_bytes(), description.as_bytes()];
        self.reply(option_reply::SERVER, &parts);
    }

    pub(crate) fn info(&mut self, kind: u16, fields: &[&[u8]]) {
        let kind = kind.to_be_bytes();
        let mut parts = vec![&kind[..]];
        parts.extend(fields);
        self.reply(option_reply::INFO, &parts);
    }

    pub(crate) fn meta_context(&mut self, id: u32, name: &str) {
        self.reply(option_reply::META_CONTEXT, &[&id.to_be_bytes(), name.as_bytes()]);
    }

    fn reply(&mut self, kind: u32, parts: &[&[u8]]) {
        let length = parts.iter().map(|part| part.len()).sum::<usize>();
        let length = u32::try_from(length).expect("names are bounded");
        self.out.extend(OPTION_REPLY_MAGIC.to_be_bytes());
        self.out.extend(self.option.to_be_bytes());
        self.out.extend(kind.to_be_bytes());
        self.out.extend(length.to_be_bytes());
        for part in parts {
            self.out.extend(*part);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ContextQuery, InfoQuery, OptionHead};

    #[test]
    fn a_count_without_queries_is_refused() {
        let data = [0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        assert_eq!(ContextQuery::decode(&data), None);
        assert_eq!(InfoQuery::decode(&[0, 0, 0, 0, 0, 1]), None);
    }

    #[test]
    fn bytes_behind_a_query_are_refused() {
        assert!(InfoQuery::decode(&[0, 0, 0, 1, b'a', 0, 0]).is_some());
        assert!(InfoQuery::decode(&[0, 0, 0, 1, b'a', 0, 0, 0]).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_decode_without_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let _head = OptionHead::decode(&bytes);
            let _info = InfoQuery::decode(&bytes);
            drop(ContextQuery::decode(&bytes));
        }
    }
}
