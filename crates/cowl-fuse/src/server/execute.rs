//! What a request asks for, and what is answered.

use std::rc::Rc;
use std::sync::atomic::Ordering;

use cowl_block::{BlockDevice, BlockError};
use cowl_storage::IoBuffer;

use super::attributes::{FILE, ROOT};
use super::worker::Worker;
use super::{Access, Caching, NAME_MAX};
use crate::protocol::reply::{self, Entry, Kind, OpenFlags, Validity};
use crate::protocol::request::{Header, Request};

/// How long the kernel may believe attributes: sizes change past the mount, too.
const ATTRIBUTES_VALID: Validity = Validity(1);

/// How long it may believe that a name is there.
const NAME_VALID: Validity = Validity(3600);

/// Bytes of a block in statistics.
const STATISTICS_BLOCK: u32 = 4096;

/// Flags of `open(2)` that count here, as this kind of host has them.
const ACCESS_MODE: u32 = 0o3;
const TRUNCATE: u32 = 0o1000;

/// An error number for the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Errno(pub(super) i32);

impl Errno {
    pub(super) const PERM: Self = Self(1);
    pub(super) const NOENT: Self = Self(2);
    pub(super) const IO: Self = Self(5);
    pub(super) const NXIO: Self = Self(6);
    pub(super) const ACCES: Self = Self(13);
    pub(super) const NOTDIR: Self = Self(20);
    pub(super) const ISDIR: Self = Self(21);
    pub(super) const INVAL: Self = Self(22);
    pub(super) const FBIG: Self = Self(27);
    pub(super) const NOSPC: Self = Self(28);
    pub(super) const ROFS: Self = Self(30);
    pub(super) const NOSYS: Self = Self(38);
    pub(super) const OPNOTSUPP: Self = Self(95);
}

impl From<BlockError> for Errno {
    fn from(error: BlockError) -> Self {
        match error.errno() {
            // 0 would be an answer, and what the kernel does not know makes it cut the connection.
            errno @ 1..=511 => Self(errno),
            _ => Self::IO,
        }
    }
}

/// The answer to a request that succeeded.
pub(super) enum Answer {
    /// Its bytes, none for most.
    Bytes(Vec<u8>),
    /// What was read.
    Data(IoBuffer),
}

impl Answer {
    pub(super) const DONE: Self = Self::Bytes(Vec::new());
}

/// Does what a request asks for.
pub(super) async fn run<E: BlockDevice + 'static>(
    worker: &Rc<Worker<E>>,
    header: &Header,
    request: Request,
    payload: IoBuffer,
) -> Result<Answer, Errno> {
    let shared = &worker.shared;
    match request {
        Request::Read { at, length } => worker.read(at, length).await,
        Request::Write { at, .. } => worker.write(at, payload).await,
        Request::Sync | Request::Flush => worker.flush().await,
        Request::Allocate { at, length, mode } => {
            shared.allocate(at, length, mode).await.map(|()| Answer::DONE)
        }
        Request::Seek { at, whence } => {
            let found = shared.seek(at, whence).await?;
            Ok(Answer::Bytes(reply::found(found)))
        }
        Request::Release => {
            let fewer = |open: u64| Some(open.saturating_sub(1));
            let open_files = &shared.counters.open_files;
            open_files.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer).ok();
            Ok(Answer::DONE)
        }
        Request::ReleaseDirectory | Request::Forget | Request::Destroy => Ok(Answer::DONE),
        other => {
            if !shared.ownership.admits(header.uid, shared.options.sharing) {
                return Err(Errno::ACCES);
            }
            worker.about_names(header.node, other).await
        }
    }
}

impl<E: BlockDevice + 'static> Worker<E> {
    /// Requests that are about more than bytes of the device.
    async fn about_names(&self, node: u64, request: Request) -> Result<Answer, Errno> {
        let shared = &self.shared;
        match request {
            Request::GetAttributes => {
                let attributes = shared.attributes(node).await?;
                Ok(Answer::Bytes(reply::attributes(&attributes, ATTRIBUTES_VALID)))
            }
            Request::SetAttributes(change) => {
                shared.change(node, change).await?;
                let attributes = shared.attributes(node).await?;
                Ok(Answer::Bytes(reply::attributes(&attributes, ATTRIBUTES_VALID)))
            }
            Request::Lookup(name) => {
                if shared.file_node() == ROOT {
                    return Err(Errno::NOTDIR);
                }
                if node != ROOT || name != shared.export.name.as_bytes() {
                    return Err(Errno::NOENT);
                }
                let attributes = shared.attributes(FILE).await?;
                Ok(Answer::Bytes(reply::entry(&attributes, NAME_VALID, ATTRIBUTES_VALID)))
            }
            Request::Open { flags } => self.open(node, flags).await,
            Request::OpenDirectory if node != shared.file_node() => {
                Ok(Answer::Bytes(reply::opened(OpenFlags::CACHED)))
            }
            Request::OpenDirectory => Err(Errno::NOTDIR),
            Request::ReadDirectory { at, length } => {
                let entry = |node, kind, name| Entry { node, kind, name };
                let name = shared.export.name.as_bytes();
                let entries = [
                    entry(ROOT, Kind::Directory, b".".as_slice()),
                    entry(ROOT, Kind::Directory, b".."),
                    entry(FILE, Kind::File, name),
                ];
                Ok(Answer::Bytes(reply::directory(&entries, at, length)))
            }
            Request::Statistics => self.statistics().await,
            Request::Access => Ok(Answer::DONE),
            Request::ChangeDirectory => Err(Errno::PERM),
            _ => Err(Errno::NOSYS),
        }
    }

    async fn open(&self, node: u64, flags: u32) -> Result<Answer, Errno> {
        let shared = &self.shared;
        if node != shared.file_node() {
            return Err(Errno::ISDIR);
        }
        let is_for_reading = flags & ACCESS_MODE == 0;
        if !is_for_reading && shared.export.access == Access::ReadOnly {
            return Err(Errno::ROFS);
        }
        if flags & TRUNCATE != 0 && shared.truncates_on_open() {
            shared.truncate(0).await?;
        }
        let mut how = match shared.options.caching {
            Caching::PageCache => OpenFlags::CACHED,
            Caching::Direct => OpenFlags::DIRECT,
        };
        if is_for_reading {
            how = how.with(OpenFlags::NO_FLUSH);
        }
        shared.counters.open_files.fetch_add(1, Ordering::Relaxed);
        Ok(Answer::Bytes(reply::opened(how)))
    }

    async fn statistics(&self) -> Result<Answer, Errno> {
        let device = &self.shared.export.device;
        let block = u64::from(STATISTICS_BLOCK);
        let blocks = device.size().get() / block;
        let used = device.allocated().await?.get().div_ceil(block);
        let name_max = u32::try_from(NAME_MAX).unwrap_or(u32::MAX);
        let free = blocks.saturating_sub(used);
        Ok(Answer::Bytes(reply::statistics(STATISTICS_BLOCK, blocks, free, name_max)))
    }
}
