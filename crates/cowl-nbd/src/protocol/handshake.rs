//! The server's side of the fixed newstyle handshake, one option at a time.
//!
//! ```text
//!   greeting ─► client flags ─► option ─► ... ─► GO or EXPORT_NAME ─► transmission
//!                                 │  ▲
//!                                 ▼  │ (everything agreed on before is forgotten)
//!                               STARTTLS
//! ```
//!
//! It takes bytes and gives bytes; sockets, TLS and time belong to whoever drives it.

use crate::protocol::limits::{NAME_LENGTH_MAX, OPTION_COUNT_MAX, OPTION_LENGTH_MAX};
use crate::protocol::limits::{OPTION_SKIP_MAX, PAYLOAD_MAX};
use crate::protocol::metadata::Contexts;
use crate::protocol::options::{ContextQuery, InfoQuery, OPTION_HEAD_LENGTH, OptionHead, Replies};
use crate::protocol::request::Headers;
use crate::protocol::wire::{
    Cursor, GREETING_MAGIC, OPTION_MAGIC, handshake_flag, info, option, option_reply,
    transmission_flag,
};

/// What a client is told about an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// A text for people; may be empty.
    pub description: String,
    /// Size in bytes.
    pub size: u64,
    /// Whether changes are refused.
    pub read_only: bool,
    /// The size and alignment of requests that is served best: a power of two, 4 KiB or so.
    pub preferred_block: u32,
    /// Names of its dirty bitmaps.
    pub bitmaps: Vec<String>,
}

/// The exports that a handshake can choose from.
pub trait Catalogue {
    /// What a chosen export is to the server.
    type Export;

    /// The export of that name; the empty name is the default export.
    fn find(&self, name: &[u8]) -> Option<(Self::Export, Facts)>;

    /// The names of all that may be listed, with what there is to say about each.
    fn names(&self) -> Vec<(String, String)>;
}

/// Whether clients may or must encrypt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsPolicy {
    /// There is no TLS.
    Unavailable,
    /// Those who ask for it get it.
    Offered,
    /// Without it there is nothing but STARTTLS and ABORT.
    Required,
}

/// What both sides agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Session<E> {
    /// The chosen export.
    pub export: E,
    /// The form of requests and replies.
    pub headers: Headers,
    /// What BLOCK_STATUS may tell.
    pub contexts: Contexts,
}

/// Where one step has led.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<E> {
    /// More bytes are needed.
    NeedMore,
    /// Something was answered or read past; go on.
    Continue,
    /// Send what there is, then encrypt. Bytes that came in the clear behind it must be thrown
    /// away by ending the connection: they may be an injection.
    StartTls,
    /// Send what there is, then the client sends requests.
    Ready(Session<E>),
    /// Send what there is, then close.
    Close(Ending),
}

/// Why a handshake ends without a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ending {
    /// The client does not want to go on.
    #[error("the client aborted")]
    Aborted,
    /// The client knows bits that nobody has defined.
    #[error("unknown client flags {flags:#x}")]
    UnknownFlags {
        /// All of its flags.
        flags: u32,
    },
    /// The client is out of step.
    #[error("an option starts with {magic:#x}")]
    BadMagic {
        /// What stands where the magic number belongs.
        magic: u64,
    },
    /// EXPORT_NAME cannot be answered with an error.
    #[error("the client asked for an export that it cannot have")]
    NoSuchExport,
    /// The limit on options.
    #[error("more options, or longer ones, than any client needs")]
    TooMuch,
}

enum Stage {
    ClientFlags,
    Options,
    /// Reading past what is left of an option.
    Skipping(usize),
}

/// A handshake in progress.
pub struct Handshake {
    tls: TlsPolicy,
    encrypted: bool,
    stage: Stage,
    zeroes: bool,
    headers: Headers,
    /// For which export which contexts were selected.
    selected: Option<(Vec<u8>, Contexts)>,
    option_count: u32,
}

impl Handshake {
    /// A new connection.
    #[must_use]
    pub fn new(tls: TlsPolicy) -> Self {
        Self {
            tls,
            encrypted: false,
            stage: Stage::ClientFlags,
            zeroes: true,
            headers: Headers::Simple,
            selected: None,
            option_count: 0,
        }
    }

