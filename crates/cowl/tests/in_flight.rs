//! Hundreds of requests in flight on one ring, on overlapping ranges of one image, with tiny
//! caches, a snapshot below and tables that grow: each sector ends up as one of the requests left
//! it.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test fails by panic, and a skip is printed"
)]

use std::path::Path;
use std::process::Command;

use cowl::{
    Access, BlockDevice, ByteCount, CacheLimits, Caching, Disk, GuestOffset, OpenOptions, Rings,
    Sharing, ZeroRequest,
};
use cowl_storage::{IoBuffer, UringStorage};
use futures_util::future::join_all;

const SECTOR: u64 = 512;
const SIZE: u64 = 6 << 20;
const IN_FLIGHT: u64 = 400;
const TINY: CacheLimits = CacheLimits { l2_bytes: 4096, refcount_bytes: 4096, decoded_bytes: 8192 };

struct Noise(u64);

impl Noise {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        (self.0 >> 33) % below
    }
}

/// A request: writes its stamp, or zeros.
#[derive(Clone, Copy)]
struct Request {
    at: u64,
    length: u64,
    stamp: u64,
}

fn qemu_img(folder: &Path, arguments: &[&str]) -> bool {
    let run = Command::new("qemu-img").args(arguments).current_dir(folder).output();
    run.is_ok_and(|output| output.status.success())
}

fn request(noise: &mut Noise, stamp: u64) -> Request {
    // Most of them meet on a hot spot of a few clusters.
    let span = if noise.next(3) == 0 { SIZE } else { 64 << 10 };
    let scale = [1, 8, 40][noise.next(3) as usize];
    let sectors = 1 + noise.next(scale);
    let at = noise.next((span / SECTOR) - sectors) * SECTOR;
    let stamp = if noise.next(6) == 0 { 0 } else { stamp };
    Request { at, length: sectors * SECTOR, stamp }
}

async fn serve(disk: &Disk<UringStorage>, request: Request) {
    let (at, length) = (GuestOffset::new(request.at), ByteCount::new(request.length));
    if request.stamp == 0 {
        BlockDevice::zero(disk, at, length, ZeroRequest::MayUnmap).await.unwrap();
    } else {
        let bytes = request.stamp.to_le_bytes().repeat(request.length as usize / 8);
        BlockDevice::write(disk, at, IoBuffer::from_slice(&bytes)).await.0.unwrap();
    }
}

/// Every sector holds one whole stamp that a request of the batch, or nobody, has put there.
fn judge(bytes: &[u8], stamps: &mut [u64], batch: &[Request], what: &str) {
    for (sector, (bytes, stamp)) in bytes.chunks(512).zip(stamps).enumerate() {
        let found = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert!(bytes.chunks(8).all(|word| word == &bytes[..8]), "{what}: sector {sector} is torn");
        let at = sector as u64 * SECTOR;
        let covers = |request: &&Request| (request.at..request.at + request.length).contains(&at);
        let mut legal = batch.iter().filter(covers).map(|request| request.stamp).peekable();
        let is_legal = match legal.peek() {
            None => found == *stamp,
            Some(_) => legal.any(|stamp| stamp == found),
        };
        assert!(is_legal, "{what}: sector {sector} reads {found:#x}");
        *stamp = found;
    }
}

fn run(folder: &Path, options: &str, caching: Caching) {
    let image = folder.join("disk.qcow2");
    std::fs::remove_file(&image).ok();
    let size = SIZE.to_string();
    assert!(qemu_img(folder, &["create", "-q", "-f", "qcow2", "-o", options, "disk.qcow2", &size]));
    let open =
        OpenOptions { access: Access::ReadWrite, cache: TINY, caching, ..OpenOptions::local() };
    let mut stamps = vec![0; (SIZE / SECTOR) as usize];
    let mut noise = Noise(7);
    for session in 0..3_u64 {
        cowl_storage::ring_runtime().unwrap().block_on(async {
            let disk = Disk::open_with(&Rings, &image, &open).await.unwrap();
            for batch in 0..4 {
                let first = (session * 10 + batch + 1) << 32;
                let requests: Vec<Request> =
                    (0..IN_FLIGHT).map(|index| request(&mut noise, first | index)).collect();
                let flushes = (0..3).map(|_| async { BlockDevice::flush(&disk).await.unwrap() });
                let all = requests.iter().map(|request| serve(&disk, *request));
                futures_util::join!(join_all(all), join_all(flushes));
                let mut bytes = vec![0; SIZE as usize];
                disk.read_into(GuestOffset::ZERO, &mut bytes).await.unwrap();
                judge(&bytes, &mut stamps, &requests, &format!("{options}, batch {batch}"));
            }
            disk.shut().await.unwrap();
        });
        let report = cowl::check(&image, None, Sharing::NoWriters, None, &()).unwrap();
        assert!(report.is_clean(), "{options}: {report:?}");
        assert!(qemu_img(folder, &["check", "-q", "disk.qcow2"]), "{options}");
        if session == 0 && !options.contains("refcount_bits=1,") {
            assert!(qemu_img(folder, &["snapshot", "-c", "first", "disk.qcow2"]));
        }
    }
}

#[test]
fn hundreds_of_overlapping_requests_leave_whole_sectors() {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    if !qemu_img(folder.path(), &["--version"]) {
        eprintln!("SKIPPED: qemu-img is not installed");
        return;
    }
    for options in [
        "cluster_size=512,refcount_bits=64",
        "cluster_size=4096,refcount_bits=16",
        "cluster_size=65536",
        "cluster_size=65536,extended_l2=on",
    ] {
        run(folder.path(), options, Caching::PageCache);
    }
    run(folder.path(), "cluster_size=65536", Caching::Direct);
}
