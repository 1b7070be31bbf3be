//! Clients that misbehave: their own connection ends, memory stays bounded, others are unharmed.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cowl_nbd::ServerOptions;
use cowl_nbd::protocol::request::{Headers, Request};
use cowl_nbd::protocol::wire::{command, command_flag};

use crate::bare_client::{BareClient, request};
use crate::serving::{Serving, quick, whole};
use cowl_testkit::are_installed;

const MIB: u64 = 1 << 20;

/// An honest client that still gets its answers.
struct Bystander(BareClient);

impl Bystander {
    fn new(serving: &Serving) -> Self {
        Self(BareClient::go(&serving.socket(), Headers::Structured, &[]))
    }

    /// Asserts that a round of requests takes no longer than a busy machine needs.
    fn is_unharmed(&mut self) {
        let start = Instant::now();
        for index in 0..50 {
            let at = 8 * MIB + index * 4096;
            assert_eq!(self.0.error_of(request(command::WRITE, at, 4096), &[9; 4096]), 0);
            assert_eq!(self.0.error_of(request(command::READ, at, 4096), &[]), 0);
        }
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}

#[test]
fn garbage_ends_the_connection_that_sent_it() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    let mut bystander = Bystander::new(&serving);
    for seed in 0..20_u8 {
        let noise: Vec<u8> =
            (0..5000_u32).map(|i| (i.wrapping_mul(0x9e37_79b1) >> 20) as u8 ^ seed).collect();
        let mut stream = UnixStream::connect(serving.socket()).unwrap();
        // The server may close in the middle of it.
        let _refused = stream.write_all(&noise);
        let mut client = BareClient::go(&serving.socket(), Headers::Extended, &[]);
        let _refused = client.stream.write_all(&noise);
        assert!(client.is_closed());
        bystander.is_unharmed();
    }
    serving.finish();
}

#[test]
fn payloads_beyond_reason_end_the_connection() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    let mut bystander = Bystander::new(&serving);
    for kind in [command::WRITE, command::READ, command::BLOCK_STATUS] {
        let mut client = BareClient::go(&serving.socket(), Headers::Extended, &[]);
        let flags = command_flag::PAYLOAD_LEN;
        client.send(Request { flags, ..request(kind, 0, u64::MAX / 2) }, &[]);
        assert!(client.is_closed());
        bystander.is_unharmed();
    }
    serving.finish();
}

#[test]
fn clients_that_send_nothing_in_the_handshake_are_let_go() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::with(64 * MIB, quick(), |disk| vec![whole(disk)]);
    let mut mute = BareClient::connect(&serving.socket());
    let mut dripping = BareClient::connect(&serving.socket());
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(100));
        // Enough to look alive, never enough to be an option.
        dripping.stream.write_all(b"I").unwrap();
    }
    assert!(mute.is_closed() && dripping.is_closed());
    serving.finish();
}

#[test]
fn a_stalled_request_ends_and_an_idle_client_stays() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::with(64 * MIB, quick(), |disk| vec![whole(disk)]);
    let mut idle = Bystander::new(&serving);
    let mut in_the_head = BareClient::go(&serving.socket(), Headers::Simple, &[]);
    in_the_head.stream.write_all(&[0x25, 0x60]).unwrap();
    let mut in_the_payload = BareClient::go(&serving.socket(), Headers::Simple, &[]);
    in_the_payload.send(request(command::WRITE, 0, MIB), &[1; 1000]);
    assert!(in_the_head.is_closed() && in_the_payload.is_closed());
    // Nothing of a write that did not arrive is on the disk.
    let read = idle.0.ask(request(command::READ, 0, 1000), &[]);
    assert!(read[0].payload[8..].iter().all(|&byte| byte == 0));
    idle.is_unharmed();
    // `finish` sees to it that the server holds nothing of them.
    serving.finish();
}

#[test]
fn clients_that_take_no_replies_hold_bounded_memory_and_are_cut() {
    if !are_installed(&[]) {
        return;
    }
    let options =
        ServerOptions { memory_max: 8 * MIB, memory_per_connection_max: 4 * MIB, ..quick() };
    let serving = Serving::with(64 * MIB, options, |disk| vec![whole(disk)]);
    let mut bystander = Bystander::new(&serving);
    let greedy: Vec<BareClient> = (0..4)
        .map(|_| {
            let mut client = BareClient::go(&serving.socket(), Headers::Structured, &[]);
            let flags = command_flag::DF;
            let reads = (0..1000)
                .flat_map(|_| {
                    let read = Request { flags, ..request(command::READ, 0, MIB) };
                    read.encode(Headers::Structured)
                })
                .collect::<Vec<u8>>();
            client.stream.write_all(&reads).unwrap();
            client
        })
        .collect();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        bystander.is_unharmed();
        // The budget, and one request of up to 1 MiB for each connection.
        assert!(serving.server.stats().memory_used <= 13 * MIB);
    }
    while 1 < serving.server.stats().connections {
        assert!(start.elapsed() < Duration::from_secs(20), "stalled clients are cut");
        std::thread::sleep(Duration::from_millis(50));
    }
    bystander.is_unharmed();
    drop(greedy);
    serving.finish();
}

