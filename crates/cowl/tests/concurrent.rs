//! One disk, read by many threads and many tasks at once: always the same bytes.
//!
//! The disk is a chain: extended L2 entries with partly written clusters, over compressed clusters,
//! over a shorter raw file. QEMU makes it, so these tests need qemu-img and qemu-io; a skip is
//! printed.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test fails by panic, and a skip is printed"
)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use cowl::{
    BlockDevice, CacheLimits, Caching, Disk, FileStorage, Files, GuestOffset, OpenOptions, Rings,
    WorkerPool,
};
use cowl_qcow2::Image;
use cowl_storage::{IoBuffer, Storage, UringStorage};
use futures_util::future::join_all;

const SIZE: usize = 6 << 20;

/// Two slices of L2 tables and one decoded cluster: everything is evicted while others use it.
const TINY: CacheLimits =
    CacheLimits { l2_bytes: 8 << 10, refcount_bytes: 4096, decoded_bytes: 64 << 10 };

/// A reproducible stream of numbers.
struct Noise(u64);

impl Noise {
    fn next(&mut self, below: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) as usize % below
    }
}

/// The disk and what it reads as.
struct Fixture {
    _folder: tempfile::TempDir,
    top: PathBuf,
    model: Vec<u8>,
}

fn run(program: &str, folder: &Path, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
}

/// Writes runs of one byte here and there, through qemu-io and into the model: about half of it.
fn scribble(folder: &Path, image: &str, model: &mut [u8], noise: &mut Noise, unit: usize) {
    let mut commands: Vec<String> = Vec::new();
    for _ in 0..model.len() / unit / 12 {
        let length = unit * (1 + noise.next(12));
        let at = noise.next(model.len() / unit) * unit;
        let length = length.min(model.len() - at);
        let byte = 1 + noise.next(255) as u8;
        let zero = byte.is_multiple_of(5);
        let mut command = String::from(if zero { "write -z" } else { "write" });
        if !zero {
            write!(command, " -P {byte}").unwrap();
        }
        write!(command, " {at} {length}").unwrap();
        commands.push(command);
        model[at..at + length].fill(if zero { 0 } else { byte });
    }
    let mut arguments = vec!["-f", "qcow2"];
    arguments.extend(commands.iter().flat_map(|command| ["-c", command.as_str()]));
    arguments.push(image);
    run("qemu-io", folder, &arguments);
}

/// Bytes that compress, with some noise.
fn content(length: usize, noise: &mut Noise) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        match noise.next(3) {
            0 => bytes.resize(bytes.len() + 8192, 0),
            1 => bytes.extend((0..16_384).map(|index| (index / 9) as u8)),
            _ => bytes.extend((0..4096).map(|_| noise.next(256) as u8)),
        }
    }
    bytes.truncate(length);
    bytes
}

/// Who wrote the compressed clusters, and how.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Streams {
    Zlib,
    /// By QEMU: a cluster is one block.
    Zstd,
    /// By cowl: a cluster is several blocks, and may be read in part.
    ZstdInBlocks,
}

impl Streams {
    const ALL: [Self; 3] = [Self::Zlib, Self::Zstd, Self::ZstdInBlocks];

    fn option(self) -> &'static str {
        match self {
            Self::Zlib => "compression_type=zlib",
            Self::Zstd | Self::ZstdInBlocks => "compression_type=zstd",
        }
    }
}

/// Writes `bytes` to a new image as compressed clusters.
fn compress(image: &Path, bytes: &[u8], streams: Streams) {
    let folder = image.parent().unwrap();
    if streams != Streams::ZstdInBlocks {
        let source = folder.join("full.raw");
        std::fs::write(&source, bytes).unwrap();
        let (source, image) = (source.to_str().unwrap(), image.to_str().unwrap());
        let options = ["convert", "-c", "-O", "qcow2", "-o", streams.option()];
        return run("qemu-img", folder, &[&options[..], &[source, image]].concat());
    }
    let (image, size) = (image.to_str().unwrap(), bytes.len().to_string());
    let create = ["create", "-f", "qcow2", "-o", streams.option(), image, &size];
    run("qemu-img", folder, &create);
    let options = OpenOptions { access: cowl::Access::ReadWrite, ..OpenOptions::local() };
    let disk = Disk::open(Path::new(image), &options).unwrap();
    let write = disk.qcow2().unwrap().write_compressed(GuestOffset::ZERO, bytes);
    pollster::block_on(write).unwrap();
    disk.close().unwrap();
}