    /// What the server says first.
    #[must_use]
    pub fn greeting() -> [u8; 18] {
        let flags = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        let mut bytes = [0; 18];
        bytes[..8].copy_from_slice(&GREETING_MAGIC.to_be_bytes());
        bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
        bytes[16..].copy_from_slice(&flags.to_be_bytes());
        bytes
    }

    /// The connection is encrypted from here on. What was agreed on before was agreed on with
    /// whoever was on the line, so it counts no more.
    pub fn encrypted(&mut self) {
        self.encrypted = true;
        self.headers = Headers::Simple;
        self.selected = None;
    }

    /// Takes one step with what stands at the start of `input`: appends answers to `out`, says how
    /// many bytes it took and where that has led.
    pub fn step<C: Catalogue>(
        &mut self,
        input: &[u8],
        catalogue: &C,
        out: &mut Vec<u8>,
    ) -> (usize, Step<C::Export>) {
        match self.stage {
            Stage::ClientFlags => self.client_flags(input),
            Stage::Options => self.option(input, catalogue, out),
            Stage::Skipping(0) => {
                self.stage = Stage::Options;
                (0, Step::Continue)
            }
            Stage::Skipping(_) if input.is_empty() => (0, Step::NeedMore),
            Stage::Skipping(left) => {
                let taken = left.min(input.len());
                self.stage = Stage::Skipping(left - taken);
                (taken, Step::Continue)
            }
        }
    }

    fn client_flags<E>(&mut self, input: &[u8]) -> (usize, Step<E>) {
        let Some(flags) = Cursor::new(input).u32() else { return (0, Step::NeedMore) };
        let known = handshake_flag::FIXED_NEWSTYLE | handshake_flag::NO_ZEROES;
        if flags & !u32::from(known) != 0 {
            return (4, Step::Close(Ending::UnknownFlags { flags }));
        }
        self.zeroes = flags & u32::from(handshake_flag::NO_ZEROES) == 0;
        self.stage = Stage::Options;
        (4, Step::Continue)
    }

    fn option<C: Catalogue>(
        &mut self,
        input: &[u8],
        catalogue: &C,
        out: &mut Vec<u8>,
    ) -> (usize, Step<C::Export>) {
        let head = match OptionHead::decode(input) {
            Ok(None) => return (0, Step::NeedMore),
            Ok(Some(head)) => head,
            Err(magic) => return (input.len(), Step::Close(Ending::BadMagic { magic })),
        };
        let length = usize::try_from(head.length).unwrap_or(usize::MAX);
        if OPTION_SKIP_MAX < head.length || self.option_count == OPTION_COUNT_MAX {
            return (input.len(), Step::Close(Ending::TooMuch));
        }
        let mut replies = Replies { option: head.option, out };
        if OPTION_LENGTH_MAX < length {
            self.option_count += 1;
            replies.error(option_reply::ERR_TOO_BIG, "the option is too long");
            self.stage = Stage::Skipping(length);
            return (OPTION_HEAD_LENGTH, Step::Continue);
        }
        let Some(data) = input[OPTION_HEAD_LENGTH..].get(..length) else {
            return (0, Step::NeedMore);
        };
        self.option_count += 1;
        (OPTION_HEAD_LENGTH + length, self.answer(head.option, data, catalogue, &mut replies))
    }

    fn answer<C: Catalogue>(
        &mut self,
        number: u32,
        data: &[u8],
        catalogue: &C,
        replies: &mut Replies<'_>,
    ) -> Step<C::Export> {
        if self.tls == TlsPolicy::Required && !self.encrypted {
            return self.answer_in_the_clear(number, data, replies);
        }
        match number {
            option::EXPORT_NAME => return self.export_name(data, catalogue, replies.out),
            option::ABORT => return abort(replies),
            option::GO => return self.go(data, catalogue, replies),
            option::STARTTLS => return self.start_tls(data, replies),
            option::LIST => list(data, catalogue, replies),
            option::INFO => drop(self.inform(data, catalogue, replies)),
            option::STRUCTURED_REPLY => self.raise_headers(Headers::Structured, data, replies),
            option::EXTENDED_HEADERS => self.raise_headers(Headers::Extended, data, replies),
            option::LIST_META_CONTEXT => self.list_contexts(data, catalogue, replies),
            option::SET_META_CONTEXT => self.set_contexts(data, catalogue, replies),
            _ => replies.error(option_reply::ERR_UNSUP, "this option is unknown here"),
        }
        Step::Continue
    }

