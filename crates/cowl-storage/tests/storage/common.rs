//! What the storage tests share: short ways to call a driver, and a model to hold it against.

use std::future::Future;
use std::io::Write;
use std::path::PathBuf;

use cowl_format::{ByteCount, HostOffset};
use cowl_storage::{
    Access, Allocation, Caching, Existence, FileKinds, FileOptions, FileStorage, IoBuffer,
    LockMode, Purpose, Storage, StorageError, Writeback, ZeroMode,
};

pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    pollster::block_on(future)
}

pub(crate) fn at(offset: u64) -> HostOffset {
    HostOffset::new(offset)
}

pub(crate) fn bytes(count: u64) -> ByteCount {
    ByteCount::new(count)
}

/// Says that something was not tested. Past the capture of the test runner, or nobody would see it.
pub(crate) fn skip(reason: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "SKIP: {reason}").unwrap();
}

/// A fresh file in a directory that vanishes with it.
pub(crate) struct Scratch {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) path: PathBuf,
}

pub(crate) fn scratch() -> Scratch {
    // Beside the build output and not in /tmp, which is often a tmpfs and knows no O_DIRECT.
    scratch_in(env!("CARGO_TARGET_TMPDIR"))
}

pub(crate) fn scratch_in(parent: &str) -> Scratch {
    let directory = tempfile::tempdir_in(parent).unwrap();
    let path = directory.path().join("image");
    Scratch { directory, path }
}

pub(crate) const NEW: FileOptions = FileOptions {
    access: Access::ReadWrite,
    existence: Existence::CreateOrEmpty,
    caching: Caching::PageCache,
    kinds: FileKinds::Any,
    lock: LockMode::None,
    writeback: Writeback::Early,
};

pub(crate) const NEW_DIRECT: FileOptions = FileOptions { caching: Caching::Direct, ..NEW };

/// A device that is there.
pub(crate) const DEVICE: FileOptions = FileOptions { existence: Existence::MustExist, ..NEW };

/// A file with `content`, open with `options`.
pub(crate) fn file_with(content: &[u8], options: FileOptions) -> (FileStorage, Scratch) {
    let scratch = scratch();
    std::fs::write(&scratch.path, content).unwrap();
    let options = FileOptions { existence: Existence::MustExist, ..options };
    (FileStorage::open(&scratch.path, options).unwrap(), scratch)
}

/// Reads through the owned-buffer path.
pub(crate) async fn read<S: Storage>(
    storage: &S,
    offset: u64,
    length: usize,
) -> Result<(Vec<u8>, u64), StorageError> {
    // Filled with rubbish, so that a driver that forgets to write zeros is noticed.
    let mut buffer = IoBuffer::zeroed(length);
    buffer.fill(0xee);
    let (result, buffer) = storage.read(at(offset), buffer, Purpose::GuestData).await;
    Ok((buffer.to_vec(), result?.get()))
}

pub(crate) async fn write<S: Storage>(
    storage: &S,
    offset: u64,
    content: &[u8],
) -> Result<(), StorageError> {
    let buffer = IoBuffer::from_slice(content);
    storage.write(at(offset), buffer, Purpose::GuestData).await.0
}

/// Everything in the file.
pub(crate) async fn content<S: Storage>(storage: &S) -> Vec<u8> {
    let length = storage.len().await.unwrap().as_usize();
    let (content, count) = read(storage, 0, length).await.unwrap();
    assert_eq!(count, length as u64);
    content
}

/// One operation of the model test.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Read { at: u64, length: usize },
    TryRead { at: u64, length: usize },
    ReadVectored { at: u64, lengths: Vec<usize> },
    Write { at: u64, length: usize, fill: u8 },
    TryWrite { at: u64, length: usize, fill: u8 },
    WriteVectored { at: u64, lengths: Vec<usize>, fill: u8 },
    Zero { at: u64, length: u64, mode: ZeroMode },
    Discard { at: u64, length: u64 },
    Reserve { at: u64, length: u64 },
    WriteZeros { at: u64, length: u64 },
    SetLength { length: u64 },
    Extents,
    Barrier,
}

/// Runs `steps` on `storage` and on a plain vector, and compares after each.
pub(crate) async fn check_against_model<S: Storage>(storage: &S, steps: &[Step]) {
    let mut model = content(storage).await;
    for step in steps {
        run_step(storage, &mut model, step).await;
        assert_eq!(storage.len().await.unwrap().as_usize(), model.len(), "length after {step:?}");
    }
    let found = content(storage).await;
    if let Some(index) = (0..model.len()).find(|&index| model[index] != found[index]) {
        panic!("byte {index:#x} is {:#x}, want {:#x}", found[index], model[index]);
    }
}

