//! The NBD server's side of a conversation: however its bytes are cut, the same answers.

use cowl_nbd::TlsPolicy;
use cowl_nbd::protocol::command::{Command, Payload, Terms, judge, select_contexts};
use cowl_nbd::protocol::handshake::{Catalogue, Facts, Handshake, Session, Step};
use cowl_nbd::protocol::limits::{OPTION_LENGTH_MAX, PAYLOAD_MAX, PAYLOAD_SKIP_MAX};
use cowl_nbd::protocol::request::Request;

const SIZE: u64 = 1 << 30;

/// Answers that one byte of a client can be worth: GO with everything, in 22 bytes.
const ANSWER_PER_BYTE_MAX: usize = 32;

struct OneExport;

impl Catalogue for OneExport {
    type Export = ();

    fn find(&self, name: &[u8]) -> Option<((), Facts)> {
        let facts = Facts {
            name: "a".to_owned(),
            description: "text".to_owned(),
            size: SIZE,
            read_only: false,
            preferred_block: 4096,
            bitmaps: vec!["b0".to_owned()],
        };
        (name.is_empty() || name == b"a").then_some(((), facts))
    }

    fn names(&self) -> Vec<(String, String)> {
        vec![("a".to_owned(), "text".to_owned())]
    }
}

/// The first byte says how the server is set up and how the rest, what a client sends, is cut.
pub fn nbd(data: &[u8]) {
    let Some((&setup, sent)) = data.split_first() else { return };
    let tls = match setup & 3 {
        0 => TlsPolicy::Unavailable,
        1 => TlsPolicy::Required,
        _ => TlsPolicy::Offered,
    };
    let whole = converse(tls, sent, sent.len().max(1));
    let cut = converse(tls, sent, usize::from(setup >> 2) + 1);
    assert_eq!(whole.0, cut.0);
    assert_eq!(whole.1.is_some(), cut.1.is_some());
    if let Some((session, rest)) = whole.1 {
        judge_all(&session, rest);
    }
}

/// What was answered, and where requests begin if it came to that.
type Outcome<'a> = (Vec<u8>, Option<(Session<()>, &'a [u8])>);

/// Feeds `sent`, of which `piece` bytes more arrive whenever more are needed.
fn converse(tls: TlsPolicy, sent: &[u8], piece: usize) -> Outcome<'_> {
    let mut handshake = Handshake::new(tls);
    let mut answers = Vec::new();
    let (mut start, mut end) = (0, 0);
    loop {
        let (taken, step) = handshake.step(&sent[start..end], &OneExport, &mut answers);
        start += taken;
        assert!(start <= end);
        assert!(answers.len() <= ANSWER_PER_BYTE_MAX * (start + 16));
        match step {
            Step::NeedMore if end == sent.len() => return (answers, None),
            Step::NeedMore => {
                // Whatever it waits for fits the buffer of a connection.
                assert!(end - start <= OPTION_LENGTH_MAX + 16);
                end = sent.len().min(end + piece);
            }
            Step::Continue => {}
            Step::StartTls => handshake.encrypted(),
            Step::Ready(session) => return (answers, Some((session, &sent[start..]))),
            Step::Close(_) => return (answers, None),
        }
    }
}

/// Reads requests until the client is out of step; what is accepted stays within the export.
fn judge_all(session: &Session<()>, mut rest: &[u8]) {
    let terms = Terms {
        headers: session.headers,
        contexts: session.contexts,
        size: SIZE,
        read_only: false,
    };
    while let Ok(Some(request)) = Request::decode(rest, session.headers) {
        assert!(rest.starts_with(&request.encode(session.headers)));
        rest = &rest[session.headers.request_length()..];
        let Ok(judged) = judge(&request, &terms) else { return };
        check_range(judged.command.ok());
        let payload = match judged.payload {
            Payload::None => 0,
            Payload::Data => {
                assert!(request.length <= u64::from(PAYLOAD_MAX));
                request.length
            }
            Payload::Skip(length) => {
                assert!(length <= PAYLOAD_SKIP_MAX);
                length
            }
            Payload::Selection(length) => {
                assert!(length < 100);
                if let Some(bytes) = rest.get(..length)
                    && let Ok((contexts, range)) = select_contexts(bytes, request.offset, &terms)
                {
                    assert!(!contexts.is_empty());
                    assert!(range.at + range.length <= SIZE);
                }
                length as u64
            }
        };
        let payload = usize::try_from(payload).unwrap_or(usize::MAX);
        rest = rest.get(payload..).unwrap_or_default();
    }
}

fn check_range(command: Option<Command>) {
    if let Some(
        Command::Read { range, .. }
        | Command::Write { range, .. }
        | Command::Trim { range, .. }
        | Command::WriteZeroes { range, .. }
        | Command::Cache { range },
    ) = command
    {
        assert!(range.at.checked_add(range.length).is_some_and(|end| end <= SIZE));
    }
}