fn fixture(streams: Streams) -> Option<Fixture> {
    if Command::new("qemu-img").arg("--version").output().is_err() {
        eprintln!("SKIPPED: qemu-img is not installed");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let mut noise = Noise(7);
    let base = content(SIZE / 2 + 1536, &mut noise);
    let mut model = base.clone();
    model.resize(SIZE, 0);
    std::fs::write(path.join("base.raw"), &base).unwrap();
    let size = SIZE.to_string();
    // Compressed, and with a piece at its end that the base does not have.
    compress(&path.join("mid.qcow2"), &model, streams);
    let rebase = ["rebase", "-u", "-b", "base.raw", "-F", "raw", "mid.qcow2"];
    run("qemu-img", path, &rebase);
    scribble(path, "mid.qcow2", &mut model, &mut noise, 65_536);
    let options = "extended_l2=on,cluster_size=64k";
    let create = ["create", "-f", "qcow2", "-o", options, "-b", "mid.qcow2", "-F", "qcow2"];
    run("qemu-img", path, &[&create[..], &["top.qcow2", &size]].concat());
    scribble(path, "top.qcow2", &mut model, &mut noise, 2048);
    run("qemu-img", path, &["convert", "-O", "raw", "top.qcow2", "all.raw"]);
    let by_qemu = std::fs::read(path.join("all.raw")).unwrap();
    assert!(by_qemu == model, "QEMU reads something else than was written");
    let top = path.join("top.qcow2");
    Some(Fixture { _folder: folder, top, model })
}

fn options(cache: CacheLimits, pool: Option<&Arc<WorkerPool>>) -> OpenOptions {
    let offload = pool.map(|pool| Arc::clone(pool) as Arc<dyn cowl::Offload>);
    OpenOptions { cache, offload, ..OpenOptions::local() }
}

/// The ranges that one reader asks for: small, large, and over every boundary.
fn ranges(seed: u64, count: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut noise = Noise(seed);
    (0..count).map(move |step| {
        let length = match step % 4 {
            0 => 512,
            1 => 4096,
            2 => 1 + noise.next(3000),
            _ => 1 + noise.next(300_000),
        };
        let at = noise.next(SIZE - 1);
        (at, length.min(SIZE - at))
    })
}

async fn read_and_compare<S: Storage>(disk: &Disk<S>, model: &[u8], at: usize, length: usize) {
    let guest = GuestOffset::new(at as u64);
    let mut bytes = vec![0xee; length];
    disk.read_into(guest, &mut bytes).await.unwrap();
    assert!(bytes == model[at..at + length], "{length} bytes at {at}, borrowed");
    let (result, buffer) = disk.read(guest, IoBuffer::zeroed(length)).await;
    result.unwrap();
    assert!(*buffer == model[at..at + length], "{length} bytes at {at}, owned");
}

fn by_threads(disk: &Disk, model: &[u8], count: usize) {
    std::thread::scope(|scope| {
        for thread in 0..6 {
            scope.spawn(move || {
                for (at, length) in ranges(thread, count) {
                    pollster::block_on(read_and_compare(disk, model, at, length));
                }
            });
        }
    });
}

fn by_tasks(disk: &Disk, model: &[u8], count: usize) {
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                let tasks = (0..24).map(|task| async move {
                    for (at, length) in ranges(100 * thread + task, count) {
                        read_and_compare(disk, model, at, length).await;
                    }
                });
                pollster::block_on(join_all(tasks));
            });
        }
    });
}

#[test]
fn threads_and_tasks_read_the_same_bytes_cold_hot_and_with_hardly_a_cache() {
    for streams in Streams::ALL {
        let Some(fixture) = fixture(streams) else { return };
        let pool = Arc::new(WorkerPool::new(3).unwrap());
        for cache in [TINY, CacheLimits::STANDARD] {
            for pool in [None, Some(&pool)] {
                // Cold: everybody's first reads meet at the same loads.
                let disk = Disk::open(&fixture.top, &options(cache, pool)).unwrap();
                by_threads(&disk, &fixture.model, 80);
                // Hot.
                by_tasks(&disk, &fixture.model, 12);
                let stats = disk.qcow2().unwrap().layers()[1].stats();
                assert!(0 < stats.decoded_misses);
                let all = stats.metadata_bytes + stats.decoded_bytes;
                let most = cache.l2_bytes + cache.refcount_bytes + cache.decoded_bytes;
                assert!(all <= most + (64 << 10), "{all} bytes held of {most}");
            }
        }
    }
}

