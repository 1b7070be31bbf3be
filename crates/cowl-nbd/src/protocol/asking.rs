//! The client's side of the handshake, as bytes in and bytes out.
//!
//! It asks for extended headers, else structured replies, else neither; for `base:allocation`
//! where the server has it; and goes to one export.

use crate::protocol::limits::{OPTION_LENGTH_MAX, PAYLOAD_MAX};
use crate::protocol::request::Headers;
use crate::protocol::wire::{
    Cursor, GREETING_MAGIC, OPTION_MAGIC, OPTION_REPLY_MAGIC, handshake_flag, info, option,
    option_reply,
};

const CONTEXT: &[u8] = b"base:allocation";

/// What the server has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Size of the export.
    pub size: u64,
    /// Bits of `wire::transmission_flag`.
    pub flags: u16,
    /// The agreed form of requests and replies.
    pub headers: Headers,
    /// Whether block status tells holes.
    pub tells_holes: bool,
    /// Smallest, best and largest request.
    pub block_sizes: [u32; 3],
}

/// Why there is no session.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Declined {
    /// What came is no newstyle server's greeting or reply.
    #[error("this is no NBD server that speaks fixed newstyle")]
    NotUnderstood,
    /// The server refuses the export, in its own words.
    #[error("the server refuses the export: {text} (reply {kind:#x})")]
    Refused {
        /// A number of `wire::option_reply`.
        kind: u32,
        /// What it says.
        text: String,
    },
}

enum Stage {
    Greeting,
    Asked(u32),
}

/// A client's handshake in progress.
pub struct Asking {
    export: Vec<u8>,
    stage: Stage,
    headers: Headers,
    tells_holes: bool,
    block_sizes: [u32; 3],
    export_info: Option<(u64, u16)>,
}

impl Asking {
    /// For the export of that name.
    #[must_use]
    pub fn new(export: &[u8]) -> Self {
        Self {
            export: export.to_vec(),
            stage: Stage::Greeting,
            headers: Headers::Simple,
            tells_holes: false,
            // What a server that says nothing about it is good for.
            block_sizes: [1, 4096, PAYLOAD_MAX],
            export_info: None,
        }
    }

    /// Takes what stands at the start of `input`, appends what to send to `out`; says how many
    /// bytes it took (none: more are needed), and in the end what the server has.
    pub fn step(
        &mut self,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Offer>), Declined> {
        match self.stage {
            Stage::Greeting => self.greeting(input, out).map(|taken| (taken, None)),
            Stage::Asked(asked) => self.reply(asked, input, out),
        }
    }

    fn greeting(&mut self, input: &[u8], out: &mut Vec<u8>) -> Result<usize, Declined> {
        let mut cursor = Cursor::new(input);
        let (Some(magic), Some(option_magic), Some(flags)) =
            (cursor.u64(), cursor.u64(), cursor.u16())
        else {
            return Ok(0);
        };
        let is_fixed = flags & handshake_flag::FIXED_NEWSTYLE != 0;
        if magic != GREETING_MAGIC || option_magic != OPTION_MAGIC || !is_fixed {
            return Err(Declined::NotUnderstood);
        }
        let both = flags & (handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES);
        out.extend(u32::from(both).to_be_bytes());
        self.ask(option::EXTENDED_HEADERS, out);
        Ok(18)
    }

    fn ask(&mut self, number: u32, out: &mut Vec<u8>) {
        let data = match number {
            option::SET_META_CONTEXT => {
                [&named(&self.export)[..], &1_u32.to_be_bytes(), &named(CONTEXT)].concat()
            }
            option::GO => {
                [&named(&self.export)[..], &1_u16.to_be_bytes(), &info::BLOCK_SIZE.to_be_bytes()]
                    .concat()
            }
            _ => Vec::new(),
        };
        let length = u32::try_from(data.len()).expect("names are bounded");
        out.extend(OPTION_MAGIC.to_be_bytes());
        out.extend(number.to_be_bytes());
        out.extend(length.to_be_bytes());
        out.extend(data);
        self.stage = Stage::Asked(number);
    }

