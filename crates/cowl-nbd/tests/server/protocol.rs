//! What the protocol's document demands, asked by a client that can say anything.

use cowl_nbd::protocol::request::{Headers, Request};
use cowl_nbd::protocol::wire::{chunk, command, command_flag, option, option_reply};
use cowl_nbd::{Export, ServerOptions};

use crate::bare_client::{BareClient, request};
use crate::serving::{Serving, whole};
use cowl_testkit::are_installed;

const MIB: u64 = 1 << 20;

const ALL_HEADERS: [Headers; 3] = [Headers::Simple, Headers::Structured, Headers::Extended];

#[test]
fn bytes_written_come_back_under_every_kind_of_header() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    for headers in ALL_HEADERS {
        let mut client = BareClient::go(&serving.socket(), headers, &[]);
        // Odd on purpose.
        let bytes: Vec<u8> = (0..100_001_u32).map(|i| (i % 251) as u8).collect();
        let range = |command| request(command, 12_345, 100_001);
        let write = Request { flags: command_flag::FUA, ..range(command::WRITE) };
        assert_eq!(client.error_of(write, &bytes), 0);
        let cookie = client.send(range(command::READ), &[]);
        let mut read = vec![0; bytes.len()];
        loop {
            let chunk = client.receive().unwrap();
            assert_eq!((chunk.cookie, chunk.error()), (cookie, 0));
            if headers == Headers::Simple {
                read = client.bytes(bytes.len()).unwrap();
            } else if chunk.kind == chunk::OFFSET_DATA {
                let at = u64::from_be_bytes(chunk.payload[..8].try_into().unwrap()) - 12_345;
                let data = &chunk.payload[8..];
                read[at as usize..at as usize + data.len()].copy_from_slice(data);
            }
            if chunk.is_last {
                break;
            }
        }
        assert!(read == bytes, "{headers:?}");
        assert_eq!(client.error_of(request(command::WRITE_ZEROES, 0, MIB), &[]), 0);
        assert_eq!(client.error_of(request(command::FLUSH, 0, 0), &[]), 0);
    }
    serving.finish();
}

#[test]
fn errors_have_the_numbers_of_the_document() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    for headers in ALL_HEADERS {
        let mut client = BareClient::go(&serving.socket(), headers, &[]);
        let mut error = |command, flags, offset, length, payload: &[u8]| {
            let request = Request { flags, ..request(command, offset, length) };
            client.error_of(request, payload)
        };
        assert_eq!(error(command::WRITE, 0, 64 * MIB - 1, 2, &[1, 2]), 28);
        assert_eq!(error(command::WRITE_ZEROES, 0, 64 * MIB, 1, &[]), 28);
        assert_eq!(error(command::READ, 0, 64 * MIB, 1, &[]), 22);
        assert_eq!(error(command::READ, 0, 0, 33 * MIB, &[]), 22);
        assert_eq!(error(command::TRIM, 0, 64 * MIB, 1, &[]), 22);
        assert_eq!(error(command::BLOCK_STATUS, 0, 0, 512, &[]), 22);
        assert_eq!(error(99, 0, 0, 0, &[]), 22);
        assert_eq!(error(command::FLUSH, command_flag::FAST_ZERO, 0, 0, &[]), 22);
        // A refused payload is read past, so the connection stays in step.
        assert_eq!(error(command::WRITE, 0, 0, 33 * MIB, &vec![0; 33 << 20]), 22);
        assert_eq!(error(command::FLUSH, 0, 0, 0, &[]), 0);
    }
    serving.finish();
}

#[test]
fn read_only_exports_and_windows_keep_clients_within_their_bounds() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::with(64 * MIB, ServerOptions::standard(), |disk| {
        let part = Export { start: 16 * MIB, length: Some(MIB), ..whole(disk) };
        let name = "fixed".to_owned();
        vec![part, Export { name, read_only: true, ..whole(disk) }]
    });
    let mut part = BareClient::go(&serving.socket(), Headers::Structured, &[]);
    assert_eq!(part.error_of(request(command::WRITE, 0, 4), b"part"), 0);
    assert_eq!(part.error_of(request(command::WRITE, MIB, 1), b"x"), 28);
    assert_eq!(part.error_of(request(command::WRITE, u64::MAX - MIB, 1), b"x"), 28);

    let mut fixed = BareClient::connect(&serving.socket());
    let go = [&[0, 0, 0, 5][..], b"fixed", &[0, 0]].concat();
    let replies = fixed.option(option::GO, &go);
    // size(8), then flags: READ_ONLY is the second bit.
    let info = &replies.iter().find(|(_, data)| data.starts_with(&[0, 0])).unwrap().1;
    assert_eq!(info[2..10], (64 * MIB).to_be_bytes());
    assert_eq!(info[11] & 2, 2);
    assert_eq!(fixed.error_of(request(command::WRITE, 0, 1), b"x"), 1);
    assert_eq!(fixed.error_of(request(command::TRIM, 0, 4096), &[]), 1);
    fixed.send(request(command::READ, 16 * MIB, 4), &[]);
    assert_eq!(fixed.receive().unwrap().error(), 0);
    assert_eq!(fixed.bytes(4).unwrap(), b"part");
    serving.finish();
}

