//! Queues: many requests at once, notifications, starting, stopping, changing.

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use compio::runtime::Runtime;
use cowl_vhost_user::{Export, Listener, Server, ServerOptions, ServerStats};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::disk::{Call, TestDisk};
use crate::front_end::{
    DATA, FEATURE_EVENT_IDX, FLUSH, FrontEnd, Guest, HIGH, IN, OK, OUT, QUEUE_SIZE, Setup,
    UNANSWERED, await_counter, to_read, to_write,
};
use crate::serving::{DISK_SIZE, Serving};

fn with_event_index() -> Setup {
    let mut setup = Setup::new();
    setup.features |= FEATURE_EVENT_IDX;
    setup
}

#[test]
fn requests_are_answered_as_they_end() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    serving.disk.hold(1 << 20);
    let slow = guest.submit(0, OUT, 2048, &[to_read(DATA, 512)]);
    serving.disk.await_waiting(1);
    for sector in 0..8 {
        let quick = guest.submit(0, OUT, sector, &[to_read(DATA, 512)]);
        assert_eq!(guest.await_answer(0), (quick, OK, 1));
    }
    assert_eq!(guest.status(0, slow), UNANSWERED);
    serving.disk.release();
    assert_eq!(guest.await_answer(0), (slow, OK, 1));
    serving.stop();
}

#[test]
fn a_full_queue_is_in_flight_at_once() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    serving.disk.hold(0);
    let count = QUEUE_SIZE / 3;
    for number in 0..u64::from(count) {
        let place = DATA + number * 4096;
        let _head = guest.submit(0, IN, number * 8, &[to_write(place, 4096)]);
    }
    serving.disk.await_waiting(usize::from(count));
    serving.disk.release();
    for _ in 0..count {
        assert_eq!(guest.await_answer(0).1, OK);
    }
    serving.stop();
}

#[test]
fn queues_are_spread_over_the_threads_and_do_not_wait_for_each_other() {
    let serving = Serving::new();
    let setup = Setup { queues: 4, ..Setup::new() };
    let mut guest = FrontEnd::with(serving.connect(), setup);
    serving.disk.hold(1 << 20);
    let _slow = guest.submit(0, OUT, 2048, &[to_read(DATA, 512)]);
    serving.disk.await_waiting(1);
    for queue in 1..4 {
        let head = guest.submit(queue, OUT, 1, &[to_read(DATA, 512)]);
        assert_eq!(guest.await_answer(queue), (head, OK, 1));
    }
    let stats = ServerStats { connections: 1, queues: 4, requests: 4, faults: 0 };
    assert_eq!(serving.server.stats(), stats);
    serving.disk.release();
    assert_eq!(guest.await_answer(0).1, OK);
    serving.stop();
}

#[test]
fn indices_wrap_around() {
    let serving = Serving::new();
    let mut guest = FrontEnd::with(serving.connect(), with_event_index());
    let count = QUEUE_SIZE / 2;
    for _ in 0..u16::MAX / count + 2 {
        for _ in 0..count {
            let _head = guest.prepare(0, FLUSH, 0, &[]);
        }
        guest.queues[0].kick_where_wanted(&guest.guest);
        for _ in 0..count {
            assert_eq!(guest.await_answer(0).1, OK);
        }
    }
    serving.stop();
}

#[test]
fn the_guest_is_called_when_it_wants_to_be() {
    let serving = Serving::new();
    let mut guest = FrontEnd::with(serving.connect(), with_event_index());
    // The call of a started queue; then after the third answer, not before.
    await_counter(&guest.queues[0].call);
    guest.queues[0].call_after(&guest.guest, 2);
    serving.disk.hold(0);
    for _ in 0..3 {
        let _head = guest.submit(0, FLUSH, 0, &[]);
    }
    serving.disk.await_waiting(3);
    serving.disk.release();
    await_counter(&guest.queues[0].call);
    assert_eq!(guest.queues[0].used_index(&guest.guest), 3);
    // The device wants a kick for the fourth.
    assert_eq!(guest.queues[0].kick_after(&guest.guest), 3);
    serving.stop();
}

#[test]
fn a_guest_that_polls_is_not_called() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    // Started queues call once, because a server before may have died before it did.
    await_counter(&guest.queues[0].call);
    guest.queues[0].set_no_calls(&guest.guest, true);
    let _head = guest.submit(0, FLUSH, 0, &[]);
    while guest.queues[0].used_index(&guest.guest) == 0 {
        std::thread::yield_now();
    }
    // What would call has ended by then.
    let _base = guest.frontend.get_vring_base(0).unwrap();
    assert!(guest.queues[0].call.read().is_err(), "nobody wanted to be called");
    serving.stop();
}

#[test]
fn a_queue_comes_to_rest_before_its_base_is_told() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    serving.disk.hold(0);
    for sector in 0..5 {
        let _head = guest.submit(0, OUT, sector, &[to_read(DATA + sector * 512, 512)]);
    }
    serving.disk.await_waiting(5);
    let disk = Arc::clone(&serving.disk);
    let releasing = std::thread::spawn(move || disk.release());
    assert_eq!(guest.frontend.get_vring_base(0).unwrap(), 5);
    assert_eq!(guest.queues[0].used_index(&guest.guest), 5);
    releasing.join().unwrap();
    // It is not served any more, and goes on where it stood.
    let _head = guest.submit(0, FLUSH, 0, &[]);
    let _features = guest.frontend.get_features().unwrap();
    assert_eq!(guest.queues[0].used_index(&guest.guest), 5);
    guest.start_queue(0, 5);
    for _ in 0..6 {
        assert_eq!(guest.await_answer(0).1, OK);
    }
    serving.stop();
}

