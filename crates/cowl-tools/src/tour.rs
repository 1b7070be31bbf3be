//! `tour`: a disk with real files in a temporary folder, and the commands that show what cowl does
//! with it.
//!
//! This file prepares the disk, names the steps, and reads the files back through the image;
//! running the steps and printing is the caller's business.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use cowl::{BlockDevice, Disk};
use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// Size of the disk: room for the files, and free space that an image need not store.
const DISK_BYTES: u64 = 64 << 20;

/// Bytes of the largest file that is copied from the host.
const PROGRAM_BYTES_MAX: u64 = 16 << 20;

/// Texts that every build of cowl carries.
const TEXTS: &[(&str, &str)] = &[
    ("README.md", include_str!("../../../README.md")),
    ("ARCHITECTURE.md", include_str!("../../../ARCHITECTURE.md")),
    ("GLOSSARY.md", include_str!("../../../docs/glossary.md")),
];

/// A command of the tour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TourStep {
    /// What it shows, in a sentence.
    pub title: &'static str,
    /// What is typed after the program's name.
    pub arguments: &'static [&'static str],
}

const STEPS: &[TourStep] = &[
    TourStep {
        title: "A raw disk with a FAT file system and a few files.",
        arguments: &["info", "disk.raw"],
    },
    TourStep {
        title: "Converted to qcow2: free space takes no room.",
        arguments: &["convert", "-O", "qcow2", "disk.raw", "disk.qcow2"],
    },
    TourStep { title: "What the image says about itself.", arguments: &["info", "disk.qcow2"] },
    TourStep {
        title: "An overlay: a new disk that shares all it has not changed.",
        arguments: &["create", "-f", "qcow2", "-b", "disk.qcow2", "-F", "qcow2", "overlay.qcow2"],
    },
    TourStep {
        title: "Where the overlay's bytes are: all of them in its backing file.",
        arguments: &["map", "overlay.qcow2"],
    },
    TourStep {
        title: "Flattened and compressed with zstd, on all cores.",
        arguments: &[
            "convert",
            "-c",
            "-O",
            "qcow2",
            "-o",
            "compression_type=zstd",
            "overlay.qcow2",
            "small.qcow2",
        ],
    },
    TourStep {
        title: "Is its metadata sound? Every table is read once, in parallel.",
        arguments: &["check", "small.qcow2"],
    },
    TourStep {
        title: "Does it still hold the same disk?",
        arguments: &["compare", "disk.raw", "small.qcow2"],
    },
    TourStep {
        title: "Back to raw, read back and compared, with the digest of the content.",
        arguments: &["convert", "-O", "raw", "--verify", "--digest", "small.qcow2", "back.raw"],
    },
    TourStep {
        title: "The first 4 MiB as an image of their own, for what comes last.",
        arguments: &["dd", "-O", "qcow2", "bs=1M", "count=4", "if=disk.raw", "of=cut.qcow2"],
    },
];

/// What became of the power cuts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerCuts {
    /// Requests that were sent.
    pub requests: u64,
    /// States that power cuts left, each of them opened, read and checked.
    pub crash_states: u64,
    /// The first rule that was broken, in words.
    pub violation: Option<String>,
}

/// States that power cuts leave, to be judged.
const CRASH_STATES: u64 = 240;

/// A file found in the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredFile {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Whether its content is what was put in.
    pub intact: bool,
}