    /// TLS is required and has not begun.
    fn answer_in_the_clear<E>(
        &mut self,
        number: u32,
        data: &[u8],
        replies: &mut Replies<'_>,
    ) -> Step<E> {
        match number {
            option::STARTTLS => self.start_tls(data, replies),
            option::ABORT => abort(replies),
            // This one has no error reply.
            option::EXPORT_NAME => Step::Close(Ending::NoSuchExport),
            _ => {
                replies.error(option_reply::ERR_TLS_REQD, "this server requires TLS");
                Step::Continue
            }
        }
    }

    fn start_tls<E>(&mut self, data: &[u8], replies: &mut Replies<'_>) -> Step<E> {
        if !data.is_empty() {
            replies.error(option_reply::ERR_INVALID, "STARTTLS has no data");
        } else if self.tls == TlsPolicy::Unavailable {
            replies.error(option_reply::ERR_POLICY, "this server has no TLS");
        } else if self.encrypted {
            replies.error(option_reply::ERR_INVALID, "the connection is encrypted already");
        } else {
            replies.ack();
            return Step::StartTls;
        }
        Step::Continue
    }

    fn raise_headers(&mut self, wanted: Headers, data: &[u8], replies: &mut Replies<'_>) {
        if !data.is_empty() {
            replies.error(option_reply::ERR_INVALID, "the option has no data");
        } else if self.headers == wanted {
            replies.error(option_reply::ERR_INVALID, "this was agreed on already");
        } else if wanted < self.headers {
            replies.error(option_reply::ERR_EXT_HEADER_REQD, "extended headers are agreed on");
        } else {
            self.headers = wanted;
            replies.ack();
        }
    }

    fn list_contexts<C: Catalogue>(&self, data: &[u8], catalogue: &C, replies: &mut Replies<'_>) {
        let Some((query, bitmaps)) = self.context_query(data, catalogue, replies) else { return };
        for context in Contexts::listed(&query.queries, &bitmaps).iter() {
            replies.meta_context(0, &context.name(&bitmaps));
        }
        replies.ack();
    }

    fn set_contexts<C: Catalogue>(
        &mut self,
        data: &[u8],
        catalogue: &C,
        replies: &mut Replies<'_>,
    ) {
        // Whatever the outcome, an earlier selection is void.
        self.selected = None;
        let Some((query, bitmaps)) = self.context_query(data, catalogue, replies) else { return };
        let contexts = Contexts::selected(&query.queries, &bitmaps);
        for context in contexts.iter() {
            replies.meta_context(context.id(), &context.name(&bitmaps));
        }
        self.selected = Some((query.name.to_vec(), contexts));
        replies.ack();
    }

