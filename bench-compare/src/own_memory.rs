//! Memory that is the machine's own.
//!
//! A virtual machine whose host takes free memory back pays for each page that it uses again, up to
//! two seconds for a gigabyte: more than what writing it costs, and whoever's turn it is pays. A
//! page cache without free memory takes a page from a file that nobody reads, at a cost that hardly
//! changes.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Keeps the machine's free memory in its page cache.
pub(crate) struct OwnMemory {
    path: PathBuf,
    filler: RefCell<Filler>,
}

/// A file without content and without a name: only its place in the page cache counts.
struct Filler {
    file: File,
    left: u64,
}

impl OwnMemory {
    /// With a file that is at `path` for a moment.
    pub(crate) fn new(path: PathBuf) -> Result<Self, String> {
        let filler = RefCell::new(Filler::new(&path)?);
        Ok(Self { path, filler })
    }

    /// Reads on in the file, as much as there is free memory.
    pub(crate) fn fill(&self) -> Result<(), String> {
        const IS_FULL: u64 = 2 << 30;
        let free = free_bytes()?;
        let mut filler = self.filler.borrow_mut();
        if filler.left < free {
            *filler = Filler::new(&self.path)?;
        }
        filler.read(free).map_err(|error| format!("{}: {error}", self.path.display()))?;
        // A tmpfs gives out the same page for every hole.
        if IS_FULL.max(free / 2) < free_bytes()? {
            let path = self.path.display();
            return Err(format!("{path}: reading it fills no memory; use --dir on a disk"));
        }
        Ok(())
    }
}

impl Filler {
    fn new(path: &Path) -> Result<Self, String> {
        // Longer than any memory, shorter than what file systems refuse.
        const LENGTH: u64 = 1 << 40;
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let file = File::options().read(true).write(true).create_new(true).open(path);
        let file = file.map_err(failed)?;
        fs::remove_file(path).map_err(failed)?;
        file.set_len(LENGTH).map_err(failed)?;
        Ok(Self { file, left: LENGTH })
    }

    fn read(&mut self, count: u64) -> io::Result<()> {
        self.left = self.left.saturating_sub(count);
        io::copy(&mut (&self.file).take(count), &mut io::sink()).map(|_| ())
    }
}

fn free_bytes() -> Result<u64, String> {
    let facts = fs::read_to_string("/proc/meminfo").map_err(|error| error.to_string())?;
    let line = facts.lines().find_map(|line| line.strip_prefix("MemFree:"));
    let kibibytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes
        .map(|kibibytes| kibibytes << 10)
        .ok_or_else(|| "/proc/meminfo does not say how much memory is free".to_owned())
}