#[test]
fn holes_are_sent_as_holes_unless_the_client_wants_one_piece() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    for headers in [Headers::Structured, Headers::Extended] {
        let mut client = BareClient::go(&serving.socket(), headers, &[]);
        assert_eq!(client.error_of(request(command::WRITE, MIB, 65536), &[7; 65536]), 0);
        let read = request(command::READ, 0, 4 * MIB);
        let chunks = client.ask(read, &[]);
        let kinds: Vec<u16> = chunks.iter().map(|chunk| chunk.kind).collect();
        assert_eq!(kinds, [chunk::OFFSET_HOLE, chunk::OFFSET_DATA, chunk::OFFSET_HOLE]);
        assert_eq!(chunks[1].payload.len(), 8 + 65536);
        let whole = client.ask(Request { flags: command_flag::DF, ..read }, &[]);
        assert_eq!((whole.len(), whole[0].payload.len()), (1, 8 + (4 << 20)));
        let long = Request { flags: command_flag::DF, ..request(command::READ, 0, 33 * MIB) };
        assert_eq!(client.error_of(long, &[]), 75);
    }
    serving.finish();
}

#[test]
fn extended_headers_carry_64_bits_and_selections() {
    if !are_installed(&[]) {
        return;
    }
    let size = 1 << 40;
    let serving = Serving::new_image(size);
    let contexts = ["base:allocation", "qemu:allocation-depth"];
    let mut client = BareClient::go(&serving.socket(), Headers::Extended, &contexts);
    assert_eq!(client.error_of(request(command::WRITE, 4 * MIB, 65536), &[7; 65536]), 0);
    assert_eq!(client.error_of(request(command::WRITE_ZEROES, MIB, 5 << 32), &[]), 0);
    assert_eq!(client.error_of(request(command::TRIM, MIB, 5 << 32), &[]), 0);
    // One descriptor for each context reaches to the end: more than 32 bits say.
    let status = request(command::BLOCK_STATUS, 6 << 32, size - (6 << 32));
    let chunks = client.ask(status, &[]);
    assert_eq!(chunks.len(), 2);
    for (chunk, flags) in chunks.iter().zip([3_u64, 0]) {
        assert_eq!(chunk.kind, chunk::BLOCK_STATUS_EXT);
        assert_eq!(chunk.payload[8..16], (size - (6 << 32)).to_be_bytes());
        assert_eq!(chunk.payload[16..24], flags.to_be_bytes());
    }
    // Only the second context, by a payload.
    let payload = [&(size - (6 << 32)).to_be_bytes()[..], &[0, 0, 0, 1]].concat();
    let selection = Request { flags: command_flag::PAYLOAD_LEN, length: 12, ..status };
    let chunks = client.ask(selection, &payload);
    assert_eq!((chunks.len(), chunks[0].payload[3]), (1, 1));
    serving.finish();
}

#[test]
fn many_requests_are_in_flight_and_each_is_answered_once() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    let mut client = BareClient::go(&serving.socket(), Headers::Structured, &[]);
    let mut open: std::collections::BTreeSet<u64> = (0..2000)
        .map(|index| {
            let at = (index * 7919 * 512) % (60 * MIB);
            match index % 3 {
                0 => client.send(request(command::WRITE, at, 512), &[index as u8; 512]),
                1 => client.send(request(command::READ, at, 512), &[]),
                _ => client.send(request(command::WRITE_ZEROES, at, 4096), &[]),
            }
        })
        .collect();
    while !open.is_empty() {
        let chunk = client.receive().unwrap();
        assert_eq!(chunk.error(), 0);
        assert!(open.remove(&chunk.cookie));
    }
    serving.finish();
}

#[test]
fn starttls_without_tls_is_a_matter_of_policy() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(MIB);
    let mut client = BareClient::connect(&serving.socket());
    assert_eq!(client.option(option::STARTTLS, &[])[0].0, option_reply::ERR_POLICY);
    assert_eq!(client.option(4, &[])[0].0, option_reply::ERR_UNSUP);
    assert_eq!(client.option(option::ABORT, &[])[0].0, option_reply::ACK);
    assert!(client.is_closed());
    serving.finish();
}
