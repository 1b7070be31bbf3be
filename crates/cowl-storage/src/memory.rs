//! Storage in memory, with holes: for tests and for images that need no file.
//!
//! Kept as 4 KiB pages; a page that is not there reads as zeros and shows as a hole. Reads run in
//! parallel; changes exclude each other for as long as the copying takes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use cowl_format::{ByteCount, HostOffset};

use crate::{
    Allocation, Capabilities, FileIdentity, HostExtent, IoBuffer, IoResult, Operation, Purpose,
    Storage, StorageError, ZeroMode,
};

const PAGE: usize = 4096;

/// The page again, as [`Capabilities`] wants it.
const BLOCK_SIZE: u32 = 4096;

const _: () = assert!(BLOCK_SIZE as usize == PAGE);

/// Longest content: what a file can have.
const LENGTH_MAX: u64 = i64::MAX as u64;

/// EFBIG, where an offset lies outside any file.
const TOO_BIG: i32 = 27;

type Page = Box<[u8; PAGE]>;

/// Growable memory with holes.
pub struct MemoryStorage {
    name: PathBuf,
    content: RwLock<Content>,
}

#[derive(Clone, Default)]
struct Content {
    /// By page number. Bytes past the end of the content are zero.
    pages: BTreeMap<u64, Page>,
    length: u64,
}

impl MemoryStorage {
    /// Nothing, ready to grow.
    #[must_use]
    pub fn new() -> Self {
        Self::from_vec(Vec::new())
    }

    /// A copy of `bytes`. Pages of zeros become holes.
    #[must_use]
    pub fn from_vec(bytes: Vec<u8>) -> Self {
        let mut content = Content { pages: BTreeMap::new(), length: bytes.len() as u64 };
        for (number, chunk) in (0..).zip(bytes.chunks(PAGE)) {
            if chunk.iter().any(|byte| *byte != 0) {
                content.page(number)[..chunk.len()].copy_from_slice(chunk);
            }
        }
        Self { name: PathBuf::from("memory"), content: RwLock::new(content) }
    }

    /// The same content under a name, for messages.
    #[must_use]
    pub fn named(self, name: impl Into<PathBuf>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// A copy of the whole content.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let content = self.shared();
        let mut bytes = vec![0; ByteCount::new(content.length).as_usize()];
        content.read(0, &mut bytes);
        bytes
    }

    /// An independent storage with the content of this moment, holes included.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        Self { name: self.name.clone(), content: RwLock::new(self.shared().clone()) }
    }

    // A panic elsewhere leaves the content as the last whole page copy left it: good enough to go
    // on.
    fn shared(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn alone(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The end of a range, or an error where no file reaches.
    fn end(
        &self,
        operation: Operation,
        purpose: Purpose,
        at: HostOffset,
        length: ByteCount,
    ) -> Result<u64, StorageError> {
        match at.get().checked_add(length.get()) {
            Some(end) if end <= LENGTH_MAX => Ok(end),
            _ => {
                let errno = std::io::Error::from_raw_os_error(TOO_BIG);
                let range = Some((at, length));
                Err(StorageError::new(&self.name, operation, Some(purpose), range, errno))
            }
        }
    }

    fn read_now(
        &self,
        at: HostOffset,
        bytes: &mut [u8],
        purpose: Purpose,
    ) -> Result<ByteCount, StorageError> {
        let length = ByteCount::from_usize(bytes.len());
        self.end(Operation::Read, purpose, at, length)?;
        Ok(ByteCount::new(self.shared().read(at.get(), bytes)))
    }

    fn write_now(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let length = ByteCount::from_usize(bytes.len());
        self.end(Operation::Write, purpose, at, length)?;
        self.alone().write(at.get(), bytes);
        Ok(())
    }
}

impl Default for MemoryStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStorage({}, {} bytes)", self.name.display(), self.shared().length)
    }
}

impl Content {
    fn page(&mut self, number: u64) -> &mut Page {
        self.pages.entry(number).or_insert_with(|| Box::new([0; PAGE]))
    }