    fn reply(
        &mut self,
        asked: u32,
        input: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(usize, Option<Offer>), Declined> {
        let mut cursor = Cursor::new(input);
        let (Some(magic), Some(option), Some(kind), Some(length)) =
            (cursor.u64(), cursor.u32(), cursor.u32(), cursor.u32())
        else {
            return Ok((0, None));
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if magic != OPTION_REPLY_MAGIC || option != asked || OPTION_LENGTH_MAX < length {
            return Err(Declined::NotUnderstood);
        }
        let Some(data) = cursor.take(length) else { return Ok((0, None)) };
        let taken = 20 + length;
        match kind {
            option_reply::ACK => self.agreed(asked, out).map(|offer| (taken, offer)),
            option_reply::INFO => {
                self.inform(data);
                Ok((taken, None))
            }
            option_reply::META_CONTEXT => {
                self.tells_holes |= data.get(4..) == Some(CONTEXT);
                Ok((taken, None))
            }
            kind if kind < 1 << 31 => Err(Declined::NotUnderstood),
            kind => self.refused(asked, kind, data, out).map(|()| (taken, None)),
        }
    }

    fn agreed(&mut self, asked: u32, out: &mut Vec<u8>) -> Result<Option<Offer>, Declined> {
        match asked {
            option::EXTENDED_HEADERS => self.headers = Headers::Extended,
            option::STRUCTURED_REPLY => self.headers = Headers::Structured,
            option::GO => return self.offer().map(Some),
            _ => {
                self.ask(option::GO, out);
                return Ok(None);
            }
        }
        self.ask(option::SET_META_CONTEXT, out);
        Ok(None)
    }

    fn refused(
        &mut self,
        asked: u32,
        kind: u32,
        data: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Declined> {
        match asked {
            option::EXTENDED_HEADERS => self.ask(option::STRUCTURED_REPLY, out),
            option::GO => {
                let text = String::from_utf8_lossy(data).into_owned();
                return Err(Declined::Refused { kind, text });
            }
            // Without structured replies, or without contexts, there is still the export.
            _ => self.ask(option::GO, out),
        }
        Ok(())
    }

    fn inform(&mut self, data: &[u8]) {
        let mut cursor = Cursor::new(data);
        match cursor.u16() {
            Some(info::EXPORT) => self.export_info = cursor.u64().zip(cursor.u16()),
            Some(info::BLOCK_SIZE) => {
                if let (Some(least), Some(best), Some(most)) =
                    (cursor.u32(), cursor.u32(), cursor.u32())
                {
                    self.block_sizes = [least, best, most.min(PAYLOAD_MAX)];
                }
            }
            _ => {}
        }
    }

    fn offer(&self) -> Result<Offer, Declined> {
        let (size, flags) = self.export_info.ok_or(Declined::NotUnderstood)?;
        let [least, best, most] = self.block_sizes;
        let is_sound = least.is_power_of_two() && best.is_power_of_two() && least <= most;
        // Offsets of files have 63 bits.
        if !is_sound || i64::try_from(size).is_err() {
            return Err(Declined::NotUnderstood);
        }
        Ok(Offer {
            size,
            flags,
            headers: self.headers,
            tells_holes: self.tells_holes,
            block_sizes: self.block_sizes,
        })
    }
}

fn named(name: &[u8]) -> Vec<u8> {
    let length = u32::try_from(name.len()).expect("names are bounded");
    [&length.to_be_bytes()[..], name].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Asking, Declined, Offer};
    use crate::protocol::handshake::{Catalogue, Facts, Handshake, Step, TlsPolicy};
    use crate::protocol::request::Headers;

    struct One;

    impl Catalogue for One {
        type Export = ();

        fn find(&self, name: &[u8]) -> Option<((), Facts)> {
            let facts = Facts {
                name: "disk".to_owned(),
                description: String::new(),
                size: 1 << 30,
                read_only: true,
                preferred_block: 65536,
                bitmaps: Vec::new(),
            };
            (name == b"disk").then_some(((), facts))
        }

        fn names(&self) -> Vec<(String, String)> {
            Vec::new()
        }
    }

    /// Lets our client talk to our server.
    fn talk(export: &[u8]) -> Result<Offer, Declined> {
        let mut server = Handshake::new(TlsPolicy::Unavailable);
        let mut client = Asking::new(export);
        let (mut to_client, mut to_server) = (Handshake::greeting().to_vec(), Vec::new());
        loop {
            let (taken, offer) = client.step(&to_client, &mut to_server)?;
            to_client.drain(..taken);
            if let Some(offer) = offer {
                return Ok(offer);
            }
            let (taken, step) = server.step(&to_server, &One, &mut to_client);
            to_server.drain(..taken);
            assert!(!matches!(step, Step::Close(_)));
        }
    }

    #[test]
    fn client_and_server_agree_on_the_most_they_can() {
        let offer = talk(b"disk").unwrap();
        assert_eq!((offer.size, offer.headers), (1 << 30, Headers::Extended));
        assert!(offer.tells_holes);
        assert_eq!(offer.block_sizes, [1, 65536, 32 << 20]);
        assert_eq!(offer.flags & 2, 2);
    }

    #[test]
    fn an_unknown_export_is_refused_in_words() {
        assert!(matches!(talk(b"other"), Err(Declined::Refused { .. })));
    }

    proptest! {
        #[test]
        fn any_reply_is_taken_without_panic(
            replies in proptest::collection::vec(
                (7u32..12, 0u32..6, proptest::collection::vec(any::<u8>(), 0..24)), 0..8,
            ),
        ) {
            let mut input = Handshake::greeting().to_vec();
            for (option, kind, data) in replies {
                input.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
                input.extend(option.to_be_bytes());
                input.extend(kind.to_be_bytes());
                input.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
                input.extend(data);
            }
            let mut client = Asking::new(b"");
            let mut out = Vec::new();
            while let Ok((taken, None)) = client.step(&input, &mut out) {
                if taken == 0 {
                    break;
                }
                input.drain(..taken);
            }
        }
    }
}