#[test]
fn a_disabled_queue_waits() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    guest.frontend.set_vring_enable(0, false).unwrap();
    let _head = guest.submit(0, FLUSH, 0, &[]);
    let _features = guest.frontend.get_features().unwrap();
    assert_eq!(serving.disk.calls(), []);
    guest.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(guest.await_answer(0).1, OK);
    serving.stop();
}

#[test]
fn calls_go_where_they_were_sent_last() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    await_counter(&guest.queues[0].call);
    guest.queues[0].call = EventFd::new(EFD_NONBLOCK).unwrap();
    guest.frontend.set_vring_call(0, &guest.queues[0].call).unwrap();
    // What had been used before rang the other one.
    await_counter(&guest.queues[0].call);
    let _head = guest.submit(0, FLUSH, 0, &[]);
    await_counter(&guest.queues[0].call);
    assert_eq!(guest.await_answer(0).1, OK);
    serving.stop();
}

#[test]
fn memory_comes_and_goes_while_requests_run() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let more = Guest::new();
    let [region, _] = more.regions();
    let at = HIGH * 2;
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: at,
        userspace_addr: region.userspace_addr + at,
        ..region
    };
    assert!(2 <= guest.frontend.get_max_mem_slots().unwrap());
    serving.disk.bytes()[..512].fill(5);
    assert_ne!(guest.request(IN, 0, &[to_write(at, 512)]).0, OK);
    guest.frontend.add_mem_region(&region).unwrap();
    assert_eq!(guest.request(IN, 0, &[to_write(at, 512)]).0, OK);
    assert_eq!(more.get(0, 512), [5; 512]);
    guest.frontend.remove_mem_region(&region).unwrap();
    assert_ne!(guest.request(IN, 0, &[to_write(at, 512)]).0, OK);
    guest.frontend.set_mem_table(&guest.guest.regions()).unwrap();
    assert_eq!(guest.request(IN, 0, &[to_write(HIGH, 512)]).0, OK);
    assert_eq!(guest.guest.get(HIGH, 512), [5; 512]);
    serving.stop();
}

#[test]
fn stopping_answers_what_was_taken() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    serving.disk.hold(0);
    let head = guest.submit(0, OUT, 0, &[to_read(DATA, 512)]);
    serving.disk.await_waiting(1);
    serving.server.stop();
    serving.disk.release();
    serving.stop();
    assert_eq!(guest.queues[0].try_used(&guest.guest), Some((head, 1)));
    assert_eq!(guest.status(0, head), OK);
}

#[test]
fn one_front_end_follows_another() {
    let serving = Serving::new();
    for round in 0..5 {
        let mut guest = FrontEnd::new(serving.connect());
        assert_eq!(guest.request(OUT, round, &[to_read(DATA, 512)]).0, OK);
        // It goes with a request that is not answered yet.
        serving.disk.hold(0);
        let _head = guest.submit(0, FLUSH, 0, &[]);
        serving.disk.await_waiting(1);
        drop(guest);
        serving.disk.release();
    }
    let flushes = serving.disk.calls().iter().filter(|&call| *call == Call::Flush).count();
    assert_eq!(flushes, 5);
    serving.stop();
}

#[test]
fn a_server_of_a_connected_socket_ends_with_its_front_end() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let disk = Arc::new(TestDisk::new(DISK_SIZE));
    let listener = Listener::inherited(theirs.into()).unwrap();
    let options = ServerOptions { threads: 1 };
    let server = Server::new([Export::new(disk, listener)], options).unwrap();
    let running = std::thread::spawn(move || Runtime::new().unwrap().block_on(server.run()));
    let mut guest = FrontEnd::new(ours);
    assert_eq!(guest.request(OUT, 0, &[to_read(DATA, 512)]).0, OK);
    drop(guest);
    running.join().unwrap().unwrap();
}

#[test]
fn a_server_that_was_stopped_before_it_ran_ends() {
    let serving = tempfile::tempdir().unwrap();
    let path = serving.path().join("socket");
    // What a killed server left.
    drop(Listener::bind(&path).unwrap());
    assert!(path.exists());
    let listener = Listener::bind(&path).unwrap();
    assert!(Listener::bind(&path).is_err(), "somebody listens there");
    let export = Export::new(Arc::new(TestDisk::new(DISK_SIZE)), listener);
    let server = Server::new([export], ServerOptions { threads: 2 }).unwrap();
    server.stop();
    Runtime::new().unwrap().block_on(server.run()).unwrap();
}

#[test]
fn each_export_has_its_own_disk() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["a", "b", "c"].map(|name| folder.path().join(name));
    let disks = [(); 3].map(|()| Arc::new(TestDisk::new(DISK_SIZE)));
    let exports: Vec<_> = paths
        .iter()
        .zip(&disks)
        .map(|(path, disk)| Export::new(Arc::clone(disk), Listener::bind(path).unwrap()))
        .collect();
    let server = Server::new(exports, ServerOptions { threads: 1 }).unwrap();
    let serving = server.clone();
    let running = std::thread::spawn(move || Runtime::new().unwrap().block_on(serving.run()));
    let mut guests = paths.map(|path| FrontEnd::new(UnixStream::connect(path).unwrap()));
    for (guest, mark) in guests.iter_mut().zip(1..) {
        guest.guest.put(DATA, &[mark; 512]);
        assert_eq!(guest.request(OUT, 0, &[to_read(DATA, 512)]).0, OK);
    }
    for (disk, mark) in disks.iter().zip(1..) {
        assert_eq!(disk.bytes()[..512], [mark; 512]);
    }
    assert_eq!(server.stats().connections, 3);
    server.stop();
    running.join().unwrap().unwrap();
}