async fn run_step<S: Storage>(storage: &S, model: &mut Vec<u8>, step: &Step) {
    let purpose = Purpose::GuestData;
    match step {
        Step::Read { at, length } => {
            let (found, count) = read(storage, *at, *length).await.unwrap();
            assert_eq!((found, count), expected(model, *at, *length), "{step:?}");
        }
        Step::TryRead { at, length } => {
            let mut found = vec![0xee; *length];
            if let Some(count) = storage.try_read(self::at(*at), &mut found, purpose) {
                let count = count.unwrap().get();
                assert_eq!((found, count), expected(model, *at, *length), "{step:?}");
            }
        }
        Step::ReadVectored { at, lengths } => {
            let buffers = lengths.iter().map(|length| IoBuffer::from_slice(&vec![0xee; *length]));
            let (result, buffers) =
                storage.read_vectored(self::at(*at), buffers.collect(), purpose).await;
            let found: Vec<u8> = buffers.iter().flat_map(|buffer| buffer.to_vec()).collect();
            let want = expected(model, *at, lengths.iter().sum());
            assert_eq!((found, result.unwrap().get()), want, "{step:?}");
        }
        Step::Write { at, length, fill } => {
            let content = pattern(*length, *fill);
            write(storage, *at, &content).await.unwrap();
            put(model, *at, &content);
        }
        Step::TryWrite { at, length, fill } => {
            let content = pattern(*length, *fill);
            if let Some(result) = storage.try_write(self::at(*at), &content, purpose) {
                result.unwrap();
                put(model, *at, &content);
            }
        }
        Step::WriteVectored { at, lengths, fill } => {
            let content = pattern(lengths.iter().sum(), *fill);
            let mut rest = &content[..];
            let mut buffers = Vec::new();
            for length in lengths {
                buffers.push(IoBuffer::from_slice(&rest[..*length]));
                rest = &rest[*length..];
            }
            storage.write_vectored(self::at(*at), buffers, purpose).await.0.unwrap();
            put(model, *at, &content);
        }
        Step::Zero { at, length, mode } => {
            storage.zero(self::at(*at), bytes(*length), *mode, purpose).await.unwrap();
            put(model, *at, &vec![0; usize::try_from(*length).unwrap()]);
        }
        Step::Discard { at, length } => {
            storage.discard(self::at(*at), bytes(*length), purpose).await.unwrap();
            if storage.capabilities().can_discard {
                let end = (*at + *length).min(model.len() as u64);
                let range = usize::try_from(*at).unwrap()..usize::try_from(end).unwrap();
                if let Some(range) = model.get_mut(range) {
                    range.fill(0);
                }
            }
        }
        Step::Reserve { at, length } => {
            let how = Allocation::Reserve;
            storage.allocate(self::at(*at), bytes(*length), how, purpose).await.unwrap();
            let end = usize::try_from(*at + *length).unwrap();
            if *length != 0 && model.len() < end {
                model.resize(end, 0);
            }
        }
        Step::WriteZeros { at, length } => {
            let how = Allocation::WriteZeros;
            storage.allocate(self::at(*at), bytes(*length), how, purpose).await.unwrap();
            put(model, *at, &vec![0; usize::try_from(*length).unwrap()]);
        }
        Step::SetLength { length } => {
            storage.set_len(bytes(*length), Purpose::FileLength).await.unwrap();
            model.resize(usize::try_from(*length).unwrap(), 0);
        }
        Step::Extents => check_extents(storage, model).await,
        Step::Barrier => storage.barrier(Purpose::Barrier).await.unwrap(),
    }
}

/// Extents cover the file without gaps, and holes read as zeros.
async fn check_extents<S: Storage>(storage: &S, model: &[u8]) {
    let mut start = 0;
    while start < model.len() {
        let run = storage.extent(at(start as u64), bytes(u64::MAX)).await.unwrap().unwrap();
        assert!(0 < run.length.get());
        let end = start + run.length.as_usize();
        assert!(end <= model.len());
        if run.hole {
            assert!(model[start..end].iter().all(|byte| *byte == 0), "hole at {start:#x}");
        }
        start = end;
    }
    assert_eq!(storage.extent(at(start as u64), bytes(1)).await.unwrap(), None);
}

fn expected(model: &[u8], at: u64, length: usize) -> (Vec<u8>, u64) {
    let start = usize::try_from(at).unwrap().min(model.len());
    let end = (start + length).min(model.len());
    let mut want = model[start..end].to_vec();
    want.resize(length, 0);
    (want, (end - start) as u64)
}

fn put(model: &mut Vec<u8>, at: u64, content: &[u8]) {
    if content.is_empty() {
        return;
    }
    let start = usize::try_from(at).unwrap();
    let end = start + content.len();
    if model.len() < end {
        model.resize(end, 0);
    }
    model[start..end].copy_from_slice(content);
}

fn pattern(length: usize, fill: u8) -> Vec<u8> {
    // Never zero, different at each place.
    (0..length).map(|index| fill.wrapping_add(u8::try_from(index % 199).unwrap()) | 1).collect()
}
