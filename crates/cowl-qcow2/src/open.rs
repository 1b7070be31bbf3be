//! Opening: from a file to a [`Layer`], reading nothing that the header does not ask for.
//!
//! Opening a layer opens no other file. The caller reads the header first ([`read_header`]), sees
//! which files the image names, decides by its own policy which to open, and hands them over.

use std::sync::Arc;

use cowl_format::limits::{L1_BYTES_MAX, SNAPSHOT_TABLE_BYTES_MAX};
use cowl_format::{
    BitmapDirectory, ByteCount, Corruption, CryptMethod, Header, HostOffset, L1Entry, SnapshotL1,
    SnapshotTable, Table, UncheckedHeader,
};
use cowl_storage::{Access, IoBuffer, Purpose, Storage};

use crate::cache::CacheLimits;
use crate::mapping::L1Table;
use crate::{Error, Layer, Offload};

/// What to do with a mapping that points past the end of its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeyondEnd {
    /// The bytes there read as zeros, as in QEMU.
    ReadZeros,
    /// Refuse it: for images from strangers. An image that is opened for writing grows, and has
    /// zeros there.
    Refuse,
}

/// How to open a layer.
#[derive(Clone)]
pub struct LayerOptions {
    /// Whether the image may be changed.
    pub access: Access,
    /// Memory of the caches.
    pub cache: CacheLimits,
    /// What to do with a mapping past the end of its file.
    pub beyond_end: BeyondEnd,
    /// Show the disk as it was at this snapshot, by ID or else by name.
    pub snapshot: Option<String>,
    /// Where decompression runs; on the calling thread when there is none.
    pub offload: Option<Arc<dyn Offload>>,
}

/// The files of one layer.
pub struct LayerFiles<S> {
    /// The image file.
    pub image: Arc<S>,
    /// The external data file, for an image that has one.
    pub data: Option<Arc<S>>,
}

const FIRST_READ: usize = 4096;

/// Reads and validates the header, its extensions and the backing file name.
pub async fn read_header<S: Storage>(file: &S) -> Result<Header, Error> {
    let mut length = FIRST_READ;
    loop {
        let buffer = IoBuffer::zeroed(length);
        let (result, buffer) = file.read(HostOffset::ZERO, buffer, Purpose::Header).await;
        let read = result?.as_usize();
        // The bytes past the end of the file count as zeros for everything behind the fixed fields.
        let fields = UncheckedHeader::decode(&buffer[..read.min(buffer.len())]);
        match fields.and_then(|fields| fields.validate(&buffer)) {
            Err(Corruption::HeaderTruncated { needed }) if length < needed.as_usize() => {
                // At most cluster 0: 2 MiB.
                length = needed.as_usize().next_multiple_of(FIRST_READ);
            }
            result => return result.map_err(|corruption| corrupt(file, corruption)),
        }
    }
}

/// Bytes of a snapshot's record with names of the usual length: who guesses too low reads twice.
const SNAPSHOT_USUAL: usize = 96;

/// The most that is read for a header's word alone: it may say more than the file has.
const SNAPSHOT_FIRST_MAX: usize = 1 << 20;

/// Reads the snapshot table.
pub async fn read_snapshots<S: Storage>(file: &S, header: &Header) -> Result<SnapshotTable, Error> {
    let count = header.snapshot_count;
    read_snapshots_with(file, header, |bytes, at_end| SnapshotTable::decode(bytes, count, at_end))
        .await
}

/// Reads the snapshot table for where the snapshots' L1 tables lie; and the length of it.
pub(crate) async fn read_snapshot_l1_tables<S: Storage>(
    file: &S,
    header: &Header,
) -> Result<(Vec<SnapshotL1>, ByteCount), Error> {
    let (count, geometry) = (header.snapshot_count, header.geometry);
    let decode =
        |bytes: &[u8], at_end| SnapshotTable::decode_l1_tables(bytes, count, at_end, geometry);
    read_snapshots_with(file, header, decode).await
}

async fn read_snapshots_with<S: Storage, T: Default>(
    file: &S,
    header: &Header,
    decode: impl Fn(&[u8], bool) -> Result<T, Corruption>,
) -> Result<T, Error> {
    if header.snapshot_count == 0 {
        return Ok(T::default());
    }
    let guess = header.snapshot_count as usize * SNAPSHOT_USUAL;
    let mut length = guess.clamp(FIRST_READ, SNAPSHOT_FIRST_MAX);
    loop {
        let buffer = IoBuffer::zeroed(length);
        let (result, mut buffer) =
            file.read(header.snapshot_offset, buffer, Purpose::Snapshot).await;
        let read = result?.as_usize();
        buffer.truncate(read);
        match decode(&buffer, read < length) {
            Err(Corruption::HeaderTruncated { needed }) => {
                if needed.get() > SNAPSHOT_TABLE_BYTES_MAX {
                    let count = header.snapshot_count;
                    return Err(corrupt(file, Corruption::SnapshotCount { count }));
                }
                length = needed.as_usize().max(length * 2);
            }
            result => return result.map_err(|corruption| corrupt(file, corruption)),
        }
    }
}

