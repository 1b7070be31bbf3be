//! Guests and front-ends that mean harm, or are broken.

use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::time::Duration;

use cowl_testkit::Random;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};

use crate::front_end::{
    DATA, F_INDIRECT, F_NEXT, F_WRITE, FEATURE_INDIRECT, FEATURE_PROTOCOL, FEATURE_VERSION_1,
    FLUSH, FrontEnd, HIGH, IN, IOERR, OK, OUT, QUEUE_SIZE, REGION_SIZE, Setup, negotiate,
    raw_descriptor, to_read, to_write,
};
use crate::serving::Serving;

/// Nowhere in the guest's memory.
const NOWHERE: u64 = 3 << 30;

/// Whoever comes next is served as if nothing had happened.
fn expect_unharmed(serving: Serving) {
    let mut next = FrontEnd::new(serving.connect());
    assert_eq!(next.request(OUT, 1, &[to_read(DATA, 4096)]), (OK, 1));
    drop(next);
    serving.stop();
}

/// A ring that `break_it` breaks is given up; the other queue of the guest is not.
fn check_broken(break_it: impl FnOnce(&mut FrontEnd)) {
    let serving = Serving::new();
    let mut setup = Setup { queues: 2, ..Setup::new() };
    setup.features |= FEATURE_INDIRECT;
    let mut guest = FrontEnd::with(serving.connect(), setup);
    assert_eq!(guest.request(FLUSH, 0, &[]).0, OK);
    let used = guest.queues[0].used;
    break_it(&mut guest);
    guest.queues[0].kick.write(1).unwrap();
    guest.expect_broken(0);
    let head = guest.submit(1, FLUSH, 0, &[]);
    assert_eq!(guest.await_answer(1), (head, OK, 1));
    assert_eq!(guest.queues[0].used_index(&guest.guest), used);
    assert_eq!(serving.server.stats().faults, 1);
    // It can be brought to rest like any other.
    let _base = guest.frontend.get_vring_base(0).unwrap();
    drop(guest);
    expect_unharmed(serving);
}

/// Puts one descriptor on queue 0 and offers it.
fn offer(guest: &mut FrontEnd, descriptor: [u8; 16]) {
    guest.queues[0].put_descriptor(&guest.guest, 9, descriptor);
    guest.queues[0].offer(&guest.guest, 9);
}

#[test]
fn chains_that_cannot_be_followed_break_their_ring() {
    // A loop of one.
    check_broken(|guest| offer(guest, raw_descriptor(DATA, 16, F_NEXT, 9)));
    // A loop of two.
    check_broken(|guest| {
        let back = raw_descriptor(DATA, 16, F_NEXT | F_WRITE, 9);
        guest.queues[0].put_descriptor(&guest.guest, 10, back);
        offer(guest, raw_descriptor(DATA, 16, F_NEXT, 10));
    });
    // On to a descriptor that does not exist.
    check_broken(|guest| offer(guest, raw_descriptor(DATA, 16, F_NEXT, QUEUE_SIZE)));
    check_broken(|guest| offer(guest, raw_descriptor(DATA, 16, F_NEXT, u16::MAX)));
}

#[test]
fn tables_that_make_no_sense_break_their_ring() {
    let table = |at, length| raw_descriptor(at, length, F_INDIRECT, 0);
    check_broken(|guest| offer(guest, table(NOWHERE, 48)));
    check_broken(|guest| offer(guest, table(u64::MAX - 15, 48)));
    check_broken(|guest| offer(guest, table(REGION_SIZE - 8, 16)));
    check_broken(|guest| offer(guest, table(DATA, 0)));
    check_broken(|guest| offer(guest, table(DATA, 17)));
    check_broken(|guest| offer(guest, raw_descriptor(DATA, 16, F_INDIRECT | F_NEXT, 1)));
    // A table within a table.
    check_broken(|guest| {
        guest.guest.put(DATA, &table(DATA, 16));
        offer(guest, table(DATA, 16));
    });
    // A table with a loop.
    check_broken(|guest| {
        guest.guest.put(DATA, &raw_descriptor(DATA, 1, F_NEXT, 0));
        offer(guest, table(DATA, 0xffff_fff0));
    });
}

