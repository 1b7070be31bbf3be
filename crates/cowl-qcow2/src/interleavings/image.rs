//! A whole image, small: threads that meet in every cluster, and everything the engine has between
//! them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use cowl_block::ZeroRequest;
use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::{Access, Storage};
use shuttle::future::block_on;

use crate::Image;
use crate::interleavings::disk::{CLUSTER, SIZE, assert_sound, image_of, open, open_over};
use crate::interleavings::stage::Stage;
use crate::interleavings::{explore, threads};

const THREADS: u64 = 3;

/// Bytes of a stripe: three of them and a bit are in a cluster.
const STRIPE: u64 = 300;

/// A reproducible stream of numbers.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % below
    }
}

/// What one thread has put where, and nobody else.
type Owned = Vec<(u64, u64, u8)>;

/// One change, of a stripe in a cluster of all or of a cluster of the thread's own.
async fn change(image: &Image<Stage>, thread: u64, noise: &mut Noise) -> (u64, u64, u8) {
    let value = 1 + noise.next(200) as u8;
    let cluster = [0, 1, 130][noise.next(3) as usize];
    let stripe = (cluster * CLUSTER + thread * STRIPE, STRIPE);
    let zone = ((8 + 2 * thread + noise.next(2)) * CLUSTER, CLUSTER);
    let (at, length, value) = match noise.next(6) {
        0 => {
            let (at, length) = (GuestOffset::new(zone.0), ByteCount::new(zone.1));
            image.discard(at, length).await.unwrap();
            (zone.0, zone.1, 0)
        }
        1 => {
            let (at, length) = (GuestOffset::new(stripe.0), ByteCount::new(stripe.1));
            image.zero(at, length, ZeroRequest::MayUnmap).await.unwrap();
            (stripe.0, stripe.1, 0)
        }
        2 => {
            let bytes = vec![value; zone.1 as usize];
            image.write_compressed(GuestOffset::new(zone.0), &bytes).await.unwrap();
            (zone.0, zone.1, value)
        }
        kind => {
            let (at, length) = if kind == 3 { zone } else { stripe };
            let bytes = vec![value; length as usize];
            image.write_from(GuestOffset::new(at), &bytes).await.unwrap();
            (at, length, value)
        }
    };
    let mut bytes = vec![0; length as usize];
    image.read_into(GuestOffset::new(at), &mut bytes).await.unwrap();
    assert!(bytes.iter().all(|byte| *byte == value), "read back at {at:#x}");
    (at, length, value)
}

fn apply(model: &mut [u8], owned: &Owned) {
    for (at, length, value) in owned {
        model[*at as usize..(at + length) as usize].fill(*value);
    }
}

fn assert_reads<S: Storage>(image: &Image<S>, model: &[u8], what: &str) {
    let mut bytes = vec![0; model.len()];
    block_on(image.read_into(GuestOffset::ZERO, &mut bytes)).unwrap();
    if let Some(at) = bytes.iter().zip(model).position(|(a, b)| a != b) {
        panic!("{what}: byte {at:#x} is {:#x} and not {:#x}", bytes[at], model[at]);
    }
}

fn work(image: &Image<Stage>, model: &mut [u8], round: u64) {
    let done: Vec<_> = (0..THREADS).map(|_| std::sync::Mutex::new(Owned::new())).collect();
    threads(THREADS, |thread| {
        let mut noise = Noise(round * THREADS + thread);
        for step in 0..3 {
            let changed = block_on(change(image, thread, &mut noise));
            done[thread as usize].lock().unwrap().push(changed);
            if step == thread {
                block_on(image.flush()).unwrap();
            }
        }
    });
    done.iter().for_each(|owned| apply(model, &owned.lock().unwrap()));
}

// Catches: much of what the smaller models catch: claims that overlap or wake nobody, tables that
// take changes after they have left, copies taken before the lock, joining an older commit.
#[test]
fn threads_that_share_clusters_lose_nothing_and_leak_nothing() {
    let file = image_of(2);
    let round = AtomicU64::new(0);
    explore(40, move || {
        let stage = Arc::new(Stage::new(file.snapshot()));
        let image = open(&stage, Access::ReadWrite);
        let mut model = vec![0; SIZE as usize];
        model[..1024].fill(0x10);
        model[1024..2048].fill(0x11);
        work(&image, &mut model, round.fetch_add(1, Relaxed));
        assert_reads(&image, &model, "in memory");
        block_on(image.flush()).unwrap();
        assert_reads(&open(&stage.durable(), Access::ReadOnly), &model, "after a flush");
        block_on(image.close()).unwrap();
        assert_reads(&open(&stage.durable(), Access::ReadOnly), &model, "after a close");
        assert_sound(&stage.durable(), 0);
    });
}

#[test]
fn threads_that_share_clusters_over_a_backing_file_lose_nothing() {
    let file = image_of(0);
    let round = AtomicU64::new(0);
    explore(40, move || {
        let stage = Arc::new(Stage::new(file.snapshot()));
        let image = open_over(&stage, 0x99);
        let mut model = vec![0x99; SIZE as usize];
        work(&image, &mut model, round.fetch_add(1, Relaxed));
        assert_reads(&image, &model, "in memory");
        block_on(image.close()).unwrap();
        assert_sound(&stage.durable(), 0);
    });
}
