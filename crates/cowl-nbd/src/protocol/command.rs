//! What a request asks for, once it is believed; and the error it gets otherwise.

use crate::protocol::errno::Errno;
use crate::protocol::limits::{PAYLOAD_MAX, PAYLOAD_SKIP_MAX, STATUS_ID_COUNT_MAX};
use crate::protocol::metadata::Contexts;
use crate::protocol::request::{Headers, Request};
use crate::protocol::wire::{Cursor, command, command_flag};

/// Whether a change has to be durable when it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// After the next flush.
    Later,
    /// At once (FUA).
    Now,
}

/// A run of bytes within the export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub at: u64,
    /// Number of bytes; may be zero.
    pub length: u64,
}

/// A request that makes sense on this export, in this session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send the bytes of a range, at most `PAYLOAD_MAX` of them.
    Read {
        /// Which.
        range: Range,
        /// Whether holes must be sent as bytes and everything in one chunk (DF).
        in_one_piece: bool,
    },
    /// Store the payload, `range.length` bytes.
    Write {
        /// Where.
        range: Range,
        /// When durable.
        durability: Durability,
    },
    /// Make everything answered so far durable.
    Flush,
    /// Give up the content of a range.
    Trim {
        /// Which.
        range: Range,
        /// When durable.
        durability: Durability,
    },
    /// Make a range read as zeros.
    WriteZeroes {
        /// Which.
        range: Range,
        /// Whether the host keeps the space (NO_HOLE).
        keep_allocated: bool,
        /// Whether to fail at once instead of writing zeros one by one.
        only_if_fast: bool,
        /// When durable.
        durability: Durability,
    },
    /// Read ahead.
    Cache {
        /// Which.
        range: Range,
    },
    /// Tell how a range is stored.
    BlockStatus {
        /// Which; with a selection in the payload, the length is in there.
        range: Range,
        /// Only the first descriptor of each context.
        first_only: bool,
    },
    /// Goodbye.
    Disconnect,
}

/// What comes behind the header of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payload {
    /// Nothing.
    None,
    /// The bytes of a write.
    Data,
    /// So many bytes that select contexts for a block status; see [`select_contexts`].
    Selection(usize),
    /// So many bytes of a refused request, to be read past.
    Skip(u64),
}

/// The judgement of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Judged {
    /// What to read before the next request.
    pub payload: Payload,
    /// What to do, or the error to answer.
    pub command: Result<Command, Errno>,
}

/// The payload of a refused request is too long to be read past: the connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a refused request has a payload of {length} bytes")]
pub struct PayloadTooLong {
    /// The announced length.
    pub length: u64,
}

/// What a request is judged by.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Form of the headers.
    pub headers: Headers,
    /// Contexts that the client selected.
    pub contexts: Contexts,
    /// Size of the export at the moment.
    pub size: u64,
    /// Whether changes are refused.
    pub read_only: bool,
}

/// Judges `request`. Pure: no I/O, no state.
pub fn judge(request: &Request, terms: &Terms) -> Result<Judged, PayloadTooLong> {
    let command = check_flags(request, terms).and_then(|()| command_of(request, terms));
    let payload = payload_of(request, terms, command.is_ok());
    match payload {
        Payload::Skip(length) if PAYLOAD_SKIP_MAX < length => Err(PayloadTooLong { length }),
        payload => Ok(Judged { payload, command }),
    }
}

fn payload_of(request: &Request, terms: &Terms, is_accepted: bool) -> Payload {
    let says_so = terms.headers == Headers::Extended
        && request.flags & command_flag::PAYLOAD_LEN != 0
        && request.length != 0;
    match request.command {
        // A write has a payload, whether an extended header says so or not.
        command::WRITE if is_accepted => Payload::Data,
        command::WRITE => Payload::Skip(request.length),
        command::BLOCK_STATUS if says_so && is_accepted => {
            // `command_of` has bounded it.
            Payload::Selection(usize::try_from(request.length).unwrap_or(usize::MAX))
        }
        _ if says_so => Payload::Skip(request.length),
        _ => Payload::None,
    }
}

/// Flags that a command does not know are refused: to ignore one could break a promise.
fn check_flags(request: &Request, terms: &Terms) -> Result<(), Errno> {
    let chunked = terms.headers != Headers::Simple;
    let extended = terms.headers == Headers::Extended;
    let known = match request.command {
        command::READ if chunked => command_flag::DF,
        command::WRITE if extended => command_flag::PAYLOAD_LEN,
        command::WRITE_ZEROES => command_flag::NO_HOLE | command_flag::FAST_ZERO,
        command::BLOCK_STATUS if extended => command_flag::REQ_ONE | command_flag::PAYLOAD_LEN,
        command::BLOCK_STATUS => command_flag::REQ_ONE,
        _ => 0,
    };
    // FUA is allowed everywhere, and means something where data changes.
    match request.flags & !(known | command_flag::FUA) {
        0 => Ok(()),
        _ => Err(Errno::Inval),
    }
}

