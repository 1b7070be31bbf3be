//! Where a copy goes: a raw file or a qcow2 image under construction.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cowl::{ByteCount, Format, GuestOffset, HostOffset, OpenOptions, StorageOpener};
use cowl_format::CompressionType;
use cowl_qcow2::{
    Builder, BuilderFiles, CompressedCluster, Compressor, CreateOptions, Preallocation,
};
use cowl_storage::{
    Allocation, Durability, FileOptions, IoBuffer, LockMode, Purpose, Replacement, Storage,
    Writeback, ZeroMode,
};
use pollster::block_on;

use crate::convert::options::{
    ConvertError, ConvertOptions, ExistingTarget, TargetImage, ZeroDetection,
};
use crate::host::{Disk, HostFile, HostFiles};
use crate::zero::is_zero;

/// Bytes of a raw file that are written or left out together, unless the caller says otherwise.
const RAW_BLOCK: u64 = 4096;

/// Bytes read from the sources, for the sink to store.
pub(super) struct Chunk {
    /// First byte.
    pub(super) at: u64,
    /// The bytes.
    pub(super) buffer: IoBuffer,
    /// Ranges that the target's backing file provides.
    pub(super) left_out: Vec<Range<u64>>,
}

/// The target.
pub(super) struct Sink {
    image: Image,
    output: Output,
    /// The external data file, which gets its name together with the image.
    data: Option<Replacement>,
    size: u64,
}

enum Image {
    Raw { file: Arc<HostFile>, knows_zero: bool, block: u64 },
    Qcow2 { builder: Box<Builder<HostFile>>, options: Box<CreateOptions>, has_backing: bool },
}

/// The file that the image is in.
enum Output {
    /// A new file that takes the target's name in the end.
    New(Replacement),
    /// The target itself.
    Existing { path: PathBuf, file: Arc<HostFile> },
}

impl Output {
    fn file(&self) -> Arc<HostFile> {
        match self {
            Self::New(replacement) => HostFile::of(replacement),
            Self::Existing { file, .. } => Arc::clone(file),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::New(replacement) => replacement.temporary_path(),
            Self::Existing { path, .. } => path,
        }
    }
}

impl Sink {
    pub(super) fn create(
        target: &Path,
        options: &ConvertOptions,
        size: u64,
    ) -> Result<Self, ConvertError> {
        if let TargetImage::Qcow2 { create, .. } = &options.target {
            crate::create::check_data_file(target, create)?;
        }
        let output = open_output(target, options)?;
        let mut data = None;
        let image = match &options.target {
            TargetImage::Raw { preallocation } => {
                let file = output.file();
                let knows_zero = prepare_raw(&file, options, *preallocation, size)?;
                let block = match options.zeros {
                    ZeroDetection::Off => u64::MAX,
                    ZeroDetection::Runs(length) => length.get().max(RAW_BLOCK),
                };
                Image::Raw { file, knows_zero, block }
            }
            TargetImage::Qcow2 { create, preallocation } => {
                data = crate::create::data_file(create, options.caching, writeback(options))?;
                let data = data.as_ref().map(HostFile::of);
                Self::start_qcow2(&output, data, create, *preallocation)?
            }
        };
        Ok(Self { image, output, data, size })
    }

    fn start_qcow2(
        output: &Output,
        data: Option<Arc<HostFile>>,
        create: &CreateOptions,
        preallocation: Preallocation,
    ) -> Result<Image, ConvertError> {
        if let Some(data) = &data {
            let size = ByteCount::new(create.rounded_size());
            block_on(data.set_len(size, Purpose::FileLength))?;
        }
        let files = BuilderFiles { image: output.file(), data };
        let builder = Builder::new(files, create)?;
        let everything = preallocation != Preallocation::Off || create.data_file_raw;
        if everything && create.backing.is_some() && !create.extended_l2 {
            return Err(cowl_qcow2::CreateError::BackingWithPreallocation.into());
        }
        if everything {
            let preallocation = match preallocation {
                Preallocation::Off => Preallocation::Metadata,
                other => other,
            };
            block_on(builder.preallocate(preallocation))?;
        }
        Ok(Image::Qcow2 {
            builder: Box::new(builder),
            options: Box::new(create.clone()),
            has_backing: create.backing.is_some(),
        })
    }

    /// What units of work have to be aligned to, in bytes.
    pub(super) fn alignment(&self) -> u64 {
        match &self.image {
            Image::Raw { .. } => RAW_BLOCK,
            Image::Qcow2 { builder, .. } => builder.geometry().cluster_size(),
        }
    }