#[test]
fn indices_that_make_no_sense_break_their_ring() {
    check_broken(|guest| guest.queues[0].offer(&guest.guest, QUEUE_SIZE));
    check_broken(|guest| guest.queues[0].offer(&guest.guest, u16::MAX));
    check_broken(|guest| {
        let jump = guest.queues[0].available.wrapping_add(QUEUE_SIZE + 1);
        guest.queues[0].publish(&guest.guest, jump);
    });
    check_broken(|guest| {
        let back = guest.queues[0].available.wrapping_sub(1);
        guest.queues[0].publish(&guest.guest, back);
    });
}

#[test]
fn a_request_that_is_offered_twice_breaks_its_ring() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    serving.disk.hold(0);
    let head = guest.submit(0, FLUSH, 0, &[]);
    serving.disk.await_waiting(1);
    guest.queues[0].offer(&guest.guest, head);
    guest.queues[0].kick.write(1).unwrap();
    guest.expect_broken(0);
    // What was taken before is answered all the same.
    serving.disk.release();
    assert_eq!(guest.await_answer(0), (head, OK, 1));
    drop(guest);
    expect_unharmed(serving);
}

#[test]
fn requests_with_wrong_parts_fail() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let mut check = |number, data: &[_]| {
        assert_eq!(guest.request(number, 0, data), (IOERR, 1), "{number} {data:?}");
    };
    for at in [NOWHERE, u64::MAX - 511, REGION_SIZE - 512, HIGH + REGION_SIZE - 512, HIGH - 512] {
        check(IN, &[to_write(at, 1024)]);
        check(OUT, &[to_read(at, 1024)]);
    }
    check(IN, &[to_write(DATA, u32::MAX)]);
    check(OUT, &[to_read(DATA, u32::MAX - 511)]);
    check(OUT, &[to_read(DATA, 1 << 30), to_read(DATA, 1 << 30), to_read(DATA, 1 << 30)]);
    // Directions that do not fit.
    check(IN, &[to_read(DATA, 512)]);
    check(OUT, &[to_write(DATA, 512)]);
    check(OUT, &[to_write(DATA, 512), to_read(DATA, 512)]);
    check(IN, &[to_write(DATA, 512), to_read(DATA, 512), to_write(DATA, 512)]);
    check(OUT, &[to_read(DATA, 0)]);
    drop(guest);
    expect_unharmed(serving);
}

#[test]
fn headers_that_are_too_short_fail_and_requests_without_a_status_end() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let mut check = |parts: &[_], length: u32, status: u8| {
        guest.guest.put(HIGH, &[0xee]);
        let head = guest.submit_chain(parts);
        assert_eq!(guest.queues[0].await_used(&guest.guest), (head, length), "{parts:?}");
        assert_eq!(guest.guest.get(HIGH, 1), [status], "{parts:?}");
    };
    let status = to_write(HIGH, 1);
    check(&[status], 1, IOERR);
    check(&[to_read(DATA, 15), status], 1, IOERR);
    check(&[to_read(NOWHERE, 16), status], 1, IOERR);
    check(&[status, to_read(DATA, 16)], 1, IOERR);
    check(&[to_read(DATA, 16)], 0, 0xee);
    check(&[to_read(DATA, 0)], 0, 0xee);
    check(&[to_read(DATA, 16), to_write(HIGH, 0)], 0, 0xee);
    check(&[to_read(DATA, 16), to_write(NOWHERE, 1)], 0, 0xee);
    check(&[to_read(DATA, 16), to_write(u64::MAX, 1)], 0, 0xee);
    drop(guest);
    expect_unharmed(serving);
}

#[test]
fn data_over_the_rings_and_over_its_own_descriptors_harms_the_guest_only() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    serving.disk.bytes().fill(0xff);
    // The rings of the queue, its descriptors, and its own header.
    for at in [0x1_0000, 0x1_2000, 0x1_3000, 0x10_0000] {
        let _head = guest.submit(0, IN, 0, &[to_write(at, 4096)]);
    }
    drop(guest);
    expect_unharmed(serving);
}

