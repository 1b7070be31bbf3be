//! Requests that a server took and did not answer, answered by the next one; each once.

use std::fs::File;
use std::os::unix::fs::FileExt;

use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserInflight};

use crate::disk::Call;
use crate::front_end::{
    DATA, FEATURE_EVENT_IDX, FEATURE_WCE, FrontEnd, Guest, OK, OUT, QUEUE_SIZE, Setup, Virtqueue,
    await_counter, copy_file, negotiate, to_read,
};
use crate::serving::Serving;

/// Where the mark of a request lies in the area of its queue.
fn mark_of(head: u16) -> u64 {
    16 + 16 * u64::from(head)
}

const USED_INDEX: u64 = 14;
const LAST_BATCH_HEAD: u64 = 12;

/// New memory for what is in flight, as a server gives it.
fn inflight(serving: &Serving, queues: u16) -> (VhostUserInflight, File) {
    let mut frontend = negotiate(serving.connect(), 1, Setup::new().features);
    let asked =
        VhostUserInflight { num_queues: queues, queue_size: QUEUE_SIZE, ..Default::default() };
    frontend.get_inflight_fd(&asked).unwrap()
}

fn byte(file: &File, at: u64) -> u8 {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    byte[0]
}

/// A driver that was left by a server with requests in flight.
struct Left {
    guest: Guest,
    queues: Vec<Virtqueue>,
    inflight: (VhostUserInflight, File),
    heads: Vec<u16>,
}

/// Six writes on a queue; the second and the fourth are answered. Then the server dies: nothing of
/// what it has in its memory counts, only what a kill would leave.
fn left() -> Left {
    let serving = Serving::new();
    let inflight = inflight(&serving, 1);
    let file = inflight.1.try_clone().unwrap();
    let setup = Setup { inflight: Some((inflight.0, file)), ..Setup::new() };
    let mut driver = FrontEnd::with(serving.connect(), setup);
    serving.disk.hold(1 << 20);
    let mut heads = Vec::new();
    for number in 0..6_u64 {
        let place = if [1, 3].contains(&number) { number } else { 2048 + number };
        let data = [to_read(DATA + number * 512, 512)];
        driver.guest.put(DATA + number * 512, &[number as u8 + 1; 512]);
        heads.push(driver.submit(0, OUT, place, &data));
    }
    for _ in 0..2 {
        assert_eq!(driver.await_answer(0).1, OK);
    }
    serving.disk.await_waiting(4);
    for (number, head) in heads.iter().enumerate() {
        let expected = u8::from(![1, 3].contains(&number));
        assert_eq!(byte(&inflight.1, mark_of(*head)), expected);
    }
    let guest = driver.guest.copy();
    let mut queue = Virtqueue::new(0);
    queue.available = driver.queues[0].available;
    queue.used = driver.queues[0].used;
    queue.place_next(100);
    let inflight = (inflight.0, copy_file(&inflight.1));
    Left { guest, queues: vec![queue], inflight, heads }
}

/// Hands what is left to a new server and returns its answers and what its disk was asked.
fn recover(left: Left, count: usize) -> (Vec<u16>, Vec<Call>) {
    let serving = Serving::new();
    let setup = Setup { inflight: Some(left.inflight), ..Setup::new() };
    // The base that the front-end gives is the used index: it cannot know more.
    let mut driver = FrontEnd::resume(serving.connect(), setup, left.guest, left.queues);
    let mut answered = Vec::new();
    for _ in 0..count {
        let (head, status, _) = driver.await_answer(0);
        assert_eq!(status, OK);
        answered.push(head);
    }
    // It goes on with new requests, and nothing is answered twice.
    let calls = serving.disk.calls();
    let head = driver.submit(0, OUT, 7, &[to_read(DATA, 512)]);
    assert_eq!(driver.await_answer(0), (head, OK, 1));
    assert_eq!(driver.queues[0].try_used(&driver.guest), None);
    serving.stop();
    (answered, calls)
}

fn write_to(sector: u64) -> Call {
    Call::Write { at: sector * 512, length: 512, shared: true }
}

#[test]
fn what_was_not_answered_is_done_again_in_its_order() {
    let left = left();
    let heads: Vec<u16> = [0, 2, 4, 5].iter().map(|&number| left.heads[number]).collect();
    let (answered, calls) = recover(left, 4);
    assert_eq!(answered, heads);
    assert_eq!(calls, [2048, 2050, 2052, 2053].map(write_to));
}

#[test]
fn requests_that_nobody_took_are_taken_after_those_in_flight() {
    let mut left = left();
    // Offered while no server was there.
    let data = [to_read(DATA, 512)];
    let head = left.queues[0].prepare(&left.guest, OUT, 99, &data);
    let (answered, calls) = recover(left, 5);
    assert_eq!(answered[4], head);
    assert_eq!(calls[4], write_to(99));
}

#[test]
fn an_answer_that_was_given_as_the_server_died_is_not_given_again() {
    let left = left();
    // It died between the used ring and the mark: the mark of the last answer is still there, and
    // the used index lags.
    let file = &left.inflight.1;
    file.write_all_at(&[1], mark_of(left.heads[3])).unwrap();
    file.write_all_at(&1_u16.to_le_bytes(), USED_INDEX).unwrap();
    let mut last = [0; 2];
    file.read_exact_at(&mut last, LAST_BATCH_HEAD).unwrap();
    assert_eq!(u16::from_le_bytes(last), left.heads[3]);
    let (answered, calls) = recover(left, 4);
    assert_eq!(answered.len(), 4);
    assert!(!calls.contains(&write_to(3)));
}

