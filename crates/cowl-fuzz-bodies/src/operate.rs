//! Operations on images, held against a model: an array of bytes.
//!
//! `operations`: a shape of 8 bytes, then records of 8 bytes:
//!
//!   { what: u8, align: u8, at: u16, length: u16, value: u16 }
//!
//! `rewrite`: the input of `mutate` with its edits counted, then the same records. Where the edited
//! image has no corruption and reads as a whole, it is as good as any: the model holds. Where not,
//! anything may fail, and nothing may panic.

use std::sync::Arc;

use cowl_block::{RawImage, RawOptions, ZeroRequest};
use cowl_format::{ByteCount, CompressionType, GuestOffset, Header, Version};
use cowl_qcow2::{
    BeyondEnd, Builder, BuilderFiles, CreateOptions, Error, Image, Layer, LayerFiles, LayerOptions,
    Preallocation, read_header,
};
use cowl_storage::{Access, IoBuffer, MemoryStorage, Storage};
use pollster::block_on;

use crate::image::TINY;
use crate::mutate::edited;

/// Operations of one input: more only dilute.
const RECORDS_MAX: usize = 48;

/// Longest request.
const LENGTH_MAX: u64 = 24 << 10;

/// Largest disk that is held against a model.
const SIZE_MAX: u64 = 512 << 10;

/// The name that an external data file has in the header.
const DATA_NAME: &[u8] = b"data";

/// The files of an image, which outlive the image.
struct Disk {
    image: Arc<MemoryStorage>,
    data: Option<Arc<MemoryStorage>>,
    base: Option<Vec<u8>>,
}

impl Disk {
    fn open(&self, access: Access) -> Result<Image<MemoryStorage>, Error> {
        let header = block_on(read_header(self.image.as_ref()))?;
        let files = LayerFiles { image: self.image.clone(), data: self.data.clone() };
        let (cache, beyond_end) = (TINY, BeyondEnd::ReadZeros);
        let options = LayerOptions { access, cache, beyond_end, snapshot: None, offload: None };
        let layer = block_on(Layer::open(files, header, options))?;
        let base = self.base.as_ref().map(|bytes| {
            let file = MemoryStorage::from_vec(bytes.clone());
            block_on(RawImage::open(file, RawOptions::whole_file())).expect("memory does not fail")
        });
        Ok(Image::new(vec![layer], base))
    }
}

/// Corruptions and leaks; `None` where the image cannot be checked at all.
fn check(image: &MemoryStorage) -> Option<(u64, u64)> {
    let header = block_on(read_header(image)).ok()?;
    let report = block_on(cowl_qcow2::check(image, &header, None, &())).ok()?;
    Some((report.corruptions + report.check_errors, report.leaks))
}

/// Makes an image as `data` says and works on it.
pub fn operations(data: &[u8]) {
    let Some((shape, records)) = data.split_at_checked(8) else { return };
    let shape: &[u8; 8] = shape.try_into().expect("8 bytes");
    let Some(disk) = make(shape) else { return };
    let model = read_all(&disk.open(Access::ReadOnly).expect("a new image opens"));
    Run::new(disk, model).run(records);
}

/// Edits a seed, and works on what comes out.
pub fn rewrite(data: &[u8]) {
    let Some((&seed, rest)) = data.split_first() else { return };
    let Some((&count, rest)) = rest.split_first() else { return };
    let Some((edits, records)) = rest.split_at_checked(usize::from(count % 8) * 12) else { return };
    let bytes = edited(seed, edits);
    let half = bytes[bytes.len() / 2..].to_vec();
    let disk = Disk {
        data: Header::decode(&bytes)
            .is_ok_and(|header| header.has_data_file())
            .then(|| Arc::new(MemoryStorage::from_vec(half))),
        image: Arc::new(MemoryStorage::from_vec(bytes)),
        base: None,
    };
    let Ok(image) = disk.open(Access::ReadOnly) else { return };
    let is_sound = check(&disk.image).is_some_and(|(corruptions, _)| corruptions == 0);
    let model = if is_sound { read_all(&image) } else { None };
    drop(image);
    Run::new(disk, model).run(records);
}

