//! From a path to an open chain, by the caller's policy.

use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowl_block::{RawImage, RawOptions};
use cowl_format::Header;
use cowl_format::limits::BACKING_DEPTH_MAX;
use cowl_qcow2::{
    BeyondEnd, CacheLimits, Image, Layer, LayerFiles, LayerOptions, Offload, read_header,
};
use cowl_storage::{
    Access, Caching, FileIdentity, FileKinds, FileOptions, FileStorage, LockMode, Purpose, Storage,
    StorageError, UringStorage, Writeback,
};

use crate::error::{Error, Refusal};
use crate::format::{Format, probe};
use crate::policy::{
    BACKING, DATA_FILE, Follow, printable, remote_name, resolve_backing_name,
    resolve_data_file_name,
};

/// How an image is shared with other processes while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nobody else may write to it.
    NoWriters,
    /// Others may write to it: what is read may be torn.
    Anyone,
}

/// Which backing file an image is opened with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backing {
    /// The one that the image names, if the policy allows it.
    FromImage,
    /// None: what the image does not have reads as zeros.
    Nothing,
    /// This file instead of the one that the image names.
    File {
        /// The file.
        path: PathBuf,
        /// Its format; `None` finds out.
        format: Option<Format>,
        /// What it is opened with in turn.
        backing: Box<Backing>,
    },
}

/// How to open a disk.
#[derive(Clone)]
pub struct OpenOptions {
    /// Whether the top image may be changed; everything below it is only read.
    pub access: Access,
    /// The format; `None` finds out from the first bytes.
    pub format: Option<Format>,
    /// What the image may make us open.
    pub follow: Follow,
    /// Which backing file to use.
    pub backing: Backing,
    /// The top image's external data file, instead of the one that the image names.
    pub data_file: Option<PathBuf>,
    /// Who else may use the files.
    pub sharing: Sharing,
    /// Whether the page cache is used.
    pub caching: Caching,
    /// When what the top image gets goes to the disk.
    pub writeback: Writeback,
    /// An internal snapshot to show instead of the current disk, by ID or else by name.
    pub snapshot: Option<String>,
    /// Memory for the caches of each layer.
    pub cache: CacheLimits,
    /// What to do with a mapping past the end of its file.
    pub beyond_end: BeyondEnd,
    /// Where decompression runs; on the reading thread when there is none.
    pub offload: Option<Arc<dyn Offload>>,
}

impl OpenOptions {
    /// For images of one's own: backing files that are plain local files are followed.
    #[must_use]
    pub fn local() -> Self {
        Self {
            access: Access::ReadOnly,
            format: None,
            follow: Follow::LocalFiles,
            backing: Backing::FromImage,
            data_file: None,
            sharing: Sharing::NoWriters,
            caching: Caching::PageCache,
            writeback: Writeback::Early,
            snapshot: None,
            cache: CacheLimits::STANDARD,
            beyond_end: BeyondEnd::ReadZeros,
            offload: None,
        }
    }

    /// For images from strangers: nothing is followed, and mappings past the end of the file are
    /// errors.
    #[must_use]
    pub fn untrusted() -> Self {
        Self { follow: Follow::Nothing, beyond_end: BeyondEnd::Refuse, ..Self::local() }
    }
}

/// Opens host files for a driver.
pub trait StorageOpener {
    /// The driver.
    type Storage: Storage;

    /// Opens `path`.
    fn open(&self, path: &Path, options: FileOptions) -> Result<Self::Storage, StorageError>;
}

/// Opens files for the plain driver.
#[derive(Clone, Copy, Debug, Default)]
pub struct Files;

impl StorageOpener for Files {
    type Storage = FileStorage;

    fn open(&self, path: &Path, options: FileOptions) -> Result<FileStorage, StorageError> {
        FileStorage::open(path, options)
    }
}

/// Opens files for the ring of whichever thread uses them, inside a compio runtime.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rings;

impl StorageOpener for Rings {
    type Storage = UringStorage;

    fn open(&self, path: &Path, options: FileOptions) -> Result<UringStorage, StorageError> {
        UringStorage::open(path, options)
    }
}

/// An open chain.
pub(crate) enum Chain<S: Storage> {
    Raw(RawImage<S>),
    Qcow2(Image<S>),
}