    /// Returns how many bytes lie before the end.
    fn read(&self, at: u64, bytes: &mut [u8]) -> u64 {
        for part in parts(at, bytes.len()) {
            let target = &mut bytes[part.done..part.done + part.length];
            match self.pages.get(&part.page) {
                Some(page) => target.copy_from_slice(&page[part.skip..part.skip + part.length]),
                None => target.fill(0),
            }
        }
        self.length.saturating_sub(at).min(bytes.len() as u64)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        for part in parts(at, bytes.len()) {
            let source = &bytes[part.done..part.done + part.length];
            self.page(part.page)[part.skip..part.skip + part.length].copy_from_slice(source);
        }
        if !bytes.is_empty() {
            self.length = self.length.max(at + bytes.len() as u64);
        }
    }

    /// Zeros `start..end`; whole pages vanish.
    fn punch(&mut self, start: u64, end: u64) {
        const UNIT: u64 = PAGE as u64;
        let first = start / UNIT;
        let touched: Vec<u64> =
            self.pages.range(first..end.div_ceil(UNIT).max(first)).map(|(n, _)| *n).collect();
        for number in touched {
            let page_start = number * UNIT;
            let from = start.saturating_sub(page_start);
            let to = (end - page_start).min(UNIT);
            if from == 0 && to == UNIT {
                self.pages.remove(&number);
            } else {
                let range = ByteCount::new(from).as_usize()..ByteCount::new(to).as_usize();
                self.page(number)[range].fill(0);
            }
        }
    }

    /// Gives every page of `start..end` memory.
    fn reserve(&mut self, start: u64, end: u64) {
        for number in start / PAGE as u64..end.div_ceil(PAGE as u64) {
            self.page(number);
        }
    }

    fn extend_to(&mut self, end: u64) {
        self.length = self.length.max(end);
    }

    fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.punch(length, self.length.next_multiple_of(PAGE as u64));
        }
        self.length = length;
    }

    fn extent(&self, at: u64, length_max: u64) -> Option<HostExtent> {
        const UNIT: u64 = PAGE as u64;
        if self.length <= at || length_max == 0 {
            return None;
        }
        let limit = at.saturating_add(length_max).min(self.length);
        let first = at / UNIT;
        let mut present = self.pages.range(first..).map(|(number, _)| *number);
        let (end, hole) = match present.next() {
            Some(number) if number == first => {
                let mut next = first + 1;
                while next * UNIT < limit && present.next() == Some(next) {
                    next += 1;
                }
                (next * UNIT, false)
            }
            Some(number) => (number * UNIT, true),
            None => (self.length, true),
        };
        Some(HostExtent { length: ByteCount::new(end.min(limit) - at), hole })
    }
}

/// The part of a request that lies in one page.
struct Part {
    page: u64,
    /// Bytes of the page before it.
    skip: usize,
    length: usize,
    /// Bytes of the request before it.
    done: usize,
}

fn parts(at: u64, length: usize) -> impl Iterator<Item = Part> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let here = at + done as u64;
        let skip = ByteCount::new(here % PAGE as u64).as_usize();
        let part =
            Part { page: here / PAGE as u64, skip, length: (PAGE - skip).min(length - done), done };
        done += part.length;
        Some(part)
    })
}

impl crate::Blocking for MemoryStorage {}