#[test]
fn rings_of_random_bytes_are_survived() {
    let serving = Serving::new();
    let mut random = Random::new(5);
    for _ in 0..60 {
        let mut guest = FrontEnd::with(serving.connect(), Setup { queues: 2, ..Setup::new() });
        for _ in 0..40 {
            random_ring(&mut guest, &mut random);
            for queue in &guest.queues {
                queue.kick.write(1).unwrap();
            }
        }
    }
    expect_unharmed(serving);
}

/// Descriptors that are often nearly right, and indices that are sometimes.
fn random_ring(guest: &mut FrontEnd, random: &mut Random) {
    for queue in 0..2 {
        for number in 0..QUEUE_SIZE {
            let places = [DATA, HIGH + DATA, NOWHERE, 0x1_0000, REGION_SIZE - 100, random.number()];
            let at = places[random.below(6) as usize] + random.below(8192);
            let lengths = [0, 1, 16, 512, 4096, 1 << 20, u64::from(u32::MAX), random.number()];
            let length = lengths[random.below(8) as usize] as u32;
            let flags = [0, 1, 1, 2, 3, 3, 4, random.number() as u16][random.below(8) as usize];
            let next = random.below(u64::from(QUEUE_SIZE) + 1) as u16;
            let descriptor = raw_descriptor(at & (u64::MAX >> 1), length, flags, next);
            guest.queues[queue].put_descriptor(&guest.guest, number, descriptor);
        }
        // Headers where descriptors often point.
        let mut header = [0; 16];
        header[0] = random.below(16) as u8;
        header[8] = random.below(64) as u8;
        guest.guest.put(DATA, &header);
        for _ in 0..random.below(8) {
            guest.queues[queue].offer(&guest.guest, random.below(u64::from(QUEUE_SIZE) + 2) as u16);
        }
    }
}

#[test]
fn messages_without_sense_end_their_connection_only() {
    let serving = Serving::new();
    let mut random = Random::new(7);
    for round in 0..400_u32 {
        let mut stream = serving.connect();
        for _ in 0..4 {
            let size = [0, 8, 12, 16, 40, 300, 5000, u32::MAX][random.below(8) as usize];
            let number = random.below(48) as u32;
            let mut message = Vec::new();
            message.extend_from_slice(&number.to_le_bytes());
            message.extend_from_slice(&[1, 5, 9, 1][random.below(4) as usize..][..1]);
            message.extend_from_slice(&[0; 3]);
            message.extend_from_slice(&size.to_le_bytes());
            let length = size.min(6000) as usize;
            message.extend((0..length).map(|_| random.number() as u8 & 3));
            if stream.write_all(&message).is_err() {
                break;
            }
        }
        if round % 3 == 0 {
            // Until the other side has enough of it.
            stream.shutdown(Shutdown::Write).unwrap();
            let mut answers = Vec::new();
            let _end_or_reset = stream.read_to_end(&mut answers);
        }
    }
    expect_unharmed(serving);
}

#[test]
fn half_a_message_ends_its_connection_only() {
    let serving = Serving::new();
    let mut stream = serving.connect();
    stream.write_all(&[1, 0, 0]).unwrap();
    drop(stream);
    expect_unharmed(serving);
}

#[test]
fn a_front_end_that_stops_in_a_message_keeps_no_server_from_stopping() {
    let serving = Serving::new();
    let mut stalled = serving.connect();
    stalled.write_all(&[1, 0]).unwrap();
    // Until the server is at it.
    std::thread::sleep(Duration::from_millis(300));
    serving.stop();
    drop(stalled);
    let serving = Serving::new();
    let mut deaf = serving.connect();
    deaf.set_nonblocking(true).unwrap();
    // GET_FEATURES, over and over; no reply is ever read.
    let ask = [1_u32, 1, 0].map(u32::to_le_bytes).concat();
    while deaf.write(&ask).is_ok() {}
    std::thread::sleep(Duration::from_millis(300));
    serving.stop();
    drop(deaf);
}