#[test]
fn clients_that_take_replies_by_drops_are_cut_when_others_need_the_memory() {
    if !are_installed(&[]) {
        return;
    }
    let options =
        ServerOptions { memory_max: 8 * MIB, memory_per_connection_max: 8 * MIB, ..quick() };
    let serving = Serving::with(64 * MIB, options, |disk| vec![whole(disk)]);
    let read_all = |client: &mut BareClient| {
        let reads = (0..8).flat_map(|_| {
            let read = Request { flags: command_flag::DF, ..request(command::READ, 0, MIB) };
            read.encode(Headers::Structured)
        });
        client.stream.write_all(&reads.collect::<Vec<u8>>()).unwrap();
    };
    let mut slow = BareClient::go(&serving.socket(), Headers::Structured, &[]);
    read_all(&mut slow);
    let sipping = std::thread::spawn(move || {
        // Enough to look alive: the kernel takes more only when a whole piece of its own is free.
        let mut taken = 0;
        while slow.stream.read_exact(&mut vec![0; 64 << 10]).is_ok() {
            taken += 64 << 10;
            std::thread::sleep(Duration::from_millis(200));
        }
        taken
    });
    // As long as nobody else wants the memory, slowness is no fault.
    std::thread::sleep(Duration::from_secs(4));
    assert_eq!(serving.server.stats().connections, 1);
    let mut eager = BareClient::go(&serving.socket(), Headers::Structured, &[]);
    let answered = eager.ask(request(command::READ, 0, 6 * MIB), &[]);
    assert!(!answered.is_empty());
    assert!(sipping.join().unwrap() < 8 * MIB, "it would have gone on to the end");
    drop(eager);
    serving.finish();
}

#[test]
fn errors_that_nobody_reads_do_not_pile_up() {
    if !are_installed(&[]) {
        return;
    }
    let options = ServerOptions { memory_per_connection_max: MIB, ..quick() };
    let serving = Serving::with(64 * MIB, options, |disk| vec![whole(disk)]);
    let mut client = BareClient::go(&serving.socket(), Headers::Structured, &[]);
    client.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let wrong = request(99, 0, 0).encode(Headers::Structured).repeat(1000);
    // Until the server reads no more.
    while client.stream.write_all(&wrong).is_ok() {
        assert!(serving.server.stats().memory_used <= 2 * MIB);
    }
    Bystander::new(&serving).is_unharmed();
    serving.finish();
}

#[test]
fn a_half_closed_client_gets_every_reply() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    let mut client = BareClient::go(&serving.socket(), Headers::Structured, &[]);
    for index in 0..100 {
        client.send(request(command::WRITE, index * 65536, 4096), &[5; 4096]);
    }
    client.stream.shutdown(Shutdown::Write).unwrap();
    for _ in 0..100 {
        assert_eq!(client.receive().unwrap().error(), 0);
    }
    assert!(client.is_closed());
    serving.finish();
}

#[test]
fn clients_that_vanish_leave_nothing_behind() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    let mut bystander = Bystander::new(&serving);
    for round in 0..50 {
        let mut client = BareClient::go(&serving.socket(), Headers::Structured, &[]);
        for index in 0..40 {
            let at = (index * 65536 + round * 512) % (32 * MIB);
            client.send(request(command::WRITE, at, 8192), &[3; 8192]);
            client.send(request(command::READ, at, 65536), &[]);
        }
        drop(client);
    }
    bystander.is_unharmed();
    let start = Instant::now();
    while serving.server.stats().connections != 1 {
        assert!(start.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(10));
    }
    serving.finish();
}

#[test]
fn connections_past_the_limit_wait_until_others_have_gone() {
    if !are_installed(&[]) {
        return;
    }
    let options = ServerOptions { connections_max: 2, ..ServerOptions::standard() };
    let serving = Serving::with(64 * MIB, options, |disk| vec![whole(disk)]);
    let mut first = Bystander::new(&serving);
    let second = Bystander::new(&serving);
    let mut third = UnixStream::connect(serving.socket()).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    third.set_nonblocking(true).unwrap();
    let mut greeting = [0; 18];
    let nothing_yet = std::io::Read::read(&mut third, &mut greeting).unwrap_err();
    assert_eq!(nothing_yet.kind(), std::io::ErrorKind::WouldBlock);
    assert_eq!(serving.server.stats().connections, 2);
    first.is_unharmed();
    drop(second);
    third.set_nonblocking(false).unwrap();
    // A ring of the same thread interrupts calls when it has news; `read_exact` goes on then.
    std::io::Read::read_exact(&mut third, &mut greeting).unwrap();
    assert_eq!(&greeting[..8], b"NBDMAGIC");
    first.is_unharmed();
    drop(first);
    serving.finish();
}