/// Why the tour could not go on.
#[derive(Debug, thiserror::Error)]
pub enum TourError {
    /// The temporary folder or the disk in it could not be made or read.
    #[error("the tour's temporary folder: {0}")]
    Io(#[from] io::Error),
    /// The image could not be opened.
    #[error(transparent)]
    Open(#[from] cowl::Error),
}

/// A temporary folder with a disk; it goes away with this value.
pub struct Tour {
    folder: tempfile::TempDir,
    program: PathBuf,
}

impl Tour {
    /// Makes the folder and the disk. `program` is copied into the disk, for weight.
    pub fn prepare(program: &Path) -> Result<Self, TourError> {
        let folder = tempfile::Builder::new().prefix("cowl-tour-").tempdir()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(folder.path().join("disk.raw"))?;
        file.set_len(DISK_BYTES)?;
        fatfs::format_volume(&file, FormatVolumeOptions::new().volume_label(*b"COWL TOUR  "))?;
        let tour = Self { folder, program: program.to_owned() };
        tour.fill(&file)?;
        Ok(tour)
    }

    fn fill(&self, disk: &File) -> io::Result<()> {
        let volume = FileSystem::new(disk, FsOptions::new())?;
        for (name, text) in TEXTS {
            volume.root_dir().create_file(name)?.write_all(text.as_bytes())?;
        }
        let mut program = volume.root_dir().create_file("cowl.bin")?;
        io::copy(&mut File::open(&self.program)?.take(PROGRAM_BYTES_MAX), &mut program)?;
        program.flush()?;
        drop(program);
        volume.unmount()
    }

    /// Where the commands run.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The commands, in order.
    #[must_use]
    pub fn steps(&self) -> &'static [TourStep] {
        STEPS
    }

    /// Reads the files back from the compressed image, through its file system.
    pub fn stored_files(&self) -> Result<Vec<StoredFile>, TourError> {
        let path = self.folder.path().join("small.qcow2");
        let disk = Disk::open(&path, &cowl::OpenOptions::local())?;
        let volume = FileSystem::new(DiskCursor { disk, at: 0 }, FsOptions::new())?;
        let mut files = Vec::new();
        for entry in volume.root_dir().iter() {
            let entry = entry?;
            let mut content = Vec::new();
            entry.to_file().read_to_end(&mut content)?;
            let name = entry.file_name();
            let intact = content == self.expected(&name)?;
            files.push(StoredFile { bytes: content.len() as u64, name, intact });
        }
        Ok(files)
    }

    /// Lets simulated guests write to the last image on a simulated host that loses power again and
    /// again, and judges what that leaves.
    pub fn power_cuts(&self) -> Result<PowerCuts, TourError> {
        let image = std::fs::read(self.folder.path().join("cut.qcow2"))?;
        Ok(match cowl_sim::demonstrate(&image, 1, CRASH_STATES) {
            Ok(totals) => PowerCuts {
                requests: totals.operations,
                crash_states: totals.crash_states,
                violation: None,
            },
            Err(text) => PowerCuts { requests: 0, crash_states: 0, violation: Some(text) },
        })
    }

    fn expected(&self, name: &str) -> io::Result<Vec<u8>> {
        if let Some((_, text)) = TEXTS.iter().find(|(known, _)| *known == name) {
            return Ok(text.as_bytes().to_vec());
        }
        let mut content = Vec::new();
        File::open(&self.program)?.take(PROGRAM_BYTES_MAX).read_to_end(&mut content)?;
        Ok(content)
    }
}

/// A disk as the file that a file system expects.
struct DiskCursor {
    disk: Disk,
    at: u64,
}

impl Read for DiskCursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.disk.size().get().saturating_sub(self.at);
        let length = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        self.disk.read_at(&mut buffer[..length], self.at).map_err(io::Error::other)?;
        self.at += length as u64;
        Ok(length)
    }
}

impl Write for DiskCursor {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Seek for DiskCursor {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let size = self.disk.size().get();
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => size.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use cowl::ByteCount;
    use cowl_qcow2::{CreateOptions, Preallocation};
    use cowl_storage::Durability;

    use super::{DISK_BYTES, Tour};
    use crate::{ConvertOptions, ExistingTarget, TargetImage, Unwatched, ZeroDetection, convert};

    #[test]
    fn files_survive_the_way_into_a_compressed_image() {
        let tour = Tour::prepare(Path::new("/proc/self/exe")).unwrap();
        let disk =
            crate::open_disk(&tour.folder().join("disk.raw"), &cowl::OpenOptions::local()).unwrap();
        let options = ConvertOptions {
            target: TargetImage::Qcow2 {
                create: Box::new(CreateOptions::new(ByteCount::new(DISK_BYTES))),
                preallocation: Preallocation::Off,
            },
            existing: ExistingTarget::Replace,
            compress: true,
            only_top_layer: false,
            zeros: ZeroDetection::Runs(ByteCount::new(4096)),
            threads: 2,
            rate_max: None,
            salvage: false,
            copy_range: false,
            caching: cowl::Caching::PageCache,
            durability: Durability::Unsafe,
            verify: true,
            digest: false,
        };
        convert(&[disk], &tour.folder().join("small.qcow2"), &options, &Unwatched).unwrap();
        let files = tour.stored_files().unwrap();
        assert_eq!(files.len(), 4);
        assert!(files.iter().all(|file| file.intact && 0 < file.bytes));
    }
}