#[test]
fn memory_that_is_not_there_is_refused() {
    let serving = Serving::new();
    let setup = Setup::new();
    let guest = crate::front_end::Guest::new();
    let [low, high] = guest.regions();
    let wrong: [&[VhostUserMemoryRegionInfo]; 5] = [
        &[VhostUserMemoryRegionInfo { memory_size: REGION_SIZE * 3, ..low }],
        &[VhostUserMemoryRegionInfo { mmap_offset: REGION_SIZE + 4096, ..high }],
        &[VhostUserMemoryRegionInfo { mmap_offset: 100, ..low }],
        &[low, VhostUserMemoryRegionInfo { guest_phys_addr: REGION_SIZE - 4096, ..high }],
        &[VhostUserMemoryRegionInfo { memory_size: 1 << 62, mmap_offset: 0, ..low }],
    ];
    for regions in wrong {
        let frontend = negotiate(serving.connect(), 1, setup.features);
        assert!(frontend.set_mem_table(regions).is_err());
    }
    expect_unharmed(serving);
}

#[test]
fn queues_that_cannot_be_are_refused() {
    let serving = Serving::new();
    let guest = crate::front_end::Guest::new();
    let check = |change: &dyn Fn(&mut vhost::VringConfigData)| {
        let mut frontend = negotiate(serving.connect(), 1, Setup::new().features);
        frontend.set_mem_table(&guest.regions()).unwrap();
        let queue = crate::front_end::Virtqueue::new(0);
        let mut config = queue.config();
        change(&mut config);
        let outcome = frontend
            .set_vring_num(0, QUEUE_SIZE)
            .and_then(|()| frontend.set_vring_addr(0, &config))
            .and_then(|()| frontend.set_vring_kick(0, &queue.kick))
            .and_then(|()| frontend.set_vring_enable(0, true));
        assert!(outcome.is_err());
    };
    check(&|config| config.desc_table_addr += 8);
    check(&|config| config.used_ring_addr += 2);
    check(&|config| config.avail_ring_addr += 1);
    check(&|config| config.desc_table_addr = NOWHERE);
    check(&|config| config.desc_table_addr += REGION_SIZE - 0x1_0000 - 16);
    check(&|config| config.used_ring_addr += REGION_SIZE - 0x1_3000 - 8);
    check(&|config| config.flags = 1);
    for size in [0, 3, 100, 2048] {
        let frontend = negotiate(serving.connect(), 1, Setup::new().features);
        assert!(frontend.set_vring_num(0, size).is_err(), "{size}");
    }
    let frontend = negotiate(serving.connect(), 1000, Setup::new().features);
    assert!(frontend.set_vring_num(100, QUEUE_SIZE).is_err());
    expect_unharmed(serving);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let serving = Serving::new();
    let frontend = negotiate(serving.connect(), 1, FEATURE_PROTOCOL | FEATURE_VERSION_1);
    assert!(frontend.set_features(1 << 34).is_err());
    expect_unharmed(serving);
}

#[test]
fn kicks_that_are_no_event_counters_are_refused() {
    let serving = Serving::new();
    for (kick, answer) in [(None, 0), (Some(tempfile::tempfile().unwrap()), 1)] {
        let mut stream = serving.connect();
        let _frontend = negotiate(stream.try_clone().unwrap(), 1, Setup::new().features);
        let counter = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let fd = kick.as_ref().map_or(counter.as_fd(), |file| file.as_fd());
        // SET_VRING_KICK of queue 0, to be acknowledged.
        let message = [12, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut files = SendAncillaryBuffer::new(&mut space);
        let fds = [fd];
        assert!(files.push(SendAncillaryMessage::ScmRights(&fds)));
        let flags = SendFlags::empty();
        let sent = sendmsg(&stream, &[IoSlice::new(&message)], &mut files, flags).unwrap();
        assert_eq!(sent, message.len());
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).unwrap();
        assert_eq!(reply[12..], [answer, 0, 0, 0, 0, 0, 0, 0]);
    }
    expect_unharmed(serving);
}

#[test]
fn a_counter_that_is_full_stops_nobody() {
    let serving = Serving::new();
    let mut guest = FrontEnd::new(serving.connect());
    let _count = guest.queues[0].call.read();
    guest.queues[0].call.write(u64::MAX - 1).unwrap();
    let head = guest.submit(0, FLUSH, 0, &[]);
    assert_eq!(guest.await_answer(0), (head, OK, 1));
    drop(guest);
    expect_unharmed(serving);
}
