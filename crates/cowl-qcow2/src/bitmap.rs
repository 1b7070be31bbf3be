//! Reading persistent dirty bitmaps (specification, "Bitmaps").

use cowl_block::{BitmapChunk, DirtyBitmap};
use cowl_format::limits::BITMAP_BYTES_MAX;
use cowl_format::{
    AutoclearFeatures, BitmapDirectoryEntry, BitmapFlags, BitmapTableEntry, ByteCount, Corruption,
    HostOffset,
};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::open::read_bitmaps;
use crate::{Error, Image, Layer};

/// Why a bitmap cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BitmapError {
    /// The image has none of that name.
    #[error("Bitmap '{name}' is not found")]
    NotFound {
        /// The name.
        name: String,
    },
    /// It was not stored since the image was last written to.
    #[error("Bitmap '{name}' is inconsistent: it was in use when the image was last closed")]
    Inconsistent {
        /// The name.
        name: String,
    },
    /// It records writes, and this image is open for writing without keeping it.
    #[error("Bitmap '{name}' records writes, which are not recorded here: open read-only")]
    Recording {
        /// The name.
        name: String,
    },
    /// Its bits would take more memory than there is for them.
    #[error("Bitmap '{name}' has {bytes} bytes, more than {BITMAP_BYTES_MAX}")]
    TooLarge {
        /// The name.
        name: String,
        /// Bytes of bits.
        bytes: u64,
    },
    /// The image failed.
    #[error(transparent)]
    Image(#[from] Error),
}

impl<S: Storage> Image<S> {
    /// The persistent bitmap called `name`, as it is stored: that of the top layer, or of the first
    /// one below that has it and is no smaller than the disk.
    ///
    /// Takes memory for what of it is neither all clean nor all dirty, at most
    /// [`BITMAP_BYTES_MAX`].
    pub async fn dirty_bitmap(&self, name: &str) -> Result<DirtyBitmap, BitmapError> {
        for layer in self.layers() {
            if layer.size() < self.size() {
                continue;
            }
            match layer.dirty_bitmap(name).await {
                Err(BitmapError::NotFound { .. }) => {}
                outcome => return outcome,
            }
        }
        Err(BitmapError::NotFound { name: name.to_owned() })
    }
}

impl<S: Storage> Layer<S> {
    async fn dirty_bitmap(&self, name: &str) -> Result<DirtyBitmap, BitmapError> {
        let owned = || name.to_owned();
        // Without the bit the extension is stale.
        if !self.header().autoclear.contains(AutoclearFeatures::BITMAPS) {
            return Err(BitmapError::NotFound { name: owned() });
        }
        let directory = read_bitmaps(self.file().as_ref(), self.header()).await?;
        let entry = directory.entries.iter().find(|entry| entry.name == name.as_bytes());
        let Some(entry) = entry else { return Err(BitmapError::NotFound { name: owned() }) };
        if entry.flags.contains(BitmapFlags::IN_USE) {
            return Err(BitmapError::Inconsistent { name: owned() });
        }
        if entry.flags.contains(BitmapFlags::AUTO) && self.writer().is_ok() {
            return Err(BitmapError::Recording { name: owned() });
        }
        let bytes = u64::from(entry.table_entries) * self.geometry().cluster_size();
        if BITMAP_BYTES_MAX < bytes {
            return Err(BitmapError::TooLarge { name: owned(), bytes });
        }
        Ok(self.read_bits(entry).await?)
    }

    async fn read_bits(&self, entry: &BitmapDirectoryEntry) -> Result<DirtyBitmap, Error> {
        let cluster = self.geometry().cluster_size();
        let table = u64::from(entry.table_entries) * 8;
        self.check_inside("bitmap table", entry.table_offset, table).await?;
        let buffer = IoBuffer::zeroed(ByteCount::new(table).as_usize());
        let (result, table) = self.file().read(entry.table_offset, buffer, Purpose::Bitmap).await;
        result?;
        let mut chunks = Vec::new();
        for word in table.chunks_exact(8) {
            let raw = u64::from_be_bytes(word.try_into().expect("8 bytes"));
            let stored = BitmapTableEntry::decode(raw, self.geometry());
            chunks.push(match stored.map_err(|corruption| self.corrupt(corruption))? {
                BitmapTableEntry::AllZeros => BitmapChunk::Clean,
                BitmapTableEntry::AllOnes => BitmapChunk::Dirty,
                BitmapTableEntry::Stored(host) => {
                    // The last cluster of a file may be cut; the rest of it is zeros.
                    self.check_inside("bitmap", host, 1).await?;
                    let buffer = IoBuffer::zeroed(ByteCount::new(cluster).as_usize());
                    let (result, bits) = self.file().read(host, buffer, Purpose::Bitmap).await;
                    result?;
                    chunk_of(&bits)
                }
            });
        }
        let chunk = ByteCount::new(cluster).as_usize();
        Ok(DirtyBitmap::new(entry.granularity().get(), chunk, chunks))
    }

    /// Refuses what a file of this length cannot hold, before memory is taken for it.
    async fn check_inside(
        &self,
        what: &'static str,
        at: HostOffset,
        length: u64,
    ) -> Result<(), Error> {
        let file = self.file().len().await?;
        match at.get().checked_add(length) {
            Some(end) if end <= file.get() => Ok(()),
            _ => Err(self.corrupt(Corruption::PastEndOfFile { what, at, file })),
        }
    }
}

/// Stored bits; what is uniform is not kept.
fn chunk_of(bits: &[u8]) -> BitmapChunk {
    match bits[0] {
        0 if bits.iter().all(|&byte| byte == 0) => BitmapChunk::Clean,
        u8::MAX if bits.iter().all(|&byte| byte == u8::MAX) => BitmapChunk::Dirty,
        _ => BitmapChunk::Bits(bits.into()),
    }
}
