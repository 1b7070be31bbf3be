//! Memory that is the machine's own.
//!
//! A virtual machine whose host takes free memory back pays for each page that it uses again, up to
//! a second for a gigabyte: more than what writing it costs, and whoever's turn it is pays. A page
//! cache without free memory takes a page from a file that nobody reads, at a cost that hardly
//! changes.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

/// Keeps the machine's free memory in its page cache until it is dropped.
pub(crate) struct OwnMemory {
    file: PathBuf,
}

impl OwnMemory {
    /// Reads a file without content, as long as there is free memory.
    pub(crate) fn fill(file: PathBuf) -> Result<Self, String> {
        let free = free_bytes().ok_or("/proc/meminfo does not say how much memory is free")?;
        let failed = |error: std::io::Error| format!("{}: {error}", file.display());
        let memory = Self { file: file.clone() };
        File::create(&file).and_then(|new| new.set_len(free)).map_err(failed)?;
        let mut reader = File::open(&file).map_err(failed)?;
        let mut block = vec![0; 1 << 20];
        while 0 < reader.read(&mut block).map_err(failed)? {}
        Ok(memory)
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        fs::remove_file(&self.file).ok();
    }
}

fn free_bytes() -> Option<u64> {
    let facts = fs::read_to_string("/proc/meminfo").ok()?;
    let line = facts.lines().find_map(|line| line.strip_prefix("MemFree:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
}