fn command_of(request: &Request, terms: &Terms) -> Result<Command, Errno> {
    let range = Range { at: request.offset, length: request.length };
    let has = |flag| request.flags & flag != 0;
    let durability = if has(command_flag::FUA) { Durability::Now } else { Durability::Later };
    match request.command {
        command::READ => {
            within(range, terms, Errno::Inval)?;
            let in_one_piece = has(command_flag::DF);
            let too_long = if in_one_piece { Errno::Overflow } else { Errno::Inval };
            payload_sized(range, too_long)?;
            Ok(Command::Read { range, in_one_piece })
        }
        command::WRITE => {
            changeable(terms)?;
            within(range, terms, Errno::NoSpc)?;
            payload_sized(range, Errno::Inval)?;
            Ok(Command::Write { range, durability })
        }
        command::DISC => Ok(Command::Disconnect),
        command::FLUSH => Ok(Command::Flush),
        command::TRIM => {
            changeable(terms)?;
            within(range, terms, Errno::Inval)?;
            Ok(Command::Trim { range, durability })
        }
        command::CACHE => {
            within(range, terms, Errno::Inval)?;
            Ok(Command::Cache { range })
        }
        command::WRITE_ZEROES => {
            changeable(terms)?;
            within(range, terms, Errno::NoSpc)?;
            let keep_allocated = has(command_flag::NO_HOLE);
            let only_if_fast = has(command_flag::FAST_ZERO);
            Ok(Command::WriteZeroes { range, keep_allocated, only_if_fast, durability })
        }
        command::BLOCK_STATUS => status_command(request, range, terms),
        _ => Err(Errno::Inval),
    }
}

fn status_command(request: &Request, range: Range, terms: &Terms) -> Result<Command, Errno> {
    if terms.contexts.is_empty() {
        return Err(Errno::Inval);
    }
    let first_only = request.flags & command_flag::REQ_ONE != 0;
    if request.flags & command_flag::PAYLOAD_LEN == 0 {
        within(range, terms, Errno::Inval)?;
        if range.length == 0 {
            return Err(Errno::Inval);
        }
    } else if !(SELECTION_MIN..=SELECTION_MAX).contains(&request.length) {
        return Err(Errno::Inval);
    }
    Ok(Command::BlockStatus { range, first_only })
}

fn within(range: Range, terms: &Terms, otherwise: Errno) -> Result<(), Errno> {
    match range.at.checked_add(range.length) {
        Some(end) if end <= terms.size => Ok(()),
        _ => Err(otherwise),
    }
}

fn payload_sized(range: Range, otherwise: Errno) -> Result<(), Errno> {
    if range.length <= u64::from(PAYLOAD_MAX) { Ok(()) } else { Err(otherwise) }
}

fn changeable(terms: &Terms) -> Result<(), Errno> {
    if terms.read_only { Err(Errno::Perm) } else { Ok(()) }
}

/// Bytes of a selection: the length of the range, then ids.
const SELECTION_MIN: u64 = 8 + 4;
const SELECTION_MAX: u64 = 8 + 4 * STATUS_ID_COUNT_MAX as u64;