    /// How clusters are compressed, in an image that can have compressed ones.
    pub(super) fn compression_type(&self) -> Option<CompressionType> {
        match &self.image {
            Image::Raw { .. } => None,
            Image::Qcow2 { options, .. } => Some(options.compression_type),
        }
    }

    /// Makes a range read as zeros, however long it is. Aligned except at the end.
    pub(super) fn zero(&self, range: Range<u64>) -> Result<(), ConvertError> {
        let length = ByteCount::new(range.end - range.start);
        match &self.image {
            Image::Raw { knows_zero: true, .. } => Ok(()),
            Image::Raw { file, .. } => {
                let at = HostOffset::new(range.start);
                let zero = file.zero(at, length, ZeroMode::MayUnmap, Purpose::GuestData);
                Ok(block_on(zero)?)
            }
            Image::Qcow2 { has_backing: false, .. } => Ok(()),
            Image::Qcow2 { builder, .. } if builder.has_zero_clusters() => {
                builder.mark_zero(GuestOffset::new(range.start), length);
                Ok(())
            }
            Image::Qcow2 { builder, .. } => write_zeros(builder, range),
        }
    }

    /// Lets the host copy a range from file to file; whether it did.
    pub(super) fn copy_from(
        &self,
        disk: &Disk,
        at: u64,
        range: Range<u64>,
    ) -> Result<bool, ConvertError> {
        let (Image::Raw { file, .. }, Some(raw)) = (&self.image, disk.raw()) else {
            return Ok(false);
        };
        let (Some(file), Some(source)) = (file.as_file(), raw.storage().as_file()) else {
            return Ok(false);
        };
        let length = ByteCount::new(range.end - range.start);
        let (from, to) = (HostOffset::new(at), HostOffset::new(range.start));
        Ok(file.copy_range(source, from, to, length, Purpose::GuestData)?)
    }

    /// Stores a chunk without its zeros.
    pub(super) fn store(
        &self,
        chunk: Chunk,
        options: &ConvertOptions,
        compressor: Option<&mut Compressor>,
    ) -> Result<(), ConvertError> {
        match (&self.image, compressor) {
            (Image::Raw { file, knows_zero, block }, _) => {
                store_raw(file, chunk, *knows_zero, *block)
            }
            (Image::Qcow2 { builder, has_backing, .. }, compressor) => {
                let chunk = whole_clusters(chunk, builder);
                let writer = ClusterWriter {
                    builder,
                    has_backing: *has_backing,
                    skip_zeros: options.zeros != ZeroDetection::Off,
                };
                match compressor {
                    Some(compressor) => writer.store_compressed(chunk, compressor),
                    None => writer.store(chunk),
                }
            }
        }
    }

    /// Writes what is left: the tables of a qcow2 image, the length of a raw one.
    pub(super) fn finish(self) -> Result<Written, ConvertError> {
        let format = match self.image {
            Image::Raw { file, .. } => {
                if let Output::New(_) = self.output {
                    block_on(file.set_len(ByteCount::new(self.size), Purpose::FileLength))?;
                }
                Format::Raw
            }
            Image::Qcow2 { builder, .. } => {
                // A new file becomes durable as a whole, before it gets its name.
                let durable = matches!(self.output, Output::Existing { .. });
                block_on(builder.finish(durable))?;
                Format::Qcow2
            }
        };
        Ok(Written { output: self.output, data: self.data, format })
    }
}

/// A complete target that does not have its name yet.
pub(super) struct Written {
    output: Output,
    data: Option<Replacement>,
    format: Format,
}

impl Written {
    /// Opens what was written, for reading it back.
    pub(super) fn open(&self, backing: cowl::Backing) -> Result<Disk, cowl::Error> {
        let options = OpenOptions {
            format: Some(self.format),
            sharing: cowl::Sharing::Anyone,
            backing,
            data_file: self.data.as_ref().map(|data| data.temporary_path().to_owned()),
            ..OpenOptions::local()
        };
        block_on(Disk::open_with(&HostFiles, self.output.path(), &options))
    }

    /// Makes it durable and gives it its name.
    pub(super) fn commit(self, options: &ConvertOptions) -> Result<(), ConvertError> {
        if let Some(data) = self.data {
            block_on(data.commit(options.durability))?;
        }
        match self.output {
            Output::New(replacement) => block_on(replacement.commit(options.durability))?,
            Output::Existing { file, .. } => {
                if options.durability == Durability::Durable {
                    block_on(file.barrier(Purpose::Barrier))?;
                }
            }
        }
        Ok(())
    }
}

/// Who waits for the disk in the end lets it begin early.
fn writeback(options: &ConvertOptions) -> Writeback {
    match options.durability {
        Durability::Durable => Writeback::Early,
        Durability::Unsafe => Writeback::ByHost,
    }
}

