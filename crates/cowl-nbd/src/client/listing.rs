//! What a server has to offer: its exports, and what can be known of each without taking it.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::{ConnectError, NbdUri};
use crate::protocol::asking::Declined;
use crate::protocol::limits::OPTION_LENGTH_MAX;
use crate::protocol::wire::{
    Cursor, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag, info, option,
    option_reply,
};

/// Exports that are listed: a server has no reason to have more, and a hostile one gets no more of
/// our memory.
const EXPORTS_MAX: usize = 10_000;

/// Replies to one option.
const REPLIES_MAX: usize = 2 * EXPORTS_MAX;

/// An export as its server describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedExport {
    /// Its name.
    pub name: String,
    /// What the server says about it; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Transmission flags.
    pub flags: u16,
    /// Smallest, best and largest request, where the server says so.
    pub block_sizes: Option<[u32; 3]>,
    /// Whether requests may be longer than 32 bits can say.
    pub is_extended: bool,
    /// Names of the metadata contexts.
    pub contexts: Vec<String>,
}

/// Asks the server at `place`, whatever export that names, for all that it lists. Waits for it
/// meanwhile.
pub fn list_exports(place: &NbdUri) -> Result<Vec<ListedExport>, ConnectError> {
    let mut asking = Asking { stream: stream(place.connect()?) };
    asking.greet()?;
    let is_extended = asking.ask(option::EXTENDED_HEADERS, &[])?.is_some();
    let has_contexts = is_extended || asking.ask(option::STRUCTURED_REPLY, &[])?.is_some();
    let refused = || Declined::Refused {
        kind: option_reply::ERR_POLICY,
        text: "it does not list its exports".to_owned(),
    };
    let names = asking.ask(option::LIST, &[])?.ok_or_else(refused)?;
    let mut exports = Vec::new();
    for (kind, data) in names {
        if kind != option_reply::SERVER || EXPORTS_MAX <= exports.len() {
            continue;
        }
        let mut cursor = Cursor::new(&data);
        let name = cursor.u32().and_then(|length| cursor.take(length.try_into().ok()?));
        let name = name.ok_or(Declined::NotUnderstood)?.to_vec();
        let mut export = asking.describe(&name, is_extended, has_contexts)?;
        if export.description.is_empty() {
            // Some say it here.
            export.description = String::from_utf8_lossy(&data[4 + name.len()..]).into_owned();
        }
        exports.push(export);
    }
    // A server that has gone already is left, too.
    let _gone = asking.send(option::ABORT, &[]);
    Ok(exports)
}

/// A socket of either family, used with plain calls only.
fn stream(socket: OwnedFd) -> UnixStream {
    socket.into()
}

/// A conversation with a server.
struct Asking {
    stream: UnixStream,
}

/// Kind and data.
type Reply = (u32, Vec<u8>);

impl Asking {
    fn greet(&mut self) -> Result<(), ConnectError> {
        let mut greeting = [0; 18];
        self.stream.read_exact(&mut greeting)?;
        let mut cursor = Cursor::new(&greeting);
        let heard = (cursor.u64(), cursor.u64(), cursor.u16());
        match heard {
            (Some(GREETING_MAGIC), Some(OPTION_MAGIC), Some(flags))
                if flags & handshake_flag::FIXED_NEWSTYLE != 0 =>
            {
                let both = flags & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
                Ok(self.stream.write_all(&u32::from(both).to_be_bytes())?)
            }
            _ => Err(Declined::NotUnderstood.into()),
        }
    }

    fn send(&mut self, number: u32, data: &[u8]) -> io::Result<()> {
        let length = u32::try_from(data.len()).expect("names are bounded");
        let head = [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &length.to_be_bytes()];
        self.stream.write_all(&[&head.concat(), data].concat())
    }

    /// The replies to an option, without the last; `None` when the server refuses it.
    fn ask(&mut self, number: u32, data: &[u8]) -> Result<Option<Vec<Reply>>, ConnectError> {
        self.send(number, data)?;
        let mut replies = Vec::new();
        loop {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head)?;
            let mut cursor = Cursor::new(&head);
            let (Some(OPTION_REPLY_MAGIC), Some(option), Some(kind), Some(length)) =
                (cursor.u64(), cursor.u32(), cursor.u32(), cursor.u32())
            else {
                return Err(Declined::NotUnderstood.into());
            };
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if option != number || OPTION_LENGTH_MAX < length || REPLIES_MAX <= replies.len() {
                return Err(Declined::NotUnderstood.into());
            }
            let mut data = vec![0; length];
            self.stream.read_exact(&mut data)?;
            match kind {
                option_reply::ACK => return Ok(Some(replies)),
                kind if kind & 1 << 31 != 0 => return Ok(None),
                kind => replies.push((kind, data)),
            }
        }
    }

    fn describe(
        &mut self,
        name: &[u8],
        is_extended: bool,
        has_contexts: bool,
    ) -> Result<ListedExport, ConnectError> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut export = ListedExport { name: text(name), is_extended, ..Default::default() };
        let length = u32::try_from(name.len()).expect("names are bounded").to_be_bytes();
        let wanted = [info::DESCRIPTION, info::BLOCK_SIZE].map(u16::to_be_bytes).concat();
        let query = [&length[..], name, &2_u16.to_be_bytes(), &wanted].concat();
        for (_, data) in self.ask(option::INFO, &query)?.unwrap_or_default() {
            let mut cursor = Cursor::new(&data);
            match cursor.u16() {
                Some(info::EXPORT) => {
                    if let (Some(size), Some(flags)) = (cursor.u64(), cursor.u16()) {
                        (export.size, export.flags) = (size, flags);
                    }
                }
                Some(info::DESCRIPTION) => export.description = text(&data[2..]),
                Some(info::BLOCK_SIZE) => {
                    let sizes = (cursor.u32(), cursor.u32(), cursor.u32());
                    if let (Some(least), Some(best), Some(most)) = sizes {
                        export.block_sizes = Some([least, best, most]);
                    }
                }
                _ => {}
            }
        }
        if has_contexts {
            let query = [&length[..], name, &0_u32.to_be_bytes()].concat();
            let contexts = self.ask(option::LIST_META_CONTEXT, &query)?.unwrap_or_default();
            let named = |(_, data): Reply| data.get(4..).map(text);
            export.contexts = contexts.into_iter().filter_map(named).collect();
        }
        Ok(export)
    }
}
