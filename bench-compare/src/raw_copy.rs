//! The floor of a convert without compression: the bytes of a file in a new one, with nothing
//! around them.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::Instant;

use crate::sys::{Direction, RingBlocks};

const BLOCK: usize = 1 << 20;

/// Blocks on their way at a time.
const DEPTH: u32 = 8;

/// How the new file is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copy {
    /// Into the page cache, and no further.
    Unflushed,
    /// Around the page cache, and flushed.
    Durable,
}

/// Copies `source`, a multiple of a block, to `target`, which must not exist, and removes it after
/// looking at it. Returns the seconds of the copy.
pub(crate) fn copy(source: &Path, target: &Path, how: Copy) -> Result<f64, String> {
    let outcome = write(source, target, how).and_then(|seconds| {
        compare(source, target)?;
        Ok(seconds)
    });
    fs::remove_file(target).ok();
    outcome.map_err(|error| format!("{}: {error}", target.display()))
}

/// What a block is doing.
#[derive(Clone, Copy)]
enum Step {
    Reads(u64),
    Writes,
}

fn write(source: &Path, target: &Path, how: Copy) -> io::Result<f64> {
    let mut blocks = RingBlocks::new(DEPTH, BLOCK)?;
    let start = Instant::now();
    let from = File::open(source)?;
    let length = from.metadata()?.len();
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    if how == Copy::Durable {
        options.custom_flags(libc::O_DIRECT);
    }
    let to = options.open(target)?;
    let mut steps = [Step::Writes; DEPTH as usize];
    let mut ready: Vec<usize> = (0..DEPTH as usize).collect();
    let mut next = 0;
    loop {
        while let Some(slot) = ready.pop() {
            match steps[slot] {
                Step::Reads(at) => {
                    steps[slot] = Step::Writes;
                    blocks.start(&to, slot, at, Direction::Write)?;
                }
                Step::Writes if next < length => {
                    steps[slot] = Step::Reads(next);
                    blocks.start(&from, slot, next, Direction::Read)?;
                    next += BLOCK as u64;
                }
                Step::Writes => {}
            }
        }
        if blocks.in_flight() == 0 {
            break;
        }
        blocks.finish(&mut ready)?;
    }
    if how == Copy::Durable {
        to.sync_all()?;
    }
    Ok(start.elapsed().as_secs_f64())
}

fn compare(source: &Path, target: &Path) -> io::Result<()> {
    let (source, target) = (File::open(source)?, File::open(target)?);
    let length = source.metadata()?.len();
    let (mut left, mut right) = (vec![0; BLOCK], vec![0; BLOCK]);
    for at in (0..length).step_by(BLOCK) {
        source.read_exact_at(&mut left, at)?;
        target.read_exact_at(&mut right, at)?;
        if left != right {
            return Err(io::Error::other("the copy differs"));
        }
    }
    Ok(())
}