/// What a disk reads as; `None` where it is too large, or cannot be read.
fn read_all(image: &Image<MemoryStorage>) -> Option<Vec<u8>> {
    let size = image.size();
    if SIZE_MAX < size.get() {
        return None;
    }
    let (result, bytes) =
        block_on(image.read(GuestOffset::ZERO, IoBuffer::zeroed(size.as_usize())));
    result.ok().map(|()| bytes.to_vec())
}

fn make(shape: &[u8; 8]) -> Option<Disk> {
    let [version, cluster, refcounts, flags, size_high, size_low, backing, more] = *shape;
    let is_v3 = version % 4 != 0;
    let flag = |bit: u32| is_v3 && flags >> bit & 1 == 1;
    let extended_l2 = flag(0) && flag(1);
    let cluster_bits =
        if extended_l2 { 14 + u32::from(cluster % 3) } else { 9 + u32::from(cluster % 8) };
    let size = (u64::from(size_high) << 8 | u64::from(size_low)) * 4 / 512 * 512 + 512;
    let has_base = flags >> 6 & 1 == 1;
    let external = flag(4) && flag(5);
    let options = CreateOptions {
        version: if is_v3 { Version::V3 } else { Version::V2 },
        cluster_size: 1 << cluster_bits,
        refcount_bits: if is_v3 { 1 << (refcounts % 7) } else { 16 },
        extended_l2,
        compression_type: if flag(2) { CompressionType::Zstd } else { CompressionType::Zlib },
        lazy_refcounts: flag(3),
        backing: has_base.then(|| b"base".to_vec()),
        backing_format: has_base.then(|| b"raw".to_vec()),
        data_file: external.then(|| DATA_NAME.to_vec()),
        data_file_raw: external && !has_base && more & 1 == 1,
        ..CreateOptions::new(ByteCount::new(size))
    };
    let files = BuilderFiles {
        image: Arc::new(MemoryStorage::new()),
        data: external.then(|| Arc::new(MemoryStorage::new())),
    };
    let disk = Disk {
        image: files.image.clone(),
        data: files.data.clone(),
        base: has_base.then(|| {
            let length = size * (1 + u64::from(backing % 6)) / 3;
            (0..length).map(|at| (at / 512 % 251).to_le_bytes()[0]).collect()
        }),
    };
    let preallocation = match more >> 1 & 7 {
        _ if has_base && !extended_l2 => Preallocation::Off,
        0 => Preallocation::Metadata,
        1 => Preallocation::Falloc,
        2 => Preallocation::Full,
        _ => Preallocation::Off,
    };
    let made = block_on(async {
        if let Some(data) = &files.data {
            let length = ByteCount::new(options.rounded_size());
            data.set_len(length, cowl_storage::Purpose::FileLength).await?;
        }
        let builder = Builder::new(files, &options)?;
        builder.preallocate(preallocation).await?;
        builder.finish(true).await
    });
    // Some combinations are refused, with a reason.
    made.ok().map(|_| disk)
}

/// One input at work.
struct Run {
    disk: Disk,
    /// What the guest must read; `None` where the image may be broken.
    model: Option<Vec<u8>>,
    /// The file before the first operation.
    before: MemoryStorage,
    /// Whether a session ended without a close.
    was_killed: bool,
    /// Bytes of a cluster.
    cluster: u64,
}

/// A range of the disk.
#[derive(Clone, Copy)]
struct Range {
    at: u64,
    length: u64,
}

impl Range {
    fn start(self) -> GuestOffset {
        GuestOffset::new(self.at)
    }

    fn within(self) -> std::ops::Range<usize> {
        ByteCount::new(self.at).as_usize()..ByteCount::new(self.at + self.length).as_usize()
    }
}

impl Run {
    fn new(disk: Disk, model: Option<Vec<u8>>) -> Self {
        let header = block_on(read_header(disk.image.as_ref())).expect("it was opened before");
        let cluster = header.geometry.cluster_size();
        Self { before: disk.image.snapshot(), was_killed: false, disk, model, cluster }
    }

