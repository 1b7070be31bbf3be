//! Long random sequences of operations, one after another.

use cowl_block::BlockDevice;
use cowl_format::{ByteCount, CompressionType, Version};
use cowl_qcow2::{CacheLimits, CreateOptions};
use cowl_storage::Access;
use pollster::block_on;

use crate::subject::{Noise, Subject, TINY};

fn run(seed: u64, options: &CreateOptions, base: Option<Vec<u8>>, limits: CacheLimits) {
    let what = format!("seed {seed}, {options:?}");
    let mut noise = Noise(seed);
    let mut subject = Subject::new(options, base, limits);
    for session in 0..3 {
        let image = subject.open(Access::ReadWrite);
        for _ in 0..150 {
            subject.step(&image, &mut noise, options.cluster_size);
        }
        subject.compare(&image, &what);
        block_on(image.close()).unwrap();
        subject.check(0, &format!("{what}, session {session}"));
        subject.compare(&subject.open(Access::ReadOnly), &what);
    }
    // Without a close: what was flushed is there, and only reservations leak.
    let image = subject.open(Access::ReadWrite);
    for _ in 0..100 {
        subject.step(&image, &mut noise, options.cluster_size);
    }
    block_on(BlockDevice::flush(&image)).unwrap();
    let leaks_max = image.stats().reserved_clusters_max;
    drop(image);
    // Delayed refcounts are nobody's to trust while the dirty bit is set.
    if !subject.is_dirty() {
        subject.check(leaks_max, &format!("{what}, dropped"));
    }
    subject.compare(&subject.open(Access::ReadOnly), &what);
}

#[test]
fn delayed_refcounts_are_corrected_by_the_next_writer() {
    for seed in 0..6 {
        let options = CreateOptions { lazy_refcounts: true, ..options(262_144, 1024) };
        let what = format!("seed {seed}");
        let mut noise = Noise(seed);
        let mut subject = Subject::new(&options, None, TINY);
        for _ in 0..3 {
            let image = subject.open(Access::ReadWrite);
            for _ in 0..100 {
                subject.step(&image, &mut noise, options.cluster_size);
            }
            block_on(BlockDevice::flush(&image)).unwrap();
            assert!(subject.is_dirty());
            drop(image);
        }
        block_on(subject.open(Access::ReadWrite).close()).unwrap();
        assert!(!subject.is_dirty());
        subject.check(0, &what);
        subject.compare(&subject.open(Access::ReadOnly), &what);
        run(seed, &options, None, TINY);
    }
}

fn base_of(length: usize, seed: u64) -> Vec<u8> {
    let mut noise = Noise(seed);
    let mut bytes = vec![0; length];
    for chunk in bytes.chunks_mut(700) {
        if noise.next(3) != 0 {
            chunk.fill(1 + noise.next(200) as u8);
        }
    }
    bytes
}

fn options(size: u64, cluster_size: u64) -> CreateOptions {
    CreateOptions { cluster_size, ..CreateOptions::new(ByteCount::new(size)) }
}

#[test]
fn every_cluster_size_and_refcount_width() {
    for (index, cluster_size) in [512, 1024, 4096, 16_384, 65_536].into_iter().enumerate() {
        for refcount_bits in [1, 2, 4, 8, 16, 32, 64] {
            let seed = index as u64 * 10 + refcount_bits;
            let size = cluster_size * 70 + 512;
            let options = CreateOptions { refcount_bits, ..options(size, cluster_size) };
            run(seed, &options, None, TINY);
        }
    }
}

#[test]
fn overlays_over_shorter_and_longer_files() {
    for (seed, length) in [(1, 9_000), (2, 70_000), (3, 300_000)] {
        for cluster_size in [512, 4096, 16_384] {
            let options = options(131_072, cluster_size);
            run(seed, &options, Some(base_of(length, seed)), TINY);
        }
    }
}

#[test]
fn extended_l2_with_and_without_backing() {
    for seed in 0..8 {
        let options = CreateOptions { extended_l2: true, ..options(400_384, 16_384) };
        run(seed, &options, None, TINY);
        run(seed, &options, Some(base_of(300_000, seed)), CacheLimits::STANDARD);
    }
}

#[test]
fn version_2_has_no_zero_flag() {
    for seed in 0..4 {
        let options = CreateOptions { version: Version::V2, ..options(140_800, 1024) };
        run(seed, &options, None, TINY);
        run(seed, &options, Some(base_of(50_000, seed)), TINY);
    }
}

#[test]
fn external_data_files() {
    for seed in 0..4 {
        for data_file_raw in [false, true] {
            let data_file = Some(b"data".to_vec());
            let options = CreateOptions { data_file, data_file_raw, ..options(262_144, 4096) };
            run(seed, &options, None, TINY);
        }
    }
}

#[test]
fn zstd_clusters() {
    for seed in 0..4 {
        let compression_type = CompressionType::Zstd;
        let options = CreateOptions { compression_type, ..options(262_144, 4096) };
        run(seed, &options, Some(base_of(100_000, seed)), TINY);
        // Clusters of several blocks, which are read in part.
        let options = CreateOptions { cluster_size: 65_536, ..options };
        run(seed, &options, Some(base_of(100_000, seed)), CacheLimits::STANDARD);
    }
}
