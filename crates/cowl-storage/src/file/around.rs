//! Large writes around the page cache, into a file that everybody else sees through it.
//!
//! Copying megabytes into the page cache costs the copy, a page of memory for each page, and the
//! wait for the disk at the barrier. Where memory is at hand that is the fastest way all the same,
//! since the disk works meanwhile; where the kernel has to find it first, in a virtual machine
//! whose host takes free memory back, or beyond what may be dirty, it is several times slower than
//! the disk. So the file is open twice: large aligned writes take the second way, with `O_DIRECT`,
//! while that one is the faster of the two; everything else takes the first.
//!
//! Linux keeps the two in step: a direct write first writes back what is dirty below it, and drops
//! what the page cache has of its range. Two writes that share no block do not meet at all. A
//! barrier on the file covers both, since it is one file.
//!
//! The second way is only ever a faster one: what it does not take goes through the page cache.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::{direct, transfer};

/// Smaller writes would wait for the disk each time: measured with two threads that make what they
/// wrote durable in the end, 16 KiB are half as fast around the page cache as through it
/// (`docs/decisions/0011-large-writes-around-the-page-cache.md`).
const LARGE: usize = 256 << 10;

/// The second way to a file.
pub(super) struct Around {
    fd: OwnedFd,
    io_mask: u64,
    memory_mask: usize,
    /// The file has refused a write that met its alignment.
    refused: AtomicBool,
    pace: Pace,
}

impl Around {
    /// Opens the file of `fd` once more; `None` where the host cannot.
    pub(super) fn open(fd: BorrowedFd<'_>) -> Option<Self> {
        // By its number: the name may mean another file by now.
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let flags = OFlags::WRONLY | OFlags::DIRECT | OFlags::CLOEXEC | OFlags::NOCTTY;
        let around = rustix::fs::open(path, flags, Mode::empty()).ok()?;
        let (io, memory) = direct::alignment_told(fd).unwrap_or(direct::ALIGNMENT_SAFE);
        Some(Self {
            fd: around,
            io_mask: u64::from(io) - 1,
            memory_mask: memory as usize - 1,
            refused: AtomicBool::new(false),
            pace: Pace::default(),
        })
    }

    /// Writes all of `bytes` at `at`, on whichever way is faster now; `first` is the other one.
    pub(super) fn write(&self, first: BorrowedFd<'_>, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        if !self.takes(at, bytes) {
            return transfer::write(first, at, bytes);
        }
        let way = self.pace.choose();
        let started = Instant::now();
        let done = match way {
            Way::Around => self.write_around(at, bytes),
            Way::Through => None,
        };
        // What the second way did not take; some of it perhaps for the second time.
        let result = done.unwrap_or_else(|| transfer::write(first, at, bytes));
        self.pace.took(way, started.elapsed().as_nanos(), bytes.len());
        result
    }

    /// `None` where the bytes have to go through the page cache.
    fn write_around(&self, at: u64, bytes: &[u8]) -> Option<Result<(), Errno>> {
        let written = rustix::io::pwrite(&self.fd, bytes, at);
        if written.is_err_and(is_refusal) {
            self.refused.store(true, Ordering::Relaxed);
        }
        outcome(written, bytes.len())
    }

    fn takes(&self, at: u64, bytes: &[u8]) -> bool {
        LARGE <= bytes.len()
            && (at | bytes.len() as u64) & self.io_mask == 0
            && bytes.as_ptr().addr() & self.memory_mask == 0
            && !self.refused.load(Ordering::Relaxed)
    }
}

/// Whether the file takes no direct write of this kind, whatever its bytes.
fn is_refusal(errno: Errno) -> bool {
    matches!(errno, Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS)
}

/// What a direct write of `length` bytes came to; `None` where it has to be done again, through the
/// page cache.
fn outcome(written: Result<usize, Errno>, length: usize) -> Option<Result<(), Errno>> {
    match written {
        Ok(count) => (count == length).then_some(Ok(())),
        Err(Errno::INTR | Errno::AGAIN) => None,
        Err(errno) if is_refusal(errno) => None,
        Err(errno) => Some(Err(errno)),
    }
}