    fn run(mut self, records: &[u8]) {
        let Some(mut image) = self.open() else { return };
        for record in records.chunks_exact(8).take(RECORDS_MAX) {
            let record: &[u8; 8] = record.try_into().expect("8 bytes");
            image = match record[0] % 16 {
                14 => {
                    self.must(block_on(image.close()));
                    let Some(image) = self.open() else { return };
                    image
                }
                // What a killed process leaves after a flush.
                15 => {
                    self.must(block_on(image.flush()));
                    drop(image);
                    self.was_killed = true;
                    let Some(image) = self.open() else { return };
                    image
                }
                what => {
                    self.send(&image, what, record);
                    image
                }
            };
        }
        self.must(block_on(image.close()));
        self.judge();
    }

    /// Opens for writing; a broken image may refuse.
    fn open(&self) -> Option<Image<MemoryStorage>> {
        let opened = self.disk.open(Access::ReadWrite);
        match (opened, &self.model) {
            (Ok(image), _) => Some(image),
            (Err(error), Some(_)) if !is_refusal(&error) => panic!("does not open: {error}"),
            (Err(_), _) => None,
        }
    }

    /// An operation on a sound image succeeds.
    fn must(&self, result: Result<(), Error>) -> bool {
        if let (Err(error), Some(_)) = (&result, &self.model) {
            panic!("fails: {error}");
        }
        result.is_ok()
    }

    fn send(&mut self, image: &Image<MemoryStorage>, what: u8, record: &[u8; 8]) {
        let size = image.size().get();
        let Some(range) = range(size, self.cluster, what, record) else { return };
        let length = ByteCount::new(range.length);
        let bytes = pattern(record, length.as_usize());
        match what {
            0..=3 => {
                if self.must(block_on(image.write_from(range.start(), &bytes))) {
                    self.change(range, &bytes);
                }
            }
            4 | 5 => {
                // Not every image can hold compressed clusters.
                if block_on(image.write_compressed(range.start(), &bytes)).is_ok() {
                    self.change(range, &bytes);
                } else {
                    self.adopt(image, range, &bytes);
                }
            }
            6 | 7 => {
                let how =
                    if what == 6 { ZeroRequest::MayUnmap } else { ZeroRequest::KeepAllocated };
                if self.must(block_on(image.zero(range.start(), length, how))) {
                    self.change(range, &vec![0; bytes.len()]);
                }
            }
            8 | 9 => {
                self.must(block_on(image.discard(range.start(), length)));
                self.adopt(image, range, &vec![0; bytes.len()]);
            }
            10 => self.compare(image, range),
            11 | 12 => {
                self.must(block_on(image.flush()));
            }
            _ => self.resize(image, size, record),
        }
    }

    fn change(&mut self, range: Range, bytes: &[u8]) {
        if let Some(model) = &mut self.model {
            model[range.within()].copy_from_slice(bytes);
        }
    }

    /// Each byte of the range is as it was or as in `bytes`; the model takes what it finds.
    fn adopt(&mut self, image: &Image<MemoryStorage>, range: Range, bytes: &[u8]) {
        let Some(model) = &mut self.model else { return };
        let mut found = vec![0; bytes.len()];
        block_on(image.read_into(range.start(), &mut found)).expect("a sound image reads");
        let old = &mut model[range.within()];
        if found == bytes {
            return old.copy_from_slice(&found);
        }
        let mut all = found.iter().zip(old.iter()).zip(bytes);
        let foreign = all.position(|((found, old), new)| found != old && found != new);
        assert_eq!(foreign, None, "foreign bytes behind {:#x}", range.at);
        old.copy_from_slice(&found);
    }

    fn compare(&self, image: &Image<MemoryStorage>, range: Range) {
        let mut found = vec![0; ByteCount::new(range.length).as_usize()];
        let result = block_on(image.read_into(range.start(), &mut found));
        if self.must(result)
            && let Some(model) = &self.model
        {
            assert_same(&found, &model[range.within()], range.at);
        }
    }

