//! The end of a server: what was read is answered, nothing more is accepted.

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cowl_nbd::ServerOptions;
use cowl_nbd::protocol::request::Headers;
use cowl_nbd::protocol::wire::command;

use crate::bare_client::{BareClient, request};
use crate::serving::{Serving, quick, whole};
use cowl_testkit::are_installed;

const MIB: u64 = 1 << 20;

#[test]
fn stopping_answers_what_was_read_and_ends_idle_clients() {
    if !are_installed(&[]) {
        return;
    }
    let serving = Serving::new_image(64 * MIB);
    let socket = serving.socket();
    let mut idle = BareClient::go(&socket, Headers::Simple, &[]);
    let mut greeted = BareClient::connect(&socket);
    let mut busy = BareClient::go(&socket, Headers::Structured, &[]);
    for index in 0..200 {
        busy.send(request(command::WRITE, index * 65536, 4096), &[1; 4096]);
    }
    let start = Instant::now();
    let folder = serving.finish();
    assert!(start.elapsed() < Duration::from_secs(10));
    // Each reply that came is whole; then comes the end.
    while let Ok(chunk) = busy.receive() {
        assert_eq!(chunk.error(), 0);
    }
    assert!(idle.is_closed() && greeted.is_closed());
    assert!(UnixStream::connect(folder.path().join("socket")).is_err());
}

#[test]
fn clients_that_take_nothing_delay_the_end_once_and_not_one_after_another() {
    if !are_installed(&[]) {
        return;
    }
    let options =
        ServerOptions { memory_max: 8 * MIB, memory_per_connection_max: 8 * MIB, ..quick() };
    let serving = Serving::with(64 * MIB, options, |disk| vec![whole(disk)]);
    // Most of them wait for the memory that the others hold.
    let clients: Vec<_> = (0..30)
        .map(|_| {
            let mut client = BareClient::go(&serving.socket(), Headers::Structured, &[]);
            for _ in 0..20 {
                client.send(request(command::READ, 0, 4 * MIB), &[]);
            }
            client
        })
        .collect();
    let start = Instant::now();
    serving.finish();
    // One limit is two seconds; one after another they would take a minute.
    assert!(start.elapsed() < Duration::from_secs(20));
    drop(clients);
}

#[test]
fn a_socket_left_behind_is_taken_over_and_a_live_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("socket");
    let first = cowl_nbd::Listener::bind_unix(&path).unwrap();
    assert!(cowl_nbd::Listener::bind_unix(&path).is_err());
    drop(first);
    assert!(cowl_nbd::Listener::bind_unix(&path).is_ok());
}