/// Reads the bitmap directory; an empty one for an image without bitmaps.
pub async fn read_bitmaps<S: Storage>(file: &S, header: &Header) -> Result<BitmapDirectory, Error> {
    let extension = match &header.bitmaps {
        None => return Ok(BitmapDirectory::default()),
        Some(Err(corruption)) => return Err(corrupt(file, corruption.clone())),
        Some(Ok(extension)) => extension,
    };
    // A stranger's header must not make us allocate what the file does not hold.
    let file_length = file.len().await?;
    let end = extension.directory_offset + extension.directory_size;
    if file_length < end.since(HostOffset::ZERO) {
        let at = extension.directory_offset;
        let fault = Corruption::PastEndOfFile { what: "bitmap directory", at, file: file_length };
        return Err(corrupt(file, fault));
    }
    let buffer = IoBuffer::zeroed(extension.directory_size.as_usize());
    let (result, buffer) = file.read(extension.directory_offset, buffer, Purpose::Bitmap).await;
    result?;
    BitmapDirectory::decode(&buffer, extension.count, header.geometry)
        .map_err(|corruption| corrupt(file, corruption))
}

/// Reads an L1 table of `entries` entries, without the unallocated ones at its end.
pub(crate) async fn read_l1<S: Storage>(
    file: &S,
    at: HostOffset,
    entries: u32,
    purpose: Purpose,
) -> Result<Box<[L1Entry]>, Error> {
    let mut table = Vec::new();
    for (index, entry) in read_l1_used(file, at, entries, purpose).await? {
        table.resize(index, L1Entry::UNALLOCATED);
        table.push(entry);
    }
    Ok(table.into_boxed_slice())
}

/// Reads the entries of an L1 table that are not zero, with their indices, in order.
///
/// A long table is read in pieces, and its holes are not read at all: one of a huge disk that holds
/// little costs what it holds.
async fn read_l1_used<S: Storage>(
    file: &S,
    at: HostOffset,
    entries: u32,
    purpose: Purpose,
) -> Result<Vec<(usize, L1Entry)>, Error> {
    let bytes = u64::from(entries) * 8;
    assert!(bytes <= L1_BYTES_MAX);
    // A table past the end of the file is unallocated there; a stranger's header must not make us
    // allocate what the file does not hold.
    let file_length = file.len().await?.get();
    let present = bytes.min(file_length.saturating_sub(at.get()).next_multiple_of(8));
    let mut used = Vec::new();
    let mut done = 0;
    while done < present {
        let left = present - done;
        let here = at + ByteCount::new(done);
        let (length, is_hole) = next_l1_piece(file, here, left).await?;
        assert!(0 < length);
        if !is_hole {
            let buffer = IoBuffer::zeroed(ByteCount::new(length).as_usize());
            let (result, buffer) = file.read(here, buffer, purpose).await;
            result?;
            let first = ByteCount::new(done / 8).as_usize();
            let entry = |(index, word)| (first + index, L1Entry::from_raw(word));
            used.extend(used_words(&buffer).map(entry));
        }
        done += length;
    }
    Ok(used)
}

/// The entries of a table that are not zero, with their indices, in order.
pub(crate) fn used_words(bytes: &[u8]) -> impl Iterator<Item = (usize, u64)> {
    /// Entries that are looked at together: of most tables nearly all are zero.
    const STRETCH: usize = 64;
    let stretches = bytes.chunks(STRETCH * 8).enumerate();
    let used = stretches.filter(|(_, bytes)| bytes.iter().fold(0, |sum, byte| sum | byte) != 0);
    let words = used.flat_map(|(stretch, bytes)| {
        let word = |word: &[u8]| u64::from_be_bytes(word.try_into().expect("8 bytes"));
        (stretch * STRETCH..).zip(bytes.chunks_exact(8).map(word))
    });
    words.filter(|(_, word)| *word != 0)
}

/// How many of the `left` bytes of an L1 table at `at`, whole entries, are to be read next, or are
/// a hole.
async fn next_l1_piece<S: Storage>(
    file: &S,
    at: HostOffset,
    left: u64,
) -> Result<(u64, bool), Error> {
    /// To read this much costs no more than to ask whether it is there.
    const UNASKED: u64 = 8 << 10;
    /// Read at once, at most.
    const PIECE: u64 = 64 << 10;
    if left <= UNASKED {
        return Ok((left, false));
    }
    Ok(match file.extent(at, ByteCount::new(left)).await? {
        Some(extent) if extent.hole && 8 <= extent.length.get() => {
            (extent.length.get() / 8 * 8, true)
        }
        Some(extent) => (extent.length.get().clamp(8, PIECE).next_multiple_of(8), false),
        // It became shorter meanwhile: what is past the end reads as zeros.
        None => (PIECE, false),
    })
}