/// A file of the chain that is still to be opened.
struct Next {
    path: PathBuf,
    format: Option<Format>,
    backing: Backing,
    /// The image that named it; `None` for a file that the caller named.
    named_by: Option<PathBuf>,
}

/// The chain as far as it is open.
struct Opening<'a, O: StorageOpener> {
    opener: &'a O,
    options: &'a OpenOptions,
    layers: Vec<Layer<O::Storage>>,
    seen: Vec<FileIdentity>,
}

pub(crate) async fn open_chain<O: StorageOpener>(
    opener: &O,
    path: &Path,
    options: &OpenOptions,
) -> Result<Chain<O::Storage>, Error> {
    let mut opening = Opening { opener, options, layers: Vec::new(), seen: Vec::new() };
    let mut next = Some(Next {
        path: path.to_owned(),
        format: options.format,
        backing: options.backing.clone(),
        named_by: None,
    });
    let mut base = None;
    while let Some(file) = next {
        let (path, named_by) = (file.path.clone(), file.named_by.clone());
        let step = match opening.step(file).await {
            Ok(step) => step,
            Err(error) => return Err(below(error, path, named_by)),
        };
        next = match step {
            Step::End => None,
            Step::Base(raw) => {
                base = Some(raw);
                None
            }
            Step::Below(file) => Some(*file),
        };
    }
    match (opening.layers.is_empty(), base) {
        (true, Some(raw)) => Ok(Chain::Raw(raw)),
        (_, base) => Ok(Chain::Qcow2(Image::new(opening.layers, base))),
    }
}

enum Step<S: Storage> {
    End,
    Base(RawImage<S>),
    Below(Box<Next>),
}

fn below(error: Error, path: PathBuf, named_by: Option<PathBuf>) -> Error {
    match named_by {
        None => error,
        Some(image) => Error::Below { role: BACKING, path, image, source: Box::new(error) },
    }
}

