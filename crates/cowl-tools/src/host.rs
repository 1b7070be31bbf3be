//! Where images are: files of this machine, and exports of NBD servers that the operator named.

use std::io;
use std::path::Path;
use std::sync::Arc;

use cowl::{
    Access, ByteCount, Error, FileOptions, FileStorage, HostOffset, OpenOptions, StorageError,
    StorageOpener,
};
use cowl_nbd::{ConnectError, NbdStorage, NbdUri};
use cowl_storage::{
    Allocation, Blocking, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, Operation,
    Purpose, Replacement, Storage, ZeroMode,
};

/// A disk of the tools: on files, or on exports.
pub type Disk = cowl::Disk<HostFile>;

/// Opens the disk at `path`, which may be the URI of an export.
///
/// # Errors
/// When it, or something that it stands on, cannot be opened or may not be by `options`.
pub fn open_disk(path: &Path, options: &OpenOptions) -> Result<Disk, Error> {
    pollster::block_on(Disk::open_with(&HostFiles, path, options))
}

/// A file, or an export that stands for one.
pub enum HostFile {
    /// A file or a block device.
    File(FileStorage),
    /// A file that somebody else has, too.
    Shared(Arc<FileStorage>),
    /// An export of an NBD server.
    Nbd(NbdStorage),
}

impl HostFile {
    /// The file, where it is one.
    pub(crate) fn as_file(&self) -> Option<&FileStorage> {
        match self {
            Self::File(file) => Some(file),
            Self::Shared(file) => Some(file),
            Self::Nbd(_) => None,
        }
    }

    /// The file of an image that does not have its name yet.
    pub(crate) fn of(replacement: &Replacement) -> Arc<Self> {
        Arc::new(Self::Shared(Arc::clone(replacement.file())))
    }
}

/// Opens files by path and exports by URI.
///
/// `cowl` makes sure that no path found inside an image is taken for a URI unless the policy says
/// so.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostFiles;

impl StorageOpener for HostFiles {
    type Storage = HostFile;

    fn open(&self, path: &Path, options: FileOptions) -> Result<HostFile, StorageError> {
        match cowl::remote_uri(path) {
            None => Ok(HostFile::File(FileStorage::open(path, options)?)),
            Some(uri) => connect(uri, path, options.access).map(HostFile::Nbd),
        }
    }
}

fn connect(uri: &str, name: &Path, access: Access) -> Result<NbdStorage, StorageError> {
    let fail = |source| StorageError::new(name, Operation::Open, None, None, source);
    let parsed = NbdUri::parse(uri)
        .map_err(|error| fail(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let storage = NbdStorage::connect(&parsed, name).map_err(|error| match error {
        ConnectError::Io(error) => fail(error),
        other => fail(io::Error::other(other)),
    })?;
    if access == Access::ReadWrite && storage.capabilities().read_only {
        return Err(fail(io::ErrorKind::ReadOnlyFilesystem.into()));
    }
    Ok(storage)
}

/// Does the same to whichever it is.
macro_rules! forward {
    ($this:expr, $inner:ident => $call:expr) => {
        match $this {
            Self::File($inner) => $call,
            Self::Shared($inner) => $call,
            Self::Nbd($inner) => $call,
        }
    };
}

impl Blocking for HostFile {}

impl Storage for HostFile {
    fn capabilities(&self) -> Capabilities {
        forward!(self, inner => inner.capabilities())
    }

    fn name(&self) -> &Path {
        forward!(self, inner => inner.name())
    }

    fn identity(&self) -> Option<FileIdentity> {
        forward!(self, inner => inner.identity())
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        forward!(self, inner => inner.len().await)
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        forward!(self, inner => inner.allocated().await)
    }

    async fn read(
        &self,
        at: HostOffset,
        buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        forward!(self, inner => inner.read(at, buffer, purpose).await)
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        forward!(self, inner => inner.read_vectored(at, buffers, purpose).await)
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        forward!(self, inner => inner.write(at, buffer, purpose).await)
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        forward!(self, inner => inner.write_vectored(at, buffers, purpose).await)
    }

    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        forward!(self, inner => inner.try_read(at, buffer, purpose))
    }

    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        forward!(self, inner => inner.try_write(at, bytes, purpose))
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        forward!(self, inner => inner.zero(at, length, mode, purpose).await)
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        forward!(self, inner => inner.discard(at, length, purpose).await)
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        forward!(self, inner => inner.allocate(at, length, how, purpose).await)
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        forward!(self, inner => inner.set_len(length, purpose).await)
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        forward!(self, inner => inner.extent(at, length_max).await)
    }

    async fn barrier(&self, purpose: Purpose) -> Result<(), StorageError> {
        forward!(self, inner => inner.barrier(purpose).await)
    }

    async fn settle(&self) {
        forward!(self, inner => inner.settle().await);
    }
}
