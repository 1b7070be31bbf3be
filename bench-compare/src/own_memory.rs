//! Memory that is the machine's own.
//!
//! A virtual machine whose host takes free memory back pays for each page that it uses again, up to
//! two seconds for a gigabyte: more than what writing it costs, and whoever's turn it is pays. A
//! page cache without free memory takes a page from a file that nobody reads, at a cost that hardly
//! changes.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;

/// Keeps the machine's free memory in its page cache until it is dropped.
pub(crate) struct OwnMemory {
    path: PathBuf,
    /// A file without content: only its place in the page cache counts.
    file: File,
    left: Cell<u64>,
}

impl OwnMemory {
    pub(crate) fn new(path: PathBuf) -> Result<Self, String> {
        // Longer than what is ever read of it, shorter than what file systems refuse.
        const LENGTH: u64 = 8 << 40;
        let file = File::create(&path)
            .and_then(|file| file.set_len(LENGTH))
            .and_then(|()| File::open(&path))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, file, left: Cell::new(LENGTH) })
    }

    /// Reads on in the file, as much as there is free memory.
    pub(crate) fn fill(&self) -> Result<(), String> {
        let free = free_bytes().ok_or("/proc/meminfo does not say how much memory is free")?;
        let left = self.left.get().checked_sub(free).ok_or("the file to fill memory is used up")?;
        self.left.set(left);
        io::copy(&mut (&self.file).take(free), &mut io::sink())
            .map(|_| ())
            .map_err(|error| format!("{}: {error}", self.path.display()))
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        fs::remove_file(&self.path).ok();
    }
}

fn free_bytes() -> Option<u64> {
    let facts = fs::read_to_string("/proc/meminfo").ok()?;
    let line = facts.lines().find_map(|line| line.strip_prefix("MemFree:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}
