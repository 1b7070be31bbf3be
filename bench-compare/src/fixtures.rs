//! The images that everybody works on. QEMU makes them, so that nobody reads his own handwriting;
//! but for one, for the row that says what that handwriting is worth.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::options::Options;
use crate::own_memory::OwnMemory;
use crate::{cowl_program, process, sys};

/// Where the images are.
pub(crate) struct Folder {
    path: PathBuf,
    // Removes the folder in the end.
    _temporary: Option<tempfile::TempDir>,
}

impl Folder {
    pub(crate) fn new(options: &Options) -> Result<Self, String> {
        let (path, temporary) = match &options.folder {
            Some(path) => (path.clone(), None),
            None => {
                let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
                (folder.path().to_owned(), Some(folder))
            }
        };
        fs::create_dir_all(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, _temporary: temporary })
    }

    /// A file in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Where the images and programs are.
pub(crate) struct Fixtures {
    folder: Folder,
    pub(crate) cowl: PathBuf,
    pub(crate) rqcow2: PathBuf,
    pub(crate) qemu_img: PathBuf,
    data_bytes: u64,
    pub(crate) huge_bytes: u64,
    memory: Option<OwnMemory>,
}

impl Fixtures {
    pub(crate) fn new(options: &Options) -> Result<Self, String> {
        let folder = Folder::new(options)?;
        let cowl = match &options.cowl {
            Some(path) => path.clone(),
            None => cowl_program::build()?,
        };
        let memory = options.fill_memory.then(|| OwnMemory::new(folder.path("memory.fill")));
        Ok(Self {
            folder,
            cowl,
            rqcow2: options.rqcow2.clone(),
            qemu_img: PathBuf::from("qemu-img"),
            data_bytes: options.data_bytes(),
            huge_bytes: options.huge_bytes(),
            memory: memory.transpose()?,
        })
    }

    /// A file in the folder.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }

    /// Makes the machine ready for a sample that writes: nobody shall be slowed down by what the
    /// one before still has to write, nor by memory that the host has taken back since.
    pub(crate) fn settle(&self) -> Result<(), String> {
        sys::sync();
        self.memory.as_ref().map_or(Ok(()), OwnMemory::fill)
    }

    /// Makes `name` with qemu-img unless it is there.
    fn by_qemu(&self, name: &str, arguments: &[&str]) -> Result<PathBuf, String> {
        self.by(&self.qemu_img, name, arguments)
    }

    /// Makes `name` with a program unless it is there.
    fn by(&self, program: &Path, name: &str, arguments: &[&str]) -> Result<PathBuf, String> {
        let path = self.path(name);
        if !path.exists() {
            let unfinished = self.text(&format!("{name}.unfinished"));
            let arguments: Vec<&str> = arguments
                .iter()
                .map(|argument| if *argument == "TARGET" { unfinished.as_str() } else { argument })
                .collect();
            process::run(program, &arguments)?;
            fs::rename(&unfinished, &path).map_err(|error| error.to_string())?;
        }
        Ok(path)
    }

    /// Binaries of this machine, one after the other: what real disks hold.
    pub(crate) fn binaries(&self) -> Result<PathBuf, String> {
        let path = self.path("binaries.raw");
        if !path.exists() {
            let unfinished = self.path("binaries.unfinished");
            write_binaries(&unfinished, self.data_bytes).map_err(|error| error.to_string())?;
            fs::rename(&unfinished, &path).map_err(|error| error.to_string())?;
        }
        Ok(path)
    }

    /// Where [`plain`](Self::plain) is, if it is there.
    pub(crate) fn plain_path(&self) -> PathBuf {
        self.path("plain.qcow2")
    }

    /// The same bytes in an uncompressed image.
    pub(crate) fn plain(&self) -> Result<PathBuf, String> {
        let source = self.binaries()?;
        let source = source.to_string_lossy();
        self.by_qemu("plain.qcow2", &["convert", "-O", "qcow2", "-S", "0", &source, "TARGET"])
    }

    /// The same bytes, compressed.
    pub(crate) fn compressed(&self, kind: &str) -> Result<PathBuf, String> {
        let source = self.binaries()?;
        let source = source.to_string_lossy();
        let options = format!("compression_type={kind}");
        let name = format!("{kind}.qcow2");
        let arguments = ["convert", "-c", "-m", "16", "-W", "-O", "qcow2", "-o", &options];
        self.by_qemu(&name, &[&arguments[..], &[&source, "TARGET"]].concat())
    }

    /// The same bytes in zstd clusters as cowl writes them.
    pub(crate) fn compressed_by_cowl(&self) -> Result<PathBuf, String> {
        let source = self.binaries()?;
        let source = source.to_string_lossy();
        let options = "compression_type=zstd";
        let arguments = ["convert", "-c", "-O", "qcow2", "-o", options, &source, "TARGET"];
        self.by(&self.cowl, "zstd-by-cowl.qcow2", &arguments)
    }

    /// A huge disk with all its tables and no data.
    pub(crate) fn huge(&self) -> Result<PathBuf, String> {
        let size = self.huge_bytes.to_string();
        let options = "preallocation=metadata";
        let arguments = ["create", "-q", "-f", "qcow2", "-o", options, "TARGET", &size];
        self.by_qemu("huge.qcow2", &arguments)
    }

    /// A raw file of the same size, all holes.
    pub(crate) fn huge_raw(&self) -> Result<PathBuf, String> {
        let path = self.path("huge.raw");
        let make = || File::create(&path)?.set_len(self.huge_bytes);
        if !path.exists() {
            make().map_err(|error: std::io::Error| error.to_string())?;
        }
        Ok(path)
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        self.data_bytes
    }
}

fn write_binaries(path: &Path, length: u64) -> std::io::Result<()> {
    let mut target = File::create(path)?;
    let mut left = length;
    let mut block = vec![0; 1 << 20];
    while 0 < left {
        let before = left;
        for folder in ["/usr/bin", "/usr/lib", "/usr/libexec", "/usr/share"] {
            append_folder(Path::new(folder), &mut target, &mut left, &mut block)?;
        }
        if left == before {
            return Err(std::io::Error::other("no binaries under /usr"));
        }
    }
    target.sync_all()
}

/// Appends the files below `folder`, in order of their names, until `left` is 0.
fn append_folder(
    folder: &Path,
    target: &mut File,
    left: &mut u64,
    block: &mut [u8],
) -> std::io::Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    for path in paths {
        if *left == 0 {
            return Ok(());
        }
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            append_folder(&path, target, left, block)?;
        } else if metadata.is_file()
            && let Ok(mut file) = File::open(&path)
        {
            while 0 < *left {
                let count = file.read(block)?.min(usize::try_from(*left).unwrap_or(usize::MAX));
                if count == 0 {
                    break;
                }
                target.write_all(&block[..count])?;
                *left -= count as u64;
            }
        }
    }
    Ok(())
}

/// Brings a file into the page cache. Holes are skipped: they have no pages to bring.
pub(crate) fn warm(path: &Path) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut file = File::open(path).map_err(failed)?;
    let mut block = vec![0; 1 << 20];
    let mut at = 0;
    while let Some((data, hole)) = sys::next_data(&file, at) {
        file.seek(SeekFrom::Start(data.unsigned_abs())).map_err(failed)?;
        at = data;
        while at < hole {
            match file.read(&mut block).map_err(failed)? {
                0 => return Ok(()),
                count => at += i64::try_from(count).unwrap_or(i64::MAX),
            }
        }
    }
    Ok(())
}