impl<S: Storage> Layer<S> {
    /// Opens a layer.
    ///
    /// Images with the dirty or corrupt bit are readable. For writing, one with the dirty bit gets
    /// its refcounts corrected first, and one with the corrupt bit is refused. Encrypted ones are
    /// refused, as is an image with an external data file when `files` has none.
    pub async fn open(
        files: LayerFiles<S>,
        header: Header,
        options: LayerOptions,
    ) -> Result<Self, Error> {
        let file = &files.image;
        let path = || file.name().to_owned();
        if header.crypt_method != CryptMethod::None {
            return Err(Error::Encrypted { path: path() });
        }
        if header.has_data_file() && files.data.is_none() {
            let name = header.data_file_name.as_deref().unwrap_or_default();
            let name = String::from_utf8_lossy(name).into_owned();
            return Err(Error::DataFileNeeded { path: path(), name });
        }
        header.check_overlap().map_err(|corruption| corrupt(file.as_ref(), corruption))?;
        if header.refcount_table_clusters == 0 {
            return Err(corrupt(file.as_ref(), Corruption::NoRefcountTable));
        }
        let view = match &options.snapshot {
            None => View {
                l1_offset: header.l1_offset,
                l1_entries: header.l1_entries,
                size: header.virtual_size(),
                purpose: Purpose::L1Table,
            },
            Some(wanted) => snapshot_view(file.as_ref(), &header, wanted).await?,
        };
        let used = read_l1_used(file.as_ref(), view.l1_offset, view.l1_entries, view.purpose);
        let used = used.await?;
        let data_length = match &files.data {
            Some(data) => data.len().await?,
            None => file.len().await?,
        };
        let access = options.access;
        let is_snapshot = options.snapshot.is_some();
        let l1 = L1Table::new(&used);
        let mut layer = Self::assemble(files, header, options, l1, view.size, data_length);
        if access == Access::ReadWrite {
            if is_snapshot {
                let what = "a snapshot can only be read";
                return Err(Error::InvalidRequest { what });
            }
            layer.make_writable(&used).await?;
        }
        Ok(layer)
    }
}

/// Which L1 table to show, and how large the disk is.
struct View {
    l1_offset: HostOffset,
    l1_entries: u32,
    size: ByteCount,
    purpose: Purpose,
}

async fn snapshot_view<S: Storage>(file: &S, header: &Header, wanted: &str) -> Result<View, Error> {
    let table = read_snapshots(file, header).await?;
    let no_such =
        || Error::NoSuchSnapshot { path: file.name().to_owned(), wanted: wanted.to_owned() };
    let snapshot = table.find(wanted.as_bytes()).ok_or_else(no_such)?;
    let index = table.snapshots.iter().position(|other| std::ptr::eq(other, snapshot));
    let index = u32::try_from(index.unwrap_or(0)).expect("at most 65536 snapshots");
    let l1_offset = snapshot
        .l1_table(index, header.geometry)
        .map_err(|corruption| corrupt(file, corruption))?;
    let size = snapshot.disk_size.unwrap_or(header.size);
    let needed = header.geometry.l1_entries_for(size.get());
    if u64::from(snapshot.l1_entries) < needed {
        let entries = snapshot.l1_entries;
        return Err(corrupt(file, Corruption::L1TooSmall { entries, needed }));
    }
    if snapshot.l1_offset == 0 && snapshot.l1_entries != 0 {
        let fault = Corruption::TableOffset { table: Table::SnapshotL1, offset: 0 };
        return Err(corrupt(file, fault));
    }
    Ok(View {
        l1_offset,
        l1_entries: snapshot.l1_entries,
        size: ByteCount::new(size.get() & !511),
        purpose: Purpose::Snapshot,
    })
}

fn corrupt<S: Storage>(file: &S, corruption: Corruption) -> Error {
    Error::Corrupt { path: file.name().to_owned(), corruption }
}

#[cfg(test)]
mod tests {
    use super::used_words;

    #[test]
    fn used_words_are_found_wherever_they_are() {
        for count in [0, 1, 63, 64, 65, 200] {
            for used in 0..count {
                let mut bytes = vec![0; count * 8];
                bytes[used * 8 + 7] = 5;
                assert_eq!(used_words(&bytes).collect::<Vec<_>>(), [(used, 5)]);
                bytes[used * 8] = 1;
                assert_eq!(used_words(&bytes).collect::<Vec<_>>(), [(used, (1 << 56) + 5)]);
            }
            let all = vec![1; count * 8];
            let indices: Vec<usize> = used_words(&all).map(|(index, _)| index).collect();
            assert_eq!(indices, (0..count).collect::<Vec<_>>());
        }
    }
}