fn open_output(target: &Path, options: &ConvertOptions) -> Result<Output, ConvertError> {
    let is_remote = cowl::remote_uri(target).is_some();
    if is_remote && options.existing == ExistingTarget::Replace {
        return Err(ConvertError::RemoteTarget);
    }
    let is_device = std::fs::metadata(target).is_ok_and(|metadata| !metadata.is_file());
    if options.existing == ExistingTarget::Replace && !is_device {
        return Ok(Output::New(Replacement::create(target, options.caching, writeback(options))?));
    }
    let file_options = FileOptions {
        caching: options.caching,
        writeback: writeback(options),
        lock: LockMode::ReadWrite,
        ..FileOptions::read_write()
    };
    let file = Arc::new(HostFiles.open(target, file_options)?);
    Ok(Output::Existing { path: target.to_owned(), file })
}

/// Brings a raw target to its size. Returns whether all of it is known to read as zeros.
fn prepare_raw(
    file: &HostFile,
    options: &ConvertOptions,
    preallocation: Preallocation,
    size: u64,
) -> Result<bool, ConvertError> {
    let is_new = block_on(file.len())?.get() == 0;
    if !is_new {
        let target = block_on(file.len())?;
        if target.get() < size {
            return Err(ConvertError::TargetTooSmall { target, size: ByteCount::new(size) });
        }
        return Ok(options.existing == ExistingTarget::OverwriteZeroed);
    }
    let length = ByteCount::new(size);
    block_on(file.set_len(length, Purpose::FileLength))?;
    let how = match preallocation {
        Preallocation::Off | Preallocation::Metadata => return Ok(true),
        Preallocation::Falloc => Allocation::Reserve,
        Preallocation::Full => Allocation::WriteZeros,
    };
    block_on(file.allocate(HostOffset::ZERO, length, how, Purpose::Preallocation))?;
    Ok(true)
}

fn write_zeros(builder: &Builder<HostFile>, range: Range<u64>) -> Result<(), ConvertError> {
    let step = (1 << 20).max(builder.geometry().cluster_size());
    let mut at = range.start;
    while at < range.end {
        let length = step.min(range.end - at);
        let zeros = IoBuffer::zeroed(ByteCount::new(length).as_usize());
        block_on(builder.write(GuestOffset::new(at), zeros))?;
        at += length;
    }
    Ok(())
}

/// Writes the blocks of a chunk that are not zero; zeros only where the file may hold something
/// else.
fn store_raw(
    file: &HostFile,
    chunk: Chunk,
    knows_zero: bool,
    block: u64,
) -> Result<(), ConvertError> {
    let block = usize::try_from(block).unwrap_or(usize::MAX);
    let runs = runs(&chunk.buffer, block, |bytes, _| is_zero(bytes) && block != usize::MAX);
    let at = |start: usize| HostOffset::new(chunk.at + start as u64);
    if let [(_, false)] = runs[..] {
        let (result, _) = block_on(file.write(at(0), chunk.buffer, Purpose::GuestData));
        return Ok(result?);
    }
    for (range, is_zero) in runs {
        let length = ByteCount::from_usize(range.len());
        match (is_zero, knows_zero) {
            (true, true) => {}
            (true, false) => {
                let zero =
                    file.zero(at(range.start), length, ZeroMode::MayUnmap, Purpose::GuestData);
                block_on(zero)?;
            }
            (false, _) => write_part(file, at(range.start), &chunk.buffer[range])?,
        }
    }
    Ok(())
}

/// Writes without a copy where the driver takes borrowed bytes.
fn write_part(file: &HostFile, at: HostOffset, bytes: &[u8]) -> Result<(), ConvertError> {
    if let Some(result) = file.try_write(at, bytes, Purpose::GuestData) {
        return Ok(result?);
    }
    let buffer = IoBuffer::from_slice(bytes);
    Ok(block_on(file.write(at, buffer, Purpose::GuestData)).0?)
}

/// Splits `bytes` into blocks and joins neighbours that `skip` judges alike.
fn runs(
    bytes: &[u8],
    block: usize,
    skip: impl Fn(&[u8], usize) -> bool,
) -> Vec<(Range<usize>, bool)> {
    let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
    let block = block.min(bytes.len().max(1));
    for (index, part) in bytes.chunks(block).enumerate() {
        let start = index * block;
        let skipped = skip(part, start);
        match runs.last_mut() {
            Some((range, last)) if *last == skipped => range.end = start + part.len(),
            _ => runs.push((start..start + part.len(), skipped)),
        }
    }
    runs
}