    fn context_query<'a, C: Catalogue>(
        &self,
        data: &'a [u8],
        catalogue: &C,
        replies: &mut Replies<'_>,
    ) -> Option<(ContextQuery<'a>, Vec<String>)> {
        if self.headers == Headers::Simple {
            replies.error(option_reply::ERR_INVALID, "structured replies come first");
            return None;
        }
        let Some(query) = ContextQuery::decode(data) else {
            replies.error(option_reply::ERR_INVALID, "the query is malformed");
            return None;
        };
        let Some((_, facts)) = catalogue.find(query.name) else {
            replies.error(option_reply::ERR_UNKNOWN, "there is no such export");
            return None;
        };
        Some((query, facts.bitmaps))
    }

    fn go<C: Catalogue>(
        &mut self,
        data: &[u8],
        catalogue: &C,
        replies: &mut Replies<'_>,
    ) -> Step<C::Export> {
        match self.inform(data, catalogue, replies) {
            Some((export, name)) => Step::Ready(self.session(export, name)),
            None => Step::Continue,
        }
    }

    /// Answers GO or INFO.
    fn inform<'a, C: Catalogue>(
        &self,
        data: &'a [u8],
        catalogue: &C,
        replies: &mut Replies<'_>,
    ) -> Option<(C::Export, &'a [u8])> {
        let Some(query) = InfoQuery::decode(data) else {
            replies.error(option_reply::ERR_INVALID, "the query is malformed");
            return None;
        };
        let Some((export, facts)) = catalogue.find(query.name) else {
            replies.error(option_reply::ERR_UNKNOWN, "there is no such export");
            return None;
        };
        if query.wants_name {
            replies.info(info::NAME, &[facts.name.as_bytes()]);
        }
        if query.wants_description && !facts.description.is_empty() {
            replies.info(info::DESCRIPTION, &[facts.description.as_bytes()]);
        }
        let flags = self.flags(&facts, query.name);
        replies.info(info::EXPORT, &[&facts.size.to_be_bytes(), &flags.to_be_bytes()]);
        // Any alignment is served, so a client that does not ask for the sizes need not know them.
        let sizes = [1, facts.preferred_block, PAYLOAD_MAX].map(u32::to_be_bytes);
        replies.info(info::BLOCK_SIZE, &[&sizes[0], &sizes[1], &sizes[2]]);
        replies.ack();
        Some((export, query.name))
    }

    fn export_name<C: Catalogue>(
        &mut self,
        name: &[u8],
        catalogue: &C,
        out: &mut Vec<u8>,
    ) -> Step<C::Export> {
        let found = catalogue.find(name).filter(|_| name.len() <= NAME_LENGTH_MAX);
        let Some((export, facts)) = found else { return Step::Close(Ending::NoSuchExport) };
        out.extend(facts.size.to_be_bytes());
        out.extend(self.flags(&facts, name).to_be_bytes());
        if self.zeroes {
            out.extend([0; 124]);
        }
        Step::Ready(self.session(export, name))
    }

    fn session<E>(&self, export: E, name: &[u8]) -> Session<E> {
        Session { export, headers: self.headers, contexts: self.contexts_for(name) }
    }

    /// The selected contexts, if they were selected for this very export.
    fn contexts_for(&self, name: &[u8]) -> Contexts {
        match &self.selected {
            Some((selected_for, contexts)) if selected_for == name => *contexts,
            _ => Contexts::NONE,
        }
    }

    fn flags(&self, facts: &Facts, name: &[u8]) -> u16 {
        use transmission_flag as flag;
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_CACHE
            | flag::CAN_MULTI_CONN;
        if facts.read_only {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        }
        if self.headers != Headers::Simple {
            flags |= flag::SEND_DF;
        }
        if self.headers == Headers::Extended && !self.contexts_for(name).is_empty() {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }
}

fn abort<E>(replies: &mut Replies<'_>) -> Step<E> {
    replies.ack();
    Step::Close(Ending::Aborted)
}