/// The contexts and the range that the payload of an extended block status request asks for.
pub fn select_contexts(payload: &[u8], at: u64, terms: &Terms) -> Result<(Contexts, Range), Errno> {
    let mut cursor = Cursor::new(payload);
    let length = cursor.u64().ok_or(Errno::Inval)?;
    let range = Range { at, length };
    within(range, terms, Errno::Inval)?;
    let mut ids = Vec::new();
    while let Some(id) = cursor.u32() {
        ids.push(id);
    }
    if !cursor.is_empty() || ids.is_empty() || length == 0 {
        return Err(Errno::Inval);
    }
    let contexts = terms.contexts.with_ids(ids).ok_or(Errno::Inval)?;
    Ok((contexts, range))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Command, Judged, Payload, Range, Terms, judge, select_contexts};
    use crate::protocol::errno::Errno;
    use crate::protocol::limits::PAYLOAD_MAX;
    use crate::protocol::metadata::Contexts;
    use crate::protocol::request::{Headers, Request};
    use crate::protocol::wire::{command, command_flag};

    const MIB: u64 = 1 << 20;

    fn terms(headers: Headers) -> Terms {
        let contexts = Contexts::selected(&[b"base:allocation"], &[]);
        Terms { headers, contexts, size: 100 * MIB, read_only: false }
    }

    fn request(command: u16, flags: u16, offset: u64, length: u64) -> Request {
        Request { flags, command, cookie: 7, offset, length }
    }

    fn error_of(request: &Request, terms: &Terms) -> Errno {
        judge(request, terms).unwrap().command.unwrap_err()
    }

    #[test]
    fn past_the_end_writes_lack_space_and_reads_make_no_sense() {
        let terms = terms(Headers::Simple);
        for (offset, length) in [(100 * MIB, 1), (100 * MIB - 1, 2), (u64::MAX, 1)] {
            assert_eq!(error_of(&request(command::WRITE, 0, offset, length), &terms), Errno::NoSpc);
            let zeroes = request(command::WRITE_ZEROES, 0, offset, length);
            assert_eq!(error_of(&zeroes, &terms), Errno::NoSpc);
            for kind in [command::READ, command::TRIM, command::CACHE, command::BLOCK_STATUS] {
                assert_eq!(error_of(&request(kind, 0, offset, length), &terms), Errno::Inval);
            }
        }
    }

    #[test]
    fn read_only_exports_refuse_changes_and_read_past_their_payload() {
        let terms = Terms { read_only: true, ..terms(Headers::Simple) };
        for kind in [command::WRITE, command::TRIM, command::WRITE_ZEROES] {
            assert_eq!(error_of(&request(kind, 0, 0, 512), &terms), Errno::Perm);
        }
        let judged = judge(&request(command::WRITE, 0, 0, 512), &terms).unwrap();
        assert_eq!(judged.payload, Payload::Skip(512));
    }

    #[test]
    fn a_read_that_must_not_be_split_overflows_and_another_is_invalid() {
        let terms = terms(Headers::Structured);
        let length = u64::from(PAYLOAD_MAX) + 1;
        assert_eq!(error_of(&request(command::READ, 0, 0, length), &terms), Errno::Inval);
        let whole = request(command::READ, command_flag::DF, 0, length);
        assert_eq!(error_of(&whole, &terms), Errno::Overflow);
        // Without chunks there is no such flag.
        let simple = Terms { headers: Headers::Simple, ..terms };
        let whole = request(command::READ, command_flag::DF, 0, 512);
        assert_eq!(error_of(&whole, &simple), Errno::Inval);
    }

    #[test]
    fn a_refused_payload_of_any_length_ends_the_connection() {
        let terms = terms(Headers::Extended);
        let flags = command_flag::PAYLOAD_LEN;
        assert!(judge(&request(command::WRITE, flags, 0, 1 << 40), &terms).is_err());
        assert!(judge(&request(command::READ, flags, 0, 1 << 40), &terms).is_err());
        // Without the flag it is only a length.
        let trim = judge(&request(command::TRIM, 0, 0, 1 << 40), &terms).unwrap();
        assert_eq!(trim, Judged { payload: Payload::None, command: Err(Errno::Inval) });
    }

    #[test]
    fn block_status_needs_contexts_and_a_range() {
        let chosen = terms(Headers::Structured);
        let none = Terms { contexts: Contexts::NONE, ..chosen };
        assert_eq!(error_of(&request(command::BLOCK_STATUS, 0, 0, 512), &none), Errno::Inval);
        assert_eq!(error_of(&request(command::BLOCK_STATUS, 0, 0, 0), &chosen), Errno::Inval);
    }

    #[test]
    fn a_selection_names_its_range_and_selected_contexts_only() {
        let terms = terms(Headers::Extended);
        let flags = command_flag::PAYLOAD_LEN;
        let judged = judge(&request(command::BLOCK_STATUS, flags, 4096, 12), &terms).unwrap();
        assert_eq!(judged.payload, Payload::Selection(12));
        let payload =
            |length: u64, id: u32| [&length.to_be_bytes()[..], &id.to_be_bytes()[..]].concat();
        let (contexts, range) = select_contexts(&payload(MIB, 0), 4096, &terms).unwrap();
        assert_eq!((contexts, range), (terms.contexts, Range { at: 4096, length: MIB }));
        assert_eq!(select_contexts(&payload(MIB, 1), 4096, &terms), Err(Errno::Inval));
        assert_eq!(select_contexts(&payload(u64::MAX, 0), 4096, &terms), Err(Errno::Inval));
        assert_eq!(select_contexts(&payload(MIB, 0)[..11], 4096, &terms), Err(Errno::Inval));
    }

    proptest! {
        #[test]
        fn what_is_accepted_lies_within_the_export_and_the_limits(
            extended in any::<bool>(),
            (flags, kind) in (0u16..64, 0u16..9),
            (offset, length) in (
                prop_oneof![0..101 * MIB, any::<u64>()],
                prop_oneof![0..101 * MIB, any::<u64>()],
            ),
        ) {
            let headers = if extended { Headers::Extended } else { Headers::Structured };
            let terms = terms(headers);
            let request = request(kind, flags, offset, length);
            let Ok(judged) = judge(&request, &terms) else { return Ok(()) };
            match judged.command {
                Ok(Command::Read { range, .. } | Command::Write { range, .. }) => {
                    prop_assert!(range.length <= u64::from(PAYLOAD_MAX));
                    prop_assert!(range.at + range.length <= terms.size);
                }
                Ok(
                    Command::Trim { range, .. }
                    | Command::WriteZeroes { range, .. }
                    | Command::Cache { range },
                ) => prop_assert!(range.at + range.length <= terms.size),
                _ => {}
            }
            if let Payload::Selection(length) = judged.payload {
                prop_assert!(length < 128);
            }
        }
    }
}