#[test]
fn extents_and_reads_at_once_agree() {
    let Some(fixture) = fixture(Streams::Zlib) else { return };
    let disk = Disk::open(&fixture.top, &options(TINY, None)).unwrap();
    let disk = &disk;
    let alone = disk.extents_at(0, SIZE as u64).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(disk.extents_at(0, SIZE as u64).unwrap(), alone);
                }
            });
        }
        by_threads(disk, &fixture.model, 40);
    });
}

fn by_rings(disk: &Arc<Disk<UringStorage>>, model: &Arc<Vec<u8>>) {
    std::thread::scope(|scope| {
        for thread in 0..3 {
            scope.spawn(move || {
                cowl_storage::ring_runtime().unwrap().block_on(async {
                    let tasks = (0..16).map(|task| {
                        let (disk, model) = (Arc::clone(disk), Arc::clone(model));
                        compio::runtime::spawn(async move {
                            for (at, length) in ranges(1000 * thread + task, 10) {
                                read_and_compare(&disk, &model, at, length).await;
                            }
                        })
                    });
                    for task in tasks.collect::<Vec<_>>() {
                        task.await.unwrap();
                    }
                });
            });
        }
    });
}

#[test]
fn several_rings_read_one_disk_through_the_page_cache_and_around_it() {
    let Some(fixture) = fixture(Streams::ZstdInBlocks) else { return };
    let model = Arc::new(fixture.model);
    let pool = Arc::new(WorkerPool::new(2).unwrap());
    for caching in [Caching::PageCache, Caching::Direct] {
        for (cache, pool) in [(TINY, None), (TINY, Some(&pool)), (CacheLimits::STANDARD, None)] {
            let options = OpenOptions { caching, ..options(cache, pool) };
            let open = Disk::open_with(&Rings, &fixture.top, &options);
            let disk = compio::runtime::Runtime::new().unwrap().block_on(open).unwrap();
            by_rings(&Arc::new(disk), &model);
        }
    }
}

#[test]
fn a_dropped_read_harms_no_other() {
    let Some(fixture) = fixture(Streams::Zlib) else { return };
    let pool = Arc::new(WorkerPool::new(2).unwrap());
    let disk = Disk::open(&fixture.top, &options(TINY, Some(&pool))).unwrap();
    let (disk, model) = (&disk, &fixture.model);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Polled once: the load of a compressed cluster is under way when the future goes.
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            for (at, length) in ranges(5, 3000) {
                let mut bytes = vec![0; length];
                let read = disk.read_into(GuestOffset::new(at as u64), &mut bytes);
                let _ = std::pin::pin!(read).poll(&mut context).is_ready();
            }
        });
        by_threads(disk, model, 60);
    });
}

#[test]
fn disks_are_send_and_sync_and_their_futures_go_to_any_thread() {
    fn send<T: Send>(_: &T) {}
    fn send_sync<T: Send + Sync>() {}
    send_sync::<Disk>();
    send_sync::<Disk<UringStorage>>();
    send_sync::<Image<FileStorage>>();
    send_sync::<Image<UringStorage>>();

    // Never polled: that it compiles is the test.
    fn futures(disk: &Disk, image: &Image<FileStorage>) {
        let mut bytes = [0; 1];
        let at = GuestOffset::ZERO;
        send(&disk.read_into(at, &mut bytes));
        send(&disk.read(at, IoBuffer::zeroed(1)));
        send(&BlockDevice::extents(disk, at, cowl::ByteCount::new(1)));
        send(&image.read_into(at, &mut bytes));
        send(&image.extents(at, cowl::ByteCount::new(1)));
        send(&Disk::open_with(&Files, Path::new(""), &OpenOptions::local()));
    }
    let _ = futures;
}
