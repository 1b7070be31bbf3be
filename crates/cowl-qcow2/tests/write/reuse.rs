//! A request in flight on a host cluster that is given up and handed to somebody else meanwhile.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use cowl_format::GuestOffset;
use pollster::block_on;

use crate::lab::{Guest, Limits, Setup, Step, judge_now, request_of};
use Step::{Compressed, Discard, Flush, Write, Zero};

/// All clusters of the first half are in use.
fn half_full() -> Guest {
    let before = vec![Write(0, 128), Compressed(128, 8)];
    let guest = Guest::new(Setup { before, ..Setup::new(4096, 64) });
    // Tables are in memory: nobody waits for somebody else's loading of one.
    block_on(guest.image().extents(GuestOffset::ZERO, guest.image().size())).unwrap();
    guest
}

/// Gives up the first clusters, and takes every free cluster there is.
const GIVE_UP_AND_REUSE: [Step; 8] = [
    Discard(0, 8),
    Zero(128, 8),
    Flush,
    Flush,
    Write(256, 64),
    Write(320, 64),
    Flush,
    Write(384, 128),
];

// format-and-qemu.md 3, "Not tracked"; peers.md Q13.
#[test]
fn a_write_in_flight_never_lands_on_the_next_owner() {
    let mut guest = half_full();
    guest.lab.be_slow(0);
    let write = Write(1, 2);
    guest.issue(&write);
    let value = guest.next_value - 1;
    let image = guest.image.take().unwrap();
    {
        let mut context = Context::from_waker(Waker::noop());
        let mut in_flight = pin!(request_of(&image, &write, value));
        assert!(in_flight.as_mut().poll(&mut context).is_pending());
        for step in &GIVE_UP_AND_REUSE {
            guest.issue(step);
            let value = guest.next_value - 1;
            block_on(request_of(&image, step, value)).unwrap();
            guest.acknowledge(step);
        }
        block_on(in_flight).unwrap();
    }
    guest.image = Some(image);
    guest.run(&Flush);
    guest.close();
    judge_now(&guest, Limits { leaks_max: 0 }, "write in flight");
}

// The same, for a reader: it gets what was there before or after, and nobody else's bytes.
#[test]
fn a_read_in_flight_never_shows_the_next_owner() {
    for (sector, polls) in [(0, 1), (0, 2), (128, 1), (128, 2)] {
        let mut guest = half_full();
        guest.lab.be_slow(0);
        let old = guest.next_value;
        let mut bytes = vec![0xaa; 4096];
        let image = guest.image.take().unwrap();
        {
            let mut context = Context::from_waker(Waker::noop());
            let at = GuestOffset::new(sector * 512);
            let mut in_flight = pin!(image.read_into(at, &mut bytes));
            let mut done = None;
            for _ in 0..polls {
                if let Poll::Ready(result) = in_flight.as_mut().poll(&mut context) {
                    done = Some(result);
                    break;
                }
            }
            for step in &GIVE_UP_AND_REUSE {
                guest.issue(step);
                let value = guest.next_value - 1;
                block_on(request_of(&image, step, value)).unwrap();
                guest.acknowledge(step);
            }
            match done {
                Some(result) => result.unwrap(),
                None => block_on(in_flight).unwrap(),
            }
        }
        for (index, bytes) in (0..).zip(bytes.chunks(512)) {
            let word = u64::from_be_bytes(bytes[..8].try_into().unwrap());
            let (value, owner) = (word >> 32, word & 0xffff_ffff);
            let is_old = value < old && owner == sector + index + 1;
            assert!(word == 0 || is_old, "sector {sector}+{index} shows {word:#x}");
        }
        guest.image = Some(image);
        guest.close();
        judge_now(&guest, Limits { leaks_max: 0 }, "read in flight");
    }
}
