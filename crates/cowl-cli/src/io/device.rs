//! The open disk, with errors as numbers: qemu-io says no more about a failed request.

use std::fmt;
use std::io;

use cowl::{
    Access, BlockDevice, ByteCount, Caching, Format, GuestOffset, OpenOptions, Preallocation,
    Sharing, ZeroRequest, has_image_magic,
};
use cowl_storage::IoBuffer;
use cowl_tools::Disk;
use pollster::block_on;

use crate::disk;
use crate::image_name::ImageName;
use crate::settings::Settings;

const EPERM: i32 = 1;
const EIO: i32 = 5;

/// The start of a disk, which decides what its format is taken for.
const HEAD_BYTES: u64 = 512;

/// An error number of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(i32);

impl Errno {
    /// The operation does not exist here.
    pub(super) const UNSUPPORTED: Self = Self(95);
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&disk::system_words(&io::Error::from_raw_os_error(self.0)))
    }
}

impl From<cowl::Error> for Errno {
    fn from(error: cowl::Error) -> Self {
        Self(error.errno())
    }
}

/// When a write has to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durable {
    /// When it is acknowledged (force unit access).
    AtOnce,
    /// As the cache mode says.
    ByCacheMode,
}

/// An open disk.
pub(super) struct Device {
    pub(super) disk: Disk,
    pub(super) name: ImageName,
    pub(super) settings: Settings,
    /// Nobody said that it is raw.
    is_guessed_raw: bool,
}

impl Device {
    /// Opens a disk; the error is the reason in words.
    pub(super) fn open(name: &ImageName, settings: Settings) -> Result<Self, String> {
        if let Some(contradiction) = settings.contradiction() {
            return Err(contradiction.into());
        }
        let base = if settings.untrusted { OpenOptions::untrusted() } else { OpenOptions::local() };
        let options = OpenOptions {
            access: if settings.read_only { Access::ReadOnly } else { Access::ReadWrite },
            format: disk::format(name),
            backing: disk::backing(&name.backing),
            sharing: if settings.force_share { Sharing::Anyone } else { Sharing::NoWriters },
            caching: if settings.is_direct() { Caching::Direct } else { Caching::PageCache },
            writeback: settings.writeback(),
            offload: Some(disk::worker_pool().map_err(|failure| failure.message)?),
            ..base
        };
        let disk =
            cowl_tools::open_disk(&name.path, &options).map_err(|error| disk::words(&error))?;
        let is_guessed_raw = options.format.is_none() && disk.format() == Format::Raw;
        Ok(Self { disk, name: name.clone(), settings, is_guessed_raw })
    }

    /// Whether a user who may write should be told that the format is a guess.
    pub(super) fn deserves_warning(&self) -> bool {
        self.is_guessed_raw && !self.settings.read_only
    }

    /// Size in whole sectors.
    pub(super) fn size(&self) -> u64 {
        cowl_tools::disk_size(&self.disk)
    }

    /// Fills `buffer` from `at` on; what a raw file lacks in its last sector is zero.
    pub(super) fn read(&self, at: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        self.check_range(at, length_of(buffer))?;
        let stored = self.disk.size().get().saturating_sub(at).min(length_of(buffer));
        let (stored, missing) = buffer.split_at_mut(ByteCount::new(stored).as_usize());
        missing.fill(0);
        if stored.is_empty() { Ok(()) } else { Ok(self.disk.read_at(stored, at)?) }
    }

    pub(super) fn write(&self, at: u64, bytes: &[u8], durable: Durable) -> Result<(), Errno> {
        self.prepare_write(at, length_of(bytes))?;
        self.check_head(at, bytes)?;
        if !self.must_write_through(durable) {
            return Ok(self.disk.write_at(bytes, at)?);
        }
        let buffer = IoBuffer::from_slice(bytes);
        let (result, _) = block_on(self.disk.write_through(GuestOffset::new(at), buffer));
        Ok(result.map_err(cowl::Error::from)?)
    }

    pub(super) fn write_compressed(&self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.check_range(at, length_of(bytes))?;
        self.disk.write_compressed_at(bytes, at)?;
        self.settle(Durable::ByCacheMode)
    }

    pub(super) fn write_zeros(
        &self,
        at: u64,
        length: u64,
        how: ZeroRequest,
        durable: Durable,
    ) -> Result<(), Errno> {
        self.prepare_write(at, length)?;
        let how = if self.settings.discards() { how } else { ZeroRequest::KeepAllocated };
        self.disk.zero_at(at, length, how)?;
        self.settle(durable)
    }

    pub(super) fn discard(&self, at: u64, length: u64) -> Result<(), Errno> {
        self.check_range(at, length)?;
        let stored = self.disk.size().get().saturating_sub(at).min(length);
        if !self.settings.discards() || stored == 0 {
            return Ok(());
        }
        Ok(self.disk.discard_at(at, stored)?)
    }

    pub(super) fn flush(&self) -> Result<(), Errno> {
        if self.settings.flushes() { Ok(self.disk.flush()?) } else { Ok(()) }
    }

    fn check_range(&self, at: u64, length: u64) -> Result<(), Errno> {
        let end = at.checked_add(length).ok_or(Errno(EIO))?;
        if end <= self.size() { Ok(()) } else { Err(Errno(EIO)) }
    }

    /// A raw file that ends inside its last sector grows when the rest of that is written.
    fn prepare_write(&self, at: u64, length: u64) -> Result<(), Errno> {
        self.check_range(at, length)?;
        if self.disk.size().get() < at + length {
            self.disk.resize(at + length, Preallocation::Off)?;
        }
        Ok(())
    }

    /// A disk that was guessed to be raw must not get a start that changes the guess.
    fn check_head(&self, at: u64, bytes: &[u8]) -> Result<(), Errno> {
        if !self.is_guessed_raw || HEAD_BYTES <= at || bytes.is_empty() {
            return Ok(());
        }
        let mut head = vec![0; ByteCount::new(HEAD_BYTES.min(self.size())).as_usize()];
        self.read(0, &mut head)?;
        let start = ByteCount::new(at).as_usize();
        let length = bytes.len().min(head.len() - start);
        head[start..start + length].copy_from_slice(&bytes[..length]);
        if has_image_magic(&head) { Err(Errno(EPERM)) } else { Ok(()) }
    }

    fn must_write_through(&self, durable: Durable) -> bool {
        durable == Durable::AtOnce || self.settings.is_writethrough()
    }

    fn settle(&self, durable: Durable) -> Result<(), Errno> {
        if self.must_write_through(durable) { self.flush() } else { Ok(()) }
    }
}

fn length_of(bytes: &[u8]) -> u64 {
    ByteCount::from_usize(bytes.len()).get()
}
