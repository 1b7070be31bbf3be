//! Many threads and tasks on one image: nothing is lost, nothing is mixed up.
//!
//! In the first half of the disk each thread owns stripes smaller than a cluster, so that all of
//! them meet in every cluster; in the second half each owns a zone and does everything there is.

use std::sync::Mutex;

use cowl_block::{BlockDevice, ZeroRequest};
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{CacheLimits, CreateOptions, Image};
use cowl_storage::{Access, MemoryStorage};
use futures_util::future::join_all;
use pollster::block_on;

use crate::subject::{Noise, Subject, TINY};

const THREADS: u64 = 8;
const STRIPE: u64 = 700;

struct Owner<'a> {
    image: &'a Image<MemoryStorage>,
    /// Of the whole disk; each byte is changed by its owner only.
    model: &'a Mutex<Vec<u8>>,
    thread: u64,
    size: u64,
    unit: u64,
}

impl Owner<'_> {
    fn set(&self, at: u64, bytes: &[u8]) {
        let range = at as usize..at as usize + bytes.len();
        self.model.lock().unwrap()[range].copy_from_slice(bytes);
    }

    async fn stripe(&self, noise: &mut Noise) {
        let stripes = self.size / 2 / (STRIPE * THREADS);
        let at = (noise.next(stripes) * THREADS + self.thread) * STRIPE;
        let skip = noise.next(STRIPE);
        let (at, length) = (at + skip, 1 + noise.next(STRIPE - skip));
        let bytes = vec![1 + noise.next(255) as u8; length as usize];
        match noise.next(4) {
            0 => {
                let (guest, count) = (GuestOffset::new(at), ByteCount::new(length));
                self.image.zero(guest, count, ZeroRequest::MayUnmap).await.unwrap();
                self.set(at, &vec![0; length as usize]);
            }
            _ => {
                self.image.write_from(GuestOffset::new(at), &bytes).await.unwrap();
                self.set(at, &bytes);
            }
        }
    }

    async fn zone(&self, noise: &mut Noise) {
        let zone = self.size / 2 / THREADS / self.unit * self.unit;
        let start = (self.size / 2).next_multiple_of(self.unit) + self.thread * zone;
        let clusters = zone / self.unit;
        let first = noise.next(clusters);
        let count = (1 + noise.next(6)).min(clusters - first);
        let (at, length) = (start + first * self.unit, count * self.unit);
        let end = self.size.min(at + length);
        if end <= at {
            return;
        }
        let (guest, count) = (GuestOffset::new(at), ByteCount::new(end - at));
        let zeros = vec![0; count.as_usize()];
        match noise.next(6) {
            0 => {
                // Whole clusters, or up to the end of the disk.
                self.image.discard(guest, count).await.unwrap();
                self.set(at, &zeros);
            }
            1 => {
                self.image.zero(guest, count, ZeroRequest::KeepAllocated).await.unwrap();
                self.set(at, &zeros);
            }
            2 => {
                let bytes = vec![noise.next(256) as u8; count.as_usize()];
                if (end - at).is_multiple_of(self.unit) {
                    self.image.write_compressed(guest, &bytes).await.unwrap();
                    self.set(at, &bytes);
                }
            }
            _ => {
                let bytes = vec![noise.next(256) as u8; count.as_usize()];
                self.image.write_from(guest, &bytes).await.unwrap();
                self.set(at, &bytes);
                let mut read = vec![0; bytes.len()];
                self.image.read_into(guest, &mut read).await.unwrap();
                assert_eq!(read, bytes, "read back at {at:#x}");
            }
        }
    }

    async fn work(&self, seed: u64, steps: u64) {
        let mut noise = Noise(seed * 1000 + self.thread);
        for _ in 0..steps {
            match noise.next(16) {
                0 => BlockDevice::flush(self.image).await.unwrap(),
                1..9 => self.stripe(&mut noise).await,
                _ => self.zone(&mut noise).await,
            }
        }
    }
}

fn run(seed: u64, options: &CreateOptions, base: Option<Vec<u8>>, limits: CacheLimits) {
    let what = format!("seed {seed}, {options:?}");
    let mut subject = Subject::new(options, base, limits);
    for session in 0..2 {
        let image = subject.open(Access::ReadWrite);
        let model = Mutex::new(std::mem::take(&mut subject.model));
        let owner = |thread| Owner {
            image: &image,
            model: &model,
            thread,
            size: options.size.get(),
            unit: options.cluster_size,
        };
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let owner = owner(thread);
                scope.spawn(move || block_on(owner.work(seed + session, 120)));
            }
        });
        // Tasks instead of threads.
        let tasks = (0..THREADS).map(owner).collect::<Vec<_>>();
        block_on(join_all(tasks.iter().map(|owner| owner.work(seed + session + 7, 40))));
        drop(tasks);
        subject.model = model.into_inner().unwrap();
        subject.compare(&image, &what);
        block_on(image.close()).unwrap();
        subject.check(0, &format!("{what}, session {session}"));
        subject.compare(&subject.open(Access::ReadOnly), &what);
    }
}

#[test]
fn threads_meet_in_every_cluster() {
    for seed in 0..12 {
        let cluster_size = [512, 4096, 16_384][seed as usize % 3];
        let size = ByteCount::new(cluster_size * 160 + 512);
        let extended_l2 = cluster_size == 16_384 && seed % 2 == 0;
        let options = CreateOptions { cluster_size, extended_l2, ..CreateOptions::new(size) };
        let limits = if seed % 4 == 0 { CacheLimits::STANDARD } else { TINY };
        let base = (seed % 2 == 1).then(|| vec![0x77; size.as_usize() * 2 / 3]);
        run(seed, &options, base, limits);
    }
}

#[test]
fn tables_grow_under_load() {
    // Blocks of 64 refcounts, a refcount table of 64 blocks: both overflow on the way.
    let cluster_size = 512;
    for seed in 0..3 {
        let size = ByteCount::new(5 << 20);
        let refcount_bits = 64;
        let options = CreateOptions { cluster_size, refcount_bits, ..CreateOptions::new(size) };
        run(seed, &options, None, TINY);
    }
}