/// One of the two ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Through,
    Around,
}

/// How long large writes take on each way. Threads that meet here may miss each other's figures.
#[derive(Debug, Default)]
struct Pace {
    turns: AtomicU64,
    /// Nanoseconds for a MiB, lately; zero where nothing is known.
    through: AtomicU64,
    around: AtomicU64,
}

impl Pace {
    /// Of so many writes one takes the way that was slower, to see whether it still is.
    const PROBE: u64 = 128;

    /// The way of the next write.
    fn choose(&self) -> Way {
        let turn = self.turns.fetch_add(1, Ordering::Relaxed);
        let (through, around) =
            (self.through.load(Ordering::Relaxed), self.around.load(Ordering::Relaxed));
        let (faster, other) = match through <= around {
            true => (Way::Through, Way::Around),
            false => (Way::Around, Way::Through),
        };
        // An unknown way counts as the faster one.
        if turn % Self::PROBE == Self::PROBE - 1 { other } else { faster }
    }

    /// A write of `length` bytes took so long.
    fn took(&self, way: Way, nanoseconds: u128, length: usize) {
        let lately = match way {
            Way::Through => &self.through,
            Way::Around => &self.around,
        };
        let each = (nanoseconds << 20) / length.max(1) as u128;
        let each = u64::try_from(each).unwrap_or(u64::MAX).clamp(1, u64::MAX / 4);
        let before = lately.load(Ordering::Relaxed);
        let after = if before == 0 { each } else { (before * 3 + each) / 4 };
        lately.store(after, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use rustix::io::Errno;

    use super::{Around, LARGE, Pace, Way, outcome};
    use crate::{Caching, FileOptions, FileStorage, IoBuffer, LockMode};

    const MIB: usize = 1 << 20;

    /// The ways of `count` writes, where the first way takes `through` for each and the second one
    /// `around`.
    fn ways(pace: &Pace, count: usize, through: u128, around: u128) -> Vec<Way> {
        let mut ways = Vec::new();
        for _ in 0..count {
            let way = pace.choose();
            let time = if way == Way::Through { through } else { around };
            pace.took(way, time, MIB);
            ways.push(way);
        }
        ways
    }

    fn share(ways: &[Way], wanted: Way) -> f64 {
        ways.iter().filter(|way| **way == wanted).count() as f64 / ways.len() as f64
    }

    #[test]
    fn both_ways_are_tried_and_the_faster_one_is_kept() {
        let pace = Pace::default();
        let first = ways(&pace, 2, 200, 900);
        assert_eq!(first, [Way::Through, Way::Around]);
        assert!(0.9 < share(&ways(&pace, 320, 200, 900), Way::Through));
        let pace = Pace::default();
        assert!(0.9 < share(&ways(&pace, 320, 2500, 900), Way::Around));
    }

    #[test]
    fn a_way_that_becomes_slow_is_left_and_one_that_becomes_fast_is_found() {
        let pace = Pace::default();
        ways(&pace, 100, 200, 900);
        assert!(0.9 < share(&ways(&pace, 200, 3000, 900), Way::Around), "memory ran out");
        ways(&pace, 2000, 200, 900);
        assert!(0.9 < share(&ways(&pace, 100, 200, 900), Way::Through), "and is there again");
    }

    #[test]
    fn times_of_any_size_are_taken() {
        let pace = Pace::default();
        for (time, length) in [(0, MIB), (u128::MAX >> 21, 1), (1, usize::MAX), (7, 0)] {
            for way in [Way::Through, Way::Around] {
                pace.took(way, time, length);
            }
            pace.choose();
        }
    }

    #[test]
    fn only_a_whole_write_counts_and_only_real_failures_are_errors() {
        assert_eq!(outcome(Ok(MIB), MIB), Some(Ok(())));
        for short in [0, 1, 4096, MIB - 1] {
            assert_eq!(outcome(Ok(short), MIB), None);
        }
        for again in [Errno::INTR, Errno::AGAIN, Errno::INVAL, Errno::OPNOTSUPP, Errno::NOSYS] {
            assert_eq!(outcome(Err(again), MIB), None);
        }
        for errno in [Errno::IO, Errno::NOSPC, Errno::DQUOT, Errno::FBIG, Errno::ROFS] {
            assert_eq!(outcome(Err(errno), MIB), Some(Err(errno)));
        }
    }

    /// Without a check of the alignment, most file systems refuse what follows; some take it.
    #[test]
    fn what_the_second_way_refuses_goes_through_the_page_cache() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = std::fs::File::create(&path).unwrap();
        let Some(around) = Around::open(file.as_fd()) else {
            eprintln!("\nSKIPPED: this file system knows no O_DIRECT\n");
            return;
        };
        let around = Around { io_mask: 0, memory_mask: 0, ..around };
        let mut bytes = IoBuffer::zeroed(MIB);
        bytes.fill(7);
        for turn in 0..4 {
            around.write(file.as_fd(), 1 + turn * MIB as u64, &bytes[1..]).unwrap();
        }
        let content = std::fs::read(&path).unwrap();
        assert_eq!(content.len(), 4 * MIB);
        for part in content.chunks(MIB) {
            assert_eq!(part[0], 0);
            assert!(part[1..].iter().all(|byte| *byte == 7));
        }
        let is_taken = around.write_around(1, &bytes[1..]) == Some(Ok(()));
        assert_eq!(around.takes(1, &bytes[1..]), is_taken, "who refuses is asked once");
    }

    #[test]
    fn a_failure_of_the_second_way_is_the_failure_of_the_write() {
        let folder = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(folder.path().join("file")).unwrap();
        // Writes with an offset are nothing for such a descriptor.
        let fd = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
        let (io_mask, memory_mask) = (4095, 4095);
        let around =
            Around { fd, io_mask, memory_mask, refused: false.into(), pace: Pace::default() };
        let bytes = IoBuffer::zeroed(MIB);
        assert_eq!(around.write(file.as_fd(), 0, &bytes), Ok(()), "the first way is tried first");
        assert_eq!(around.write(file.as_fd(), 0, &bytes), Err(Errno::SPIPE));
    }

    #[test]
    fn devices_and_files_for_reading_have_one_way() {
        let has_two_ways = |path: &std::path::Path, options: FileOptions| {
            let options = FileOptions {
                caching: Caching::LargeWritesDirect,
                lock: LockMode::None,
                ..options
            };
            FileStorage::open(path, options).unwrap().into_open_file().has_second_way()
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        if !has_two_ways(&path, FileOptions::create()) {
            eprintln!("\nSKIPPED: this file system knows no O_DIRECT\n");
            return;
        }
        assert!(!has_two_ways(&path, FileOptions::read_only()));
        for device in ["/dev/full", "/dev/null"] {
            assert!(!has_two_ways(device.as_ref(), FileOptions::read_write()), "{device}");
        }
    }

    #[test]
    fn only_large_aligned_writes_are_taken() {
        let folder = tempfile::tempdir().unwrap();
        let storage = FileStorage::open(folder.path().join("file"), FileOptions::create_new());
        let file = storage.unwrap().into_open_file();
        let Some(around) = Around::open(file.fd()) else {
            eprintln!("\nSKIPPED: this file system knows no O_DIRECT\n");
            return;
        };
        let bytes = IoBuffer::zeroed(MIB + 4096);
        let sector = 4096;
        assert!(around.takes(0, &bytes[..MIB]));
        assert!(around.takes(8 * sector, &bytes[..LARGE]));
        assert!(!around.takes(0, &bytes[..LARGE - 4096]), "small");
        assert!(!around.takes(1, &bytes[..MIB]), "offset");
        assert!(!around.takes(0, &bytes[..MIB + 1]), "length");
        assert!(!around.takes(0, &bytes[1..MIB + 1]), "memory");
        assert_eq!(around.write_around(sector, &bytes[..MIB]), Some(Ok(())));
        assert_eq!(file.length(), Ok(sector + MIB as u64));
    }
}