    fn resize(&mut self, image: &Image<MemoryStorage>, size: u64, record: &[u8; 8]) {
        let by = u64::from(u16::from_be_bytes([record[4], record[5]])) * 8 / 512 * 512;
        let new = match record[1] % 2 {
            0 => (size + by).min(SIZE_MAX),
            _ => size.saturating_sub(by).max(512),
        };
        let preallocation = match record[7] % 8 {
            0 => Preallocation::Metadata,
            1 => Preallocation::Falloc,
            2 => Preallocation::Full,
            _ => Preallocation::Off,
        };
        // Snapshots, bitmaps and others are reasons to refuse; the size says what was done.
        if block_on(image.resize(ByteCount::new(new), preallocation)).is_ok() {
            assert_eq!(image.size().get(), new);
        }
        if let Some(model) = &mut self.model {
            model.resize(image.size().as_usize(), 0);
        }
    }

    /// Leaks before the first operation in a file as long as it is now: a check counts none behind
    /// the end.
    fn leaks_before(&self) -> u64 {
        let lengths = block_on(async { (self.before.len().await, self.disk.image.len().await) });
        let (Ok(before), Ok(now)) = lengths else { unreachable!("memory does not fail") };
        let set = self.before.set_len(before.max(now), cowl_storage::Purpose::FileLength);
        block_on(set).expect("memory does not fail");
        check(&self.before).map_or(0, |(_, leaks)| leaks)
    }

    /// After a clean close the image is whole, and reads as the model says.
    fn judge(&self) {
        let Some(model) = &self.model else { return };
        let (corruptions, leaks) = check(&self.disk.image).expect("it could be checked before");
        assert_eq!(corruptions, 0, "corrupt after a clean close");
        let before = self.leaks_before();
        assert!(
            self.was_killed || leaks <= before,
            "{leaks} leaks after a clean close, {before} before"
        );
        let image = self.disk.open(Access::ReadOnly).expect("it was open before");
        let found = read_all(&image).expect("it could be read before");
        assert_eq!(found.len(), model.len());
        assert_same(&found, model, 0);
    }
}

/// Says where two disks differ. Compared as a whole first: that is no work for the fuzzer's
/// counters.
fn assert_same(found: &[u8], wanted: &[u8], at: u64) {
    if found != wanted {
        let differs = found.iter().zip(wanted).position(|(one, two)| one != two);
        panic!("reads wrong {differs:?} bytes behind {at:#x}");
    }
}

/// Images that are sound and all the same not to be written to: marked as corrupt, encrypted, with
/// a table too short for the disk.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::NeedsRepair { .. } | Error::Encrypted { .. } | Error::Corrupt { .. })
}

/// The range of a record: whole clusters for compressed writes, any bytes else.
fn range(size: u64, cluster: u64, what: u8, record: &[u8; 8]) -> Option<Range> {
    let [_, align, at, at_low, length, length_low, ..] = *record;
    let unit = match align % 4 {
        _ if matches!(what, 4 | 5) => cluster,
        0 => 1,
        1 => 512,
        _ => cluster,
    };
    let share = u128::from(at) << 8 | u128::from(at_low);
    let place = u64::try_from((share * u128::from(size)) >> 16).expect("below the size");
    let at = place.min(size.checked_sub(1)?) / unit * unit;
    let length = u64::from(length) << 8 | u64::from(length_low);
    let length = (length * 3).next_multiple_of(unit).max(unit).min(LENGTH_MAX.max(unit));
    Some(Range { at, length: length.min(size - at) })
}

/// What a record writes: sometimes zeros, sometimes text, sometimes noise.
fn pattern(record: &[u8; 8], length: usize) -> Vec<u8> {
    let value = u16::from_be_bytes([record[6], record[7]]);
    match value % 4 {
        0 => vec![0; length],
        1 => vec![record[7]; length],
        2 => {
            let mut bytes = vec![record[6]; length];
            bytes.iter_mut().step_by(61).for_each(|byte| *byte = record[7]);
            bytes
        }
        _ => {
            let mut noise = u64::from(value) << 20 | 1;
            let mut bytes = Vec::with_capacity(length + 8);
            while bytes.len() < length {
                noise = noise.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                bytes.extend(noise.to_be_bytes());
            }
            bytes.truncate(length);
            bytes
        }
    }
}