fn list<C: Catalogue>(data: &[u8], catalogue: &C, replies: &mut Replies<'_>) {
    if !data.is_empty() {
        replies.error(option_reply::ERR_INVALID, "LIST has no data");
        return;
    }
    for (name, description) in catalogue.names() {
        replies.server(&name, &description);
    }
    replies.ack();
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Catalogue, Ending, Facts, Handshake, Session, Step, TlsPolicy};
    use crate::protocol::metadata::Contexts;
    use crate::protocol::request::Headers;
    use crate::protocol::wire::{OPTION_MAGIC, option, option_reply, transmission_flag};

    struct One;

    impl Catalogue for One {
        type Export = u8;

        fn find(&self, name: &[u8]) -> Option<(u8, Facts)> {
            let facts = Facts {
                name: "disk".to_owned(),
                description: "a disk".to_owned(),
                size: 1 << 30,
                read_only: false,
                preferred_block: 4096,
                bitmaps: Vec::new(),
            };
            (name.is_empty() || name == b"disk").then_some((7, facts))
        }

        fn names(&self) -> Vec<(String, String)> {
            vec![("disk".to_owned(), String::new())]
        }
    }

    fn sent(number: u32, data: &[u8]) -> Vec<u8> {
        let length = u32::try_from(data.len()).unwrap();
        let parts =
            [&OPTION_MAGIC.to_be_bytes()[..], &number.to_be_bytes(), &length.to_be_bytes(), data];
        parts.concat()
    }

    fn named(name: &str) -> Vec<u8> {
        [&u32::try_from(name.len()).unwrap().to_be_bytes()[..], name.as_bytes()].concat()
    }

    fn go_data(name: &str) -> Vec<u8> {
        [named(name), vec![0, 0]].concat()
    }

    fn contexts_data(name: &str, queries: &[&str]) -> Vec<u8> {
        let mut data = named(name);
        data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
        for query in queries {
            data.extend(named(query));
        }
        data
    }

    /// Feeds everything; answers with the reply types, or raw bytes' length behind EXPORT_NAME.
    fn converse(tls: TlsPolicy, options: &[Vec<u8>]) -> (Vec<u32>, Step<u8>) {
        let mut handshake = Handshake::new(tls);
        let mut input = vec![0, 0, 0, 3];
        input.extend(options.concat());
        let (out, end) = feed(&mut handshake, &input);
        let mut types = Vec::new();
        let mut rest = &out[..];
        while 20 <= rest.len() {
            types.push(u32::from_be_bytes(rest[12..16].try_into().unwrap()));
            let length = u32::from_be_bytes(rest[16..20].try_into().unwrap());
            rest = &rest[20 + usize::try_from(length).unwrap()..];
        }
        (types, end)
    }

    fn feed(handshake: &mut Handshake, mut input: &[u8]) -> (Vec<u8>, Step<u8>) {
        let mut out = Vec::new();
        loop {
            let (taken, step) = handshake.step(input, &One, &mut out);
            input = &input[taken..];
            if step != Step::Continue {
                return (out, step);
            }
        }
    }

    #[test]
    fn go_tells_the_block_sizes_and_ends_the_handshake() {
        let (types, end) = converse(TlsPolicy::Unavailable, &[sent(option::GO, &go_data("disk"))]);
        assert_eq!(types, [option_reply::INFO, option_reply::INFO, option_reply::ACK]);
        let expected = Session { export: 7, headers: Headers::Simple, contexts: Contexts::NONE };
        assert_eq!(end, Step::Ready(expected));
    }

    #[test]
    fn export_name_leaves_the_zeroes_out_where_both_agreed() {
        for (flags, length) in [(1, 134), (3, 10)] {
            let mut handshake = Handshake::new(TlsPolicy::Unavailable);
            let input = [vec![0, 0, 0, flags], sent(option::EXPORT_NAME, b"")].concat();
            let (out, end) = feed(&mut handshake, &input);
            assert_eq!(out.len(), length);
            assert!(matches!(end, Step::Ready(_)));
        }
    }

    #[test]
    fn export_name_of_nothing_closes() {
        let (types, end) = converse(TlsPolicy::Offered, &[sent(option::EXPORT_NAME, b"no")]);
        assert!(types.is_empty());
        assert_eq!(end, Step::Close(Ending::NoSuchExport));
    }

    #[test]
    fn contexts_count_for_the_export_they_were_selected_for() {
        let set = sent(
            option::SET_META_CONTEXT,
            &contexts_data("disk", &["base:allocation", "x:y", "qemu:"]),
        );
        for (name, contexts) in
            [("disk", Contexts::selected(&[b"base:allocation"], &[])), ("", Contexts::NONE)]
        {
            let structured = sent(option::STRUCTURED_REPLY, &[]);
            let options = [structured, set.clone(), sent(option::GO, &go_data(name))];
            let (types, end) = converse(TlsPolicy::Unavailable, &options);
            assert_eq!(
                types[..3],
                [option_reply::ACK, option_reply::META_CONTEXT, option_reply::ACK]
            );
            let headers = Headers::Structured;
            assert_eq!(end, Step::Ready(Session { export: 7, headers, contexts }));
        }
    }

    #[test]
    fn contexts_need_structured_replies_and_a_known_export() {
        let set = |name| sent(option::SET_META_CONTEXT, &contexts_data(name, &[]));
        let structured = sent(option::STRUCTURED_REPLY, &[]);
        let (types, _) =
            converse(TlsPolicy::Unavailable, &[set("disk"), structured, set("nothing")]);
        let expected = [option_reply::ERR_INVALID, option_reply::ACK, option_reply::ERR_UNKNOWN];
        assert_eq!(types, expected);
    }

    #[test]
    fn headers_only_grow_and_are_agreed_on_once() {
        let structured = || sent(option::STRUCTURED_REPLY, &[]);
        let extended = || sent(option::EXTENDED_HEADERS, &[]);
        let options = [structured(), structured(), extended(), extended(), structured()];
        let (types, _) = converse(TlsPolicy::Unavailable, &options);
        let expected = [
            option_reply::ACK,
            option_reply::ERR_INVALID,
            option_reply::ACK,
            option_reply::ERR_INVALID,
            option_reply::ERR_EXT_HEADER_REQD,
        ];
        assert_eq!(types, expected);
    }

    #[test]
    fn extended_headers_with_contexts_take_selections() {
        let mut handshake = Handshake::new(TlsPolicy::Unavailable);
        let set = contexts_data("disk", &["base:allocation"]);
        let input = [
            vec![0, 0, 0, 3],
            sent(option::EXTENDED_HEADERS, &[]),
            sent(option::SET_META_CONTEXT, &set),
        ];
        feed(&mut handshake, &input.concat());
        let facts = One.find(b"").unwrap().1;
        let has =
            |name| handshake.flags(&facts, name) & transmission_flag::BLOCK_STATUS_PAYLOAD != 0;
        assert!(has(b"disk") && !has(b""));
    }

    #[test]
    fn without_required_tls_nothing_else_is_answered() {
        let options = [sent(option::LIST, &[]), sent(option::STARTTLS, &[])];
        let (types, end) = converse(TlsPolicy::Required, &options);
        assert_eq!(types, [option_reply::ERR_TLS_REQD, option_reply::ACK]);
        assert_eq!(end, Step::StartTls);
    }

    #[test]
    fn encryption_forgets_what_was_agreed_on_in_the_clear() {
        let mut handshake = Handshake::new(TlsPolicy::Offered);
        let input =
            [vec![0, 0, 0, 3], sent(option::EXTENDED_HEADERS, &[]), sent(option::STARTTLS, &[])];
        assert_eq!(feed(&mut handshake, &input.concat()).1, Step::StartTls);
        handshake.encrypted();
        let (_, end) = feed(&mut handshake, &sent(option::GO, &go_data("")));
        let Step::Ready(session) = end else { panic!("GO succeeds") };
        assert_eq!(session.headers, Headers::Simple);
    }

    #[test]
    fn unknown_options_are_unsupported_and_long_ones_read_past() {
        let long = vec![0; 100_000];
        let options = [sent(99, b"x"), sent(option::LIST, &long), sent(option::LIST, &[])];
        let (types, end) = converse(TlsPolicy::Unavailable, &options);
        let expected = [
            option_reply::ERR_UNSUP,
            option_reply::ERR_TOO_BIG,
            option_reply::SERVER,
            option_reply::ACK,
        ];
        assert_eq!(types, expected);
        assert_eq!(end, Step::NeedMore);
    }

    #[test]
    fn absurd_lengths_end_the_connection() {
        let option = [&OPTION_MAGIC.to_be_bytes()[..], &[0, 0, 0, 3, 0xff, 0, 0, 0]].concat();
        let (_, end) = converse(TlsPolicy::Unavailable, &[option]);
        assert_eq!(end, Step::Close(Ending::TooMuch));
    }

    proptest! {
        #[test]
        fn any_bytes_take_finite_steps_without_panic(
            options in proptest::collection::vec(
                (0u32..12, proptest::collection::vec(0u8..4, 0..40)), 0..8,
            ),
            tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut input = vec![0, 0, 0, 3];
            for (number, data) in &options {
                input.extend(sent(*number, data));
            }
            input.extend(tail);
            let mut handshake = Handshake::new(TlsPolicy::Offered);
            drop(feed(&mut handshake, &input));
        }
    }
}