impl<O: StorageOpener> Opening<'_, O> {
    async fn step(&mut self, next: Next) -> Result<Step<O::Storage>, Error> {
        let refuse = |refusal| Error::Refused { path: next.path.clone(), refusal };
        if BACKING_DEPTH_MAX <= self.layers.len() {
            return Err(refuse(Refusal::TooDeep { max: BACKING_DEPTH_MAX }));
        }
        if let Some(image) = &next.named_by {
            refuse_special_file(image, &next.path, BACKING)?;
        }
        let kinds = match next.named_by {
            None => FileKinds::Any,
            Some(_) => FileKinds::RegularOnly,
        };
        let file = self.open_file(&next.path, kinds)?;
        if let Some(identity) = file.identity() {
            if self.seen.contains(&identity) {
                return Err(refuse(Refusal::Loop));
            }
            self.seen.push(identity);
        }
        let format = match next.format {
            Some(format) => format,
            None => probe(&file).await?,
        };
        let is_top = self.layers.is_empty();
        match format {
            Format::Raw => self.open_raw(file, is_top).await.map(Step::Base),
            Format::Qcow2 => self.open_layer(file, next).await,
        }
    }

    /// Opens a file of the layer under way: to write only where that is the top one.
    fn open_file(&self, path: &Path, kinds: FileKinds) -> Result<O::Storage, StorageError> {
        let access = if self.layers.is_empty() { self.options.access } else { Access::ReadOnly };
        let lock = match (self.options.sharing, access) {
            (Sharing::NoWriters, Access::ReadOnly) => LockMode::ReadOnly,
            (Sharing::NoWriters, Access::ReadWrite) => LockMode::ReadWrite,
            (Sharing::Anyone, _) => LockMode::ForceShare,
        };
        let (caching, writeback) = (self.options.caching, self.options.writeback);
        let options =
            FileOptions { access, lock, caching, kinds, writeback, ..FileOptions::read_only() };
        self.opener.open(path, options)
    }

    async fn open_raw(
        &self,
        file: O::Storage,
        is_top: bool,
    ) -> Result<RawImage<O::Storage>, Error> {
        if is_top && self.options.snapshot.is_some() {
            let refusal = Refusal::NotInRaw { what: "snapshots" };
            return Err(Error::Refused { path: file.name().to_owned(), refusal });
        }
        let purpose = if is_top { Purpose::GuestData } else { Purpose::BackingData };
        let options = RawOptions { purpose, ..RawOptions::whole_file() };
        Ok(RawImage::open(file, options).await?)
    }

    async fn open_layer(
        &mut self,
        file: O::Storage,
        next: Next,
    ) -> Result<Step<O::Storage>, Error> {
        let header = read_header(&file).await.map_err(Error::image(&next.path))?;
        let data = self.open_data_file(&next.path, &header)?.map(Arc::new);
        let below = self.below(&next, &header)?;
        let access = if self.layers.is_empty() { self.options.access } else { Access::ReadOnly };
        let options = LayerOptions {
            access,
            cache: self.options.cache,
            beyond_end: self.options.beyond_end,
            snapshot: self.options.snapshot.clone().filter(|_| self.layers.is_empty()),
            offload: self.options.offload.clone(),
        };
        let files = LayerFiles { image: Arc::new(file), data };
        let layer = Layer::open(files, header, options).await.map_err(Error::image(&next.path))?;
        self.layers.push(layer);
        Ok(below.map_or(Step::End, |next| Step::Below(Box::new(next))))
    }

    fn open_data_file(&self, image: &Path, header: &Header) -> Result<Option<O::Storage>, Error> {
        if !header.has_data_file() {
            return Ok(None);
        }
        if let Some(path) = self.options.data_file.as_ref().filter(|_| self.layers.is_empty()) {
            return Ok(Some(self.open_file(path, FileKinds::Any)?));
        }
        let name = header.data_file_name.as_deref().unwrap_or_default();
        if self.options.follow == Follow::Nothing {
            let refusal = Refusal::Following { role: DATA_FILE, name: printable(name) };
            return Err(Error::Refused { path: image.to_owned(), refusal });
        }
        let path = resolve_data_file_name(image, name)?;
        refuse_special_file(image, &path, DATA_FILE)?;
        match self.open_file(&path, FileKinds::RegularOnly) {
            Ok(file) => Ok(Some(file)),
            Err(error) => Err(Error::Below {
                role: DATA_FILE,
                path,
                image: image.to_owned(),
                source: Box::new(error.into()),
            }),
        }
    }

    fn below(&self, this: &Next, header: &Header) -> Result<Option<Next>, Error> {
        match &this.backing {
            Backing::Nothing => Ok(None),
            Backing::File { path, format, backing } => Ok(Some(Next {
                path: path.clone(),
                format: *format,
                backing: (**backing).clone(),
                named_by: None,
            })),
            Backing::FromImage => self.below_by_image(&this.path, header),
        }
    }

    fn below_by_image(&self, image: &Path, header: &Header) -> Result<Option<Next>, Error> {
        let Some(reference) = &header.backing else { return Ok(None) };
        let name = printable(&reference.name);
        let refuse = |refusal| Err(Error::Refused { path: image.to_owned(), refusal });
        if self.options.follow == Follow::Nothing {
            return refuse(Refusal::Following { role: BACKING, name });
        }
        let remote = match self.options.follow {
            Follow::LocalFilesAndNbd => remote_name(&reference.name),
            Follow::Nothing | Follow::LocalFiles => None,
        };
        let path = match remote {
            Some(uri) => uri,
            None => resolve_backing_name(image, &reference.name)?,
        };
        let Some(format) = &header.backing_format else {
            return refuse(Refusal::BackingFormatMissing { name });
        };
        let Some(format) = Format::from_name(format) else {
            let format = printable(format);
            return refuse(Refusal::BackingFormatUnknown { format });
        };
        Ok(Some(Next {
            path,
            format: Some(format),
            backing: Backing::FromImage,
            named_by: Some(image.to_owned()),
        }))
    }
}

/// A name from an image must not lead to a device, a pipe or a socket: opening alone can have
/// effects.
fn refuse_special_file(image: &Path, path: &Path, role: &'static str) -> Result<(), Error> {
    // A file that is not there fails when it is opened, with the system's own error.
    let Ok(metadata) = std::fs::metadata(path) else { return Ok(()) };
    let kind = metadata.file_type();
    let is_special =
        kind.is_block_device() || kind.is_char_device() || kind.is_fifo() || kind.is_socket();
    if !is_special {
        return Ok(());
    }
    let name = path.display().to_string();
    let refusal = Refusal::NotRegular { role, name };
    Err(Error::Refused { path: image.to_owned(), refusal })
}
