//! Puts a back-end under load, as the driver of a guest would: random requests of one length at a
//! depth, on a number of queues. `load SOCKET read|write QUEUES DEPTH SECONDS DISK-MIB BYTES`
//!
//! It works on any vhost-user-blk back-end, so two of them can be measured with the same ruler.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a measuring program that cannot go on has failed, and what it prints is the result"
)]

#[path = "../tests/vhost/front_end.rs"]
#[allow(dead_code, reason = "tests use the rest")]
mod front_end;

use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use self::front_end::{
    DATA, FEATURE_EVENT_IDX, FrontEnd, Guest, HIGH, IN, OK, OUT, Part, Setup, Virtqueue,
};

/// Bytes for the data of a queue.
const MEMORY: u32 = 6 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, kind, queues, depth, seconds, size, length] = &arguments[..] else {
        panic!("usage: load SOCKET read|write QUEUES DEPTH SECONDS DISK-MIB BYTES");
    };
    let length: u32 = length.parse().unwrap();
    let load = Load {
        number: if kind == "write" { OUT } else { IN },
        depth: depth.parse().unwrap(),
        length,
        blocks: (size.parse::<u64>().unwrap() << 20) / u64::from(length),
        end: Instant::now() + Duration::from_secs(seconds.parse().unwrap()),
    };
    assert!(u32::from(load.depth) * length <= MEMORY, "the memory of the guest is small");
    let mut setup = Setup { queues: queues.parse().unwrap(), ..Setup::new() };
    setup.features |= FEATURE_EVENT_IDX;
    let front_end = FrontEnd::with(UnixStream::connect(socket).unwrap(), setup);
    let FrontEnd { frontend: _until_the_end, guest, queues } = front_end;
    let start = Instant::now();
    let count: u64 = std::thread::scope(|scope| {
        let run = |(index, queue)| {
            let guest = &guest;
            scope.spawn(move || load.drive(guest, queue, index))
        };
        let threads: Vec<_> = (0..).zip(queues).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let rate = count as f64 / start.elapsed().as_secs_f64();
    println!("{count} requests, {rate:.0} a second");
}

/// What every queue does.
#[derive(Clone, Copy)]
struct Load {
    number: u32,
    depth: u16,
    length: u32,
    /// Requests that cover the disk.
    blocks: u64,
    end: Instant,
}

impl Load {
    fn drive(self, guest: &Guest, mut queue: Virtqueue, index: u64) -> u64 {
        let mut seed = index + 1;
        let mut count = 0;
        let mut free: Vec<u16> = (0..self.depth).collect();
        loop {
            while let Some(slot) = free.pop() {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // Three descriptors each: header, data, status.
                queue.place_next(slot * 3);
                let sector = (seed >> 33) % self.blocks * u64::from(self.length / 512);
                let _head = queue.prepare(guest, self.number, sector, &[self.part(index, slot)]);
            }
            queue.kick_where_wanted(guest);
            let (head, _) = queue.await_used(guest);
            let mut next = Some((head, 0));
            while let Some((head, _)) = next {
                assert_eq!(queue.status(guest, head), OK);
                free.push(head / 3);
                count += 1;
                next = queue.try_used(guest);
            }
            if self.end <= Instant::now() {
                return count;
            }
        }
    }

    /// Where a request of a queue has its data. More than two queues share it.
    fn part(self, queue: u64, slot: u16) -> Part {
        let base = if queue.is_multiple_of(2) { DATA } else { HIGH + DATA };
        let at = base + u64::from(slot) * u64::from(self.length);
        Part { at, length: self.length, write: self.number == IN }
    }
}