impl Storage for MemoryStorage {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            io_alignment: 1,
            memory_alignment: 1,
            block_size: BLOCK_SIZE,
            read_only: false,
            inline: true,
            can_discard: true,
            knows_holes: true,
        }
    }

    fn name(&self) -> &Path {
        &self.name
    }

    fn identity(&self) -> Option<FileIdentity> {
        None
    }

    async fn len(&self) -> Result<ByteCount, StorageError> {
        Ok(ByteCount::new(self.shared().length))
    }

    async fn allocated(&self) -> Result<ByteCount, StorageError> {
        Ok(ByteCount::new(self.shared().pages.len() as u64 * PAGE as u64))
    }

    async fn read(
        &self,
        at: HostOffset,
        mut buffer: IoBuffer,
        purpose: Purpose,
    ) -> IoResult<ByteCount> {
        (self.read_now(at, &mut buffer, purpose), buffer)
    }

    async fn read_vectored(
        &self,
        at: HostOffset,
        mut buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<ByteCount, Vec<IoBuffer>> {
        let total = buffers.iter().map(|buffer| ByteCount::from_usize(buffer.len()));
        let total = total.fold(ByteCount::ZERO, |sum, length| sum + length);
        if let Err(error) = self.end(Operation::Read, purpose, at, total) {
            return (Err(error), buffers);
        }
        let content = self.shared();
        let mut offset = at.get();
        let mut count = 0;
        for buffer in &mut buffers {
            count += content.read(offset, buffer);
            offset += buffer.len() as u64;
        }
        (Ok(ByteCount::new(count)), buffers)
    }

    async fn write(&self, at: HostOffset, buffer: IoBuffer, purpose: Purpose) -> IoResult<()> {
        (self.write_now(at, &buffer, purpose), buffer)
    }

    async fn write_vectored(
        &self,
        at: HostOffset,
        buffers: Vec<IoBuffer>,
        purpose: Purpose,
    ) -> IoResult<(), Vec<IoBuffer>> {
        let total = buffers.iter().map(|buffer| ByteCount::from_usize(buffer.len()));
        let total = total.fold(ByteCount::ZERO, |sum, length| sum + length);
        if let Err(error) = self.end(Operation::Write, purpose, at, total) {
            return (Err(error), buffers);
        }
        let mut content = self.alone();
        let mut offset = at.get();
        for buffer in &buffers {
            content.write(offset, buffer);
            offset += buffer.len() as u64;
        }
        drop(content);
        (Ok(()), buffers)
    }

    fn try_read(
        &self,
        at: HostOffset,
        buffer: &mut [u8],
        purpose: Purpose,
    ) -> Option<Result<ByteCount, StorageError>> {
        Some(self.read_now(at, buffer, purpose))
    }

    fn try_write(
        &self,
        at: HostOffset,
        bytes: &[u8],
        purpose: Purpose,
    ) -> Option<Result<(), StorageError>> {
        Some(self.write_now(at, bytes, purpose))
    }

    async fn zero(
        &self,
        at: HostOffset,
        length: ByteCount,
        mode: ZeroMode,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let end = self.end(Operation::Zero, purpose, at, length)?;
        if length == ByteCount::ZERO {
            return Ok(());
        }
        let mut content = self.alone();
        content.punch(at.get(), end);
        if mode == ZeroMode::KeepAllocated {
            content.reserve(at.get(), end);
        }
        content.extend_to(end);
        Ok(())
    }

    async fn discard(
        &self,
        at: HostOffset,
        length: ByteCount,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let end = self.end(Operation::Discard, purpose, at, length)?;
        if at.get() < end {
            self.alone().punch(at.get(), end);
        }
        Ok(())
    }

    async fn allocate(
        &self,
        at: HostOffset,
        length: ByteCount,
        how: Allocation,
        purpose: Purpose,
    ) -> Result<(), StorageError> {
        let end = self.end(Operation::Allocate, purpose, at, length)?;
        if length == ByteCount::ZERO {
            return Ok(());
        }
        let mut content = self.alone();
        if how == Allocation::WriteZeros {
            content.punch(at.get(), end);
        }
        content.reserve(at.get(), end);
        content.extend_to(end);
        Ok(())
    }

    async fn set_len(&self, length: ByteCount, purpose: Purpose) -> Result<(), StorageError> {
        self.end(Operation::SetLength, purpose, HostOffset::ZERO, length)?;
        self.alone().set_length(length.get());
        Ok(())
    }

    async fn extent(
        &self,
        at: HostOffset,
        length_max: ByteCount,
    ) -> Result<Option<HostExtent>, StorageError> {
        Ok(self.shared().extent(at.get(), length_max.get()))
    }

    async fn barrier(&self, _purpose: Purpose) -> Result<(), StorageError> {
        Ok(())
    }

    /// Nothing is ever left to wait for: I/O ends within its call.
    async fn settle(&self) {}
}

#[cfg(test)]
mod tests {
    use super::{MemoryStorage, PAGE};

    #[test]
    fn a_vector_comes_back_as_it_went_in() {
        let mut bytes = vec![0; 3 * PAGE + 17];
        bytes[2 * PAGE + 5] = 9;
        let storage = MemoryStorage::from_vec(bytes.clone());
        assert_eq!(storage.to_vec(), bytes);
        assert_eq!(storage.shared().pages.len(), 1);
    }

    #[test]
    fn a_snapshot_does_not_follow_later_changes() {
        let storage = MemoryStorage::from_vec(vec![1; 10]);
        let snapshot = storage.snapshot();
        storage.alone().write(0, &[2; 10]);
        assert_eq!(snapshot.to_vec(), [1; 10]);
        assert_eq!(storage.to_vec(), [2; 10]);
    }
}