#[test]
fn a_guest_that_was_not_called_before_the_server_died_is_called() {
    let mut left = left();
    // It sleeps after the first answer; the second was given, but the call is missing.
    left.queues[0].used -= 1;
    left.queues[0].call_after(&left.guest, left.queues[0].used);
    let serving = Serving::new();
    serving.disk.hold(0);
    let features = Setup::new().features | FEATURE_EVENT_IDX;
    let setup = Setup { inflight: Some(left.inflight), features, ..Setup::new() };
    let mut driver = FrontEnd::resume(serving.connect(), setup, left.guest, left.queues);
    // What is repeated would not bring it, and is held anyway: the guest asked for it long ago.
    await_counter(&driver.queues[0].call);
    assert_eq!(driver.await_answer(0), (left.heads[3], OK, 1));
    serving.disk.release();
    for _ in 0..4 {
        assert_eq!(driver.await_answer(0).1, OK);
    }
    serving.stop();
}

#[test]
fn the_order_of_what_is_in_flight_outlives_another_server() {
    let left = left();
    let counters = |file: &File| {
        [0, 2, 4, 5].map(|number| {
            let mut counter = [0; 8];
            file.read_exact_at(&mut counter, mark_of(left.heads[number]) + 8).unwrap();
            u64::from_le_bytes(counter)
        })
    };
    let file = left.inflight.1.try_clone().unwrap();
    let before = counters(&file);
    let serving = Serving::new();
    serving.disk.hold(0);
    let setup = Setup { inflight: Some(left.inflight), ..Setup::new() };
    let _driver = FrontEnd::resume(serving.connect(), setup, left.guest, left.queues);
    serving.disk.await_waiting(4);
    // A server that dies while it takes them must not leave the first ones behind the others.
    assert_eq!(counters(&file), before);
    serving.disk.release();
    serving.stop();
}

#[test]
fn an_answer_that_was_announced_only_is_given() {
    let left = left();
    let file = &left.inflight.1;
    let first = left.heads[0];
    file.write_all_at(&first.to_le_bytes(), LAST_BATCH_HEAD).unwrap();
    let (answered, _) = recover(left, 4);
    assert_eq!(answered[0], first);
    assert_eq!(answered.len(), 4);
}

#[test]
fn rings_that_were_set_up_anew_have_nothing_in_flight() {
    let left = left();
    let serving = Serving::new();
    let setup = Setup { inflight: Some(left.inflight), ..Setup::new() };
    // Rings of zeros: the machine was reset.
    let mut driver = FrontEnd::with(serving.connect(), setup);
    let head = driver.submit(0, OUT, 7, &[to_read(DATA, 512)]);
    assert_eq!(driver.await_answer(0), (head, OK, 1));
    assert_eq!(serving.disk.calls(), [write_to(7)]);
    serving.stop();
}

#[test]
fn what_stands_in_the_memory_is_not_believed() {
    let left = left();
    let serving = Serving::new();
    // Counters, marks and heads without sense; nothing of it may end the server.
    let file = &left.inflight.1;
    let length = file.metadata().unwrap().len();
    let mut random = cowl_testkit::Random::new(11);
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..length).map(|_| random.number() as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file.write_all_at(&1_u16.to_le_bytes(), 8).unwrap();
        let inflight = Some((left.inflight.0, file.try_clone().unwrap()));
        let setup = Setup { inflight, ..Setup::new() };
        let _guest = FrontEnd::with(serving.connect(), setup);
    }
    assert_eq!(FrontEnd::new(serving.connect()).request(OUT, 1, &[to_read(DATA, 512)]).0, OK);
    serving.stop();
}

#[test]
fn the_next_server_knows_that_the_write_cache_is_off() {
    let serving = Serving::new();
    let inflight = inflight(&serving, 1);
    let setup = |file: &File| {
        let features = Setup::new().features | FEATURE_WCE;
        Setup { inflight: Some((inflight.0, file.try_clone().unwrap())), features, queues: 1 }
    };
    let mut driver = FrontEnd::with(serving.connect(), setup(&inflight.1));
    driver.frontend.set_config(32, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    drop(driver);
    serving.stop();
    let serving = Serving::new();
    let mut driver = FrontEnd::with(serving.connect(), setup(&inflight.1));
    assert_eq!(driver.request(OUT, 7, &[to_read(DATA, 512)]).0, OK);
    assert_eq!(serving.disk.calls(), [Call::WriteThrough { at: 7 * 512, length: 512 }]);
    serving.stop();
}

#[test]
fn memory_that_is_too_small_is_refused() {
    let serving = Serving::new();
    let (given, file) = inflight(&serving, 2);
    let wrong = [
        VhostUserInflight { mmap_size: given.mmap_size - 128, ..given },
        VhostUserInflight { mmap_offset: 4096, ..given },
        VhostUserInflight { mmap_offset: 1, ..given },
        VhostUserInflight { mmap_offset: u64::MAX, ..given },
        VhostUserInflight { num_queues: u16::MAX, ..given },
        VhostUserInflight { queue_size: u16::MAX, ..given },
    ];
    for wrong in wrong {
        let mut frontend = negotiate(serving.connect(), 1, Setup::new().features);
        let fd = std::os::fd::AsRawFd::as_raw_fd(&file);
        assert!(frontend.set_inflight_fd(&wrong, fd).is_err(), "{:?}", wrong.num_queues);
    }
    // Room for a smaller queue than the one that is started.
    let mut frontend = negotiate(serving.connect(), 1, Setup::new().features);
    let asked = VhostUserInflight { num_queues: 1, queue_size: 4096, ..Default::default() };
    assert!(frontend.get_inflight_fd(&asked).is_err());
    serving.stop();
}
