//! A process that is killed while it writes: what it flushed is there, and only reservations leak.
//!
//! The test starts itself as the writer, which tells on a pipe what it is about to write and what
//! it has flushed, and is killed at some moment. 200 times over, on one image.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stderr,
    reason = "a test fails by panic, and a skip is printed"
)]

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cowl::{Access, Disk, OpenOptions, Sharing, ZeroRequest};

const KILLS: u64 = 200;
const BLOCK: u64 = 4096;
const BLOCKS: u64 = 6000;
const THREADS: u64 = 3;
const IMAGE: &str = "COWL_TEST_KILLED_IMAGE";

/// One line of the pipe.
#[derive(Clone, Copy)]
enum Word {
    /// The block is about to get this stamp.
    Issued { block: u64, stamp: u64 },
    /// What this thread issued before is durable.
    Flushed { thread: u64 },
}

impl Word {
    fn encode(self) -> [u8; 16] {
        let (first, second) = match self {
            Self::Issued { block, stamp } => (block, stamp),
            Self::Flushed { thread } => (u64::MAX, thread),
        };
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..].copy_from_slice(&second.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Self {
        let number = |part: &[u8]| u64::from_le_bytes(part.try_into().unwrap());
        match (number(&bytes[..8]), number(&bytes[8..])) {
            (u64::MAX, thread) => Self::Flushed { thread },
            (block, stamp) => Self::Issued { block, stamp },
        }
    }
}

fn options(access: Access) -> OpenOptions {
    OpenOptions { access, ..OpenOptions::local() }
}

/// The block as it reads with this stamp; 0 is zeros.
fn content(stamp: u64) -> Vec<u8> {
    stamp.to_le_bytes().repeat(BLOCK as usize / 8)
}

/// Not a test: what the killed process does. Each thread owns the blocks of its number.
#[test]
fn writer() {
    let Some(image) = std::env::var_os(IMAGE) else { return };
    let seed: u64 = std::env::var("COWL_TEST_KILLED_SEED").unwrap().parse().unwrap();
    let disk = Disk::open(Path::new(&image), &options(Access::ReadWrite)).unwrap();
    let pipe = Mutex::new(std::io::stdout());
    let say = |word: Word| {
        let mut pipe = pipe.lock().unwrap();
        pipe.write_all(&word.encode()).unwrap();
        pipe.flush().unwrap();
    };
    let stamps = AtomicU64::new(seed << 32 | 1);
    say(Word::Flushed { thread: THREADS });
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (disk, say, stamps) = (&disk, &say, &stamps);
            scope.spawn(move || {
                let mut noise = seed * THREADS + thread + 1;
                let mut next = |below: u64| {
                    noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                    (noise >> 33) % below
                };
                loop {
                    let block = next(BLOCKS / THREADS) * THREADS + thread;
                    let zero = next(8) == 0;
                    let stamp = if zero { 0 } else { stamps.fetch_add(1, Ordering::Relaxed) };
                    say(Word::Issued { block, stamp });
                    if zero {
                        disk.zero_at(block * BLOCK, BLOCK, ZeroRequest::MayUnmap).unwrap();
                    } else {
                        disk.write_at(&content(stamp), block * BLOCK).unwrap();
                    }
                    if next(12) == 0 {
                        disk.flush().unwrap();
                        say(Word::Flushed { thread });
                    }
                }
            });
        }
    });
}

/// Runs the writer and kills it after `life`. Returns what it said.
fn run_and_kill(image: &Path, seed: u64, life: Duration) -> Vec<Word> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--nocapture", "-q"])
        .env(IMAGE, image)
        .env("COWL_TEST_KILLED_SEED", seed.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut pipe = child.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        pipe.read_to_end(&mut said).unwrap();
        said
    });
    std::thread::sleep(life);
    child.kill().unwrap();
    child.wait().unwrap();
    let said = reader.join().unwrap();
    // The test harness has a word of its own before ours.
    let start = Word::Flushed { thread: THREADS }.encode();
    let Some(first) = said.windows(16).position(|window| window == start) else {
        return Vec::new();
    };
    said[first..].chunks_exact(16).map(Word::decode).collect()
}

/// What each block may read as: its last flushed stamp and every later one.
fn advance(legal: &mut [Vec<u64>], said: &[Word]) {
    for word in said {
        match *word {
            Word::Issued { block, stamp } => legal[block as usize].push(stamp),
            Word::Flushed { thread } if thread < THREADS => {
                let own = legal.iter_mut().skip(thread as usize).step_by(THREADS as usize);
                own.for_each(|stamps| drop(stamps.drain(..stamps.len() - 1)));
            }
            Word::Flushed { .. } => {}
        }
    }
}

fn judge(disk: &Disk, legal: &mut [Vec<u64>], round: u64) {
    let mut bytes = vec![0; BLOCK as usize];
    for (block, stamps) in legal.iter_mut().enumerate() {
        disk.read_at(&mut bytes, block as u64 * BLOCK).unwrap();
        let sectors: Vec<u64> = bytes
            .chunks_exact(512)
            .map(|sector| {
                let stamp = u64::from_le_bytes(sector[..8].try_into().unwrap());
                assert!(sector.chunks(8).all(|word| word == &sector[..8]), "torn sector");
                stamp
            })
            .collect();
        for stamp in &sectors {
            assert!(stamps.contains(stamp), "round {round}: block {block} reads {stamp:#x}");
        }
        // What was read once stays, as after any restart.
        *stamps = sectors;
        stamps.dedup();
    }
}

#[test]
fn a_killed_writer_loses_nothing_that_it_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk.qcow2");
    let size = (BLOCKS * BLOCK).to_string();
    let created = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .args([image.as_os_str(), size.as_ref()])
        .status();
    if !created.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED: qemu-img is not installed");
        return;
    }
    let mut legal = vec![vec![0]; BLOCKS as usize];
    let mut flushes = 0;
    let mut writes = 0;
    for round in 0..KILLS {
        let life = Duration::from_millis(15 + round * 37 % 90);
        let said = run_and_kill(&image, round + 1, life);
        writes += said.iter().filter(|word| matches!(word, Word::Issued { .. })).count();
        flushes += said.iter().filter(|word| matches!(word, Word::Flushed { .. })).count();
        advance(&mut legal, &said);
        let report = cowl::check(&image, None, Sharing::NoWriters, None, &()).unwrap();
        assert_eq!((report.corruptions, report.check_errors), (0, 0), "round {round}");
        let disk = Disk::open(&image, &options(Access::ReadOnly)).unwrap();
        judge(&disk, &mut legal, round);
    }
    assert!(1000 < writes && 100 < flushes, "{writes} writes, {flushes} flushes");
    let check = Command::new("qemu-img").args(["check", "-q"]).arg(&image).status().unwrap();
    // 3: leaks, and nothing else.
    assert!(matches!(check.code(), Some(0 | 3)), "{check}");
}