/// The chunk with its last cluster filled up by zeros, when the sources end within it and the disk
/// goes on behind them.
fn whole_clusters(chunk: Chunk, builder: &Builder<HostFile>) -> Chunk {
    let end = chunk.at + chunk.buffer.len() as u64;
    let cluster_end = end.next_multiple_of(builder.geometry().cluster_size());
    let missing = cluster_end.min(builder.size().get()).saturating_sub(end);
    if missing == 0 {
        return chunk;
    }
    let length = chunk.buffer.len() + ByteCount::new(missing).as_usize();
    let mut buffer = IoBuffer::zeroed(length);
    buffer[..chunk.buffer.len()].copy_from_slice(&chunk.buffer);
    Chunk { buffer, ..chunk }
}

/// Stores clusters in a qcow2 image.
struct ClusterWriter<'a> {
    builder: &'a Builder<HostFile>,
    has_backing: bool,
    skip_zeros: bool,
}

/// What becomes of a cluster.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Store,
    Zero,
    LeaveOut,
}

impl ClusterWriter<'_> {
    fn fate(&self, chunk: &Chunk, bytes: &[u8], start: usize) -> Fate {
        let (from, to) = (chunk.at + start as u64, chunk.at + (start + bytes.len()) as u64);
        if chunk.left_out.iter().any(|range| range.start <= from && to <= range.end) {
            return Fate::LeaveOut;
        }
        let may_skip = self.skip_zeros && (!self.has_backing || self.builder.has_zero_clusters());
        match may_skip && is_zero(bytes) {
            true => Fate::Zero,
            false => Fate::Store,
        }
    }

    fn fates(&self, chunk: &Chunk) -> Vec<(Range<usize>, Fate)> {
        let cluster = self.builder.geometry().cluster_len();
        let mut fates: Vec<(Range<usize>, Fate)> = Vec::new();
        for (index, bytes) in chunk.buffer.chunks(cluster).enumerate() {
            let start = index * cluster;
            let range = start..start + bytes.len();
            fates.push((range, self.fate(chunk, bytes, start)));
        }
        fates
    }

    fn store(&self, chunk: Chunk) -> Result<(), ConvertError> {
        let fates = self.fates(&chunk);
        let at = |start: usize| GuestOffset::new(chunk.at + start as u64);
        // Nearly always: all of it, without copying.
        if fates.iter().all(|(_, fate)| *fate == Fate::Store) {
            return Ok(block_on(self.builder.write(at(0), chunk.buffer))?);
        }
        for run in fates.chunk_by(|(_, fate), (_, next)| fate == next) {
            let (first, last) = (&run[0], &run[run.len() - 1]);
            let range = first.0.start..last.0.end;
            match first.1 {
                Fate::Store => {
                    let buffer = IoBuffer::from_slice(&chunk.buffer[range.clone()]);
                    block_on(self.builder.write(at(range.start), buffer))?;
                }
                Fate::Zero => self.mark_zero(at(range.start), range.len()),
                Fate::LeaveOut => {}
            }
        }
        Ok(())
    }

    fn mark_zero(&self, at: GuestOffset, length: usize) {
        if self.has_backing {
            self.builder.mark_zero(at, ByteCount::from_usize(length));
        }
    }

    fn store_compressed(
        &self,
        chunk: Chunk,
        compressor: &mut Compressor,
    ) -> Result<(), ConvertError> {
        let cluster = self.builder.geometry().cluster_len();
        let mut streams: Vec<(GuestOffset, Vec<u8>)> = Vec::new();
        for (range, fate) in self.fates(&chunk) {
            let at = GuestOffset::new(chunk.at + range.start as u64);
            let bytes = &chunk.buffer[range.clone()];
            match fate {
                Fate::LeaveOut => {}
                Fate::Zero => self.mark_zero(at, range.len()),
                Fate::Store => {
                    // The last cluster of the disk is whole in its stream.
                    let whole = match bytes.len() == cluster {
                        true => compressor.compress(bytes).map_err(ConvertError::Compressor)?,
                        false => {
                            let mut padded = bytes.to_vec();
                            padded.resize(cluster, 0);
                            compressor.compress(&padded).map_err(ConvertError::Compressor)?
                        }
                    };
                    match whole {
                        Some(stream) => streams.push((at, stream)),
                        None => {
                            let buffer = IoBuffer::from_slice(bytes);
                            block_on(self.builder.write(at, buffer))?;
                        }
                    }
                }
            }
        }
        let clusters: Vec<_> = streams
            .iter()
            .map(|(guest, stream)| CompressedCluster { guest: *guest, stream })
            .collect();
        Ok(block_on(self.builder.write_compressed(&clusters))?)
    }
}
