//! Sizes and holes: truncation, growth, `fallocate`, `SEEK_DATA` and `SEEK_HOLE`.

use async_lock::RwLockReadGuard;
use cowl_block::{BlockDevice, Extent, ExtentKind, Growth, ZeroRequest};
use cowl_format::{ByteCount, GuestOffset};

use super::execute::Errno;
use super::{Access, Shared, Sizing};
use crate::protocol::request::Whence;

/// Sizes of disks are multiples of it.
const SECTOR: u64 = 512;

/// Largest size of a file.
const SIZE_MAX: u64 = i64::MAX as u64;

/// What is asked of the device first in a search. Extents of tiny clusters would otherwise fill
/// memory; where there are few, the next question is twice as long.
const QUESTION_FIRST: u64 = 64 << 20;

/// Flags of `fallocate(2)`.
const KEEP_SIZE: u32 = 0x01;
const PUNCH_HOLE: u32 = 0x02;
const ZERO_RANGE: u32 = 0x10;

/// While it is held, the size stays.
pub(super) type SameSize<'a> = Option<RwLockReadGuard<'a, ()>>;

/// What `fallocate` is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Allocation {
    Punch,
    ZeroWithin,
    ZeroAndGrow,
    ReserveWithin,
    ReserveAndGrow,
}

impl Allocation {
    fn from_mode(mode: u32) -> Option<Self> {
        const PUNCH: u32 = PUNCH_HOLE | KEEP_SIZE;
        const ZERO_WITHIN: u32 = ZERO_RANGE | KEEP_SIZE;
        match mode {
            PUNCH => Some(Self::Punch),
            ZERO_WITHIN => Some(Self::ZeroWithin),
            ZERO_RANGE => Some(Self::ZeroAndGrow),
            KEEP_SIZE => Some(Self::ReserveWithin),
            0 => Some(Self::ReserveAndGrow),
            // Collapsing and inserting move what lies behind, which no disk can.
            _ => None,
        }
    }
}

impl<E: BlockDevice + 'static> Shared<E> {
    pub(super) fn size(&self) -> u64 {
        self.export.device.size().get()
    }

    /// Lets the size stay as it is.
    pub(super) async fn keep_size(&self) -> SameSize<'_> {
        match &self.size_gate {
            Some(gate) => Some(gate.read().await),
            None => None,
        }
    }

    /// Makes the device reach `end`, where it does not.
    pub(super) async fn grow_to(&self, end: u64) -> Result<SameSize<'_>, Errno> {
        if SIZE_MAX < end {
            return Err(Errno::FBIG);
        }
        let same_size = self.keep_size().await;
        if end <= self.size() {
            return Ok(same_size);
        }
        drop(same_size);
        self.resize(end, Growth::Sparse, Direction::Up).await?;
        Ok(self.keep_size().await)
    }

    /// Gives the file another size, if it can have one.
    pub(super) async fn truncate(&self, size: u64) -> Result<(), Errno> {
        if self.export.access == Access::ReadOnly {
            return Err(Errno::ROFS);
        }
        if size == self.size() {
            return Ok(());
        }
        if self.export.sizing == Sizing::Fixed {
            return Err(Errno::PERM);
        }
        self.resize(size, Growth::Sparse, Direction::Any).await?;
        self.ownership.modify();
        Ok(())
    }

    async fn resize(&self, size: u64, growth: Growth, to: Direction) -> Result<(), Errno> {
        let size = size.checked_next_multiple_of(SECTOR).ok_or(Errno::FBIG)?;
        if SIZE_MAX < size {
            return Err(Errno::FBIG);
        }
        let Some(gate) = &self.size_gate else { return Err(Errno::PERM) };
        let _alone = gate.write().await;
        // Others may have been first.
        let is_there = match to {
            Direction::Up => size <= self.size(),
            Direction::Any => size == self.size(),
        };
        if is_there {
            return Ok(());
        }
        Ok(self.export.device.resize(ByteCount::new(size), growth).await?)
    }

    /// `fallocate`.
    pub(super) async fn allocate(&self, at: u64, length: u64, mode: u32) -> Result<(), Errno> {
        if self.export.access == Access::ReadOnly {
            return Err(Errno::ROFS);
        }
        let allocation = Allocation::from_mode(mode).ok_or(Errno::OPNOTSUPP)?;
        let end = at.checked_add(length).filter(|end| *end <= SIZE_MAX).ok_or(Errno::FBIG)?;
        if length == 0 {
            return Err(Errno::INVAL);
        }
        match allocation {
            Allocation::Punch => self.zero_within(at, end, ZeroRequest::MayUnmap).await,
            Allocation::ZeroWithin => self.zero_within(at, end, ZeroRequest::KeepAllocated).await,
            Allocation::ZeroAndGrow => {
                self.must_hold(end)?;
                drop(self.grow_to(end).await?);
                self.zero_within(at, end, ZeroRequest::KeepAllocated).await
            }
            Allocation::ReserveWithin => self.must_be_allocated(at, end).await,
            Allocation::ReserveAndGrow => {
                self.must_hold(end)?;
                self.must_be_allocated(at, end).await?;
                if self.size() < end {
                    self.resize(end, Growth::Allocated, Direction::Up).await?;
                }
                Ok(())
            }
        }
    }

    /// Refuses what would end behind a device of fixed size.
    fn must_hold(&self, end: u64) -> Result<(), Errno> {
        match self.export.sizing == Sizing::Fixed && self.size() < end {
            true => Err(Errno::NOSPC),
            false => Ok(()),
        }
    }

    /// Makes the part of a range that the device has read as zeros, to the byte.
    async fn zero_within(&self, at: u64, end: u64, how: ZeroRequest) -> Result<(), Errno> {
        let _same_size = self.keep_size().await;
        let end = end.min(self.size());
        if at < end {
            let length = ByteCount::new(end - at);
            self.export.device.zero(GuestOffset::new(at), length, how).await?;
            self.ownership.modify();
        }
        Ok(())
    }

    /// Promises space for writes to a range where it is there already. Where it is not, nothing but
    /// writing gets it, and who asked does that better: he knows what else writes there.
    async fn must_be_allocated(&self, at: u64, end: u64) -> Result<(), Errno> {
        let _same_size = self.keep_size().await;
        let end = end.min(self.size());
        let is_missing = |extent: &Extent| match extent.kind {
            ExtentKind::Data { hole, .. } => hole || extent.depth != 0,
            ExtentKind::Compressed => true,
            ExtentKind::Zero { host } | ExtentKind::Unallocated { host } => {
                host.is_none() || extent.depth != 0
            }
        };
        match self.find(at, end, is_missing).await? {
            Some(_) => Err(Errno::OPNOTSUPP),
            None => Ok(()),
        }
    }

    /// The next data or hole from `at` on. The end of the file is a hole.
    pub(super) async fn seek(&self, at: u64, whence: Whence) -> Result<u64, Errno> {
        let _same_size = self.keep_size().await;
        let size = self.size();
        if size <= at {
            return Err(Errno::NXIO);
        }
        match whence {
            Whence::Data => {
                self.find(at, size, |extent| !extent.reads_as_zero()).await?.ok_or(Errno::NXIO)
            }
            Whence::Hole => Ok(self.find(at, size, Extent::reads_as_zero).await?.unwrap_or(size)),
        }
    }

    /// The first byte in `at..end` that lies in an extent that is `wanted`.
    async fn find(
        &self,
        at: u64,
        end: u64,
        wanted: impl Fn(&Extent) -> bool,
    ) -> Result<Option<u64>, Errno> {
        let mut question = QUESTION_FIRST;
        let mut next = at;
        while next < end {
            let length = ByteCount::new(question.min(end - next));
            let extents = self.export.device.extents(GuestOffset::new(next), length).await?;
            if let Some(found) = extents.iter().find(|extent| wanted(extent)) {
                return Ok(Some(found.start.get().max(next)));
            }
            let Some(last) = extents.last() else { return Err(Errno::IO) };
            let behind = last.start.get().saturating_add(last.length.get());
            if behind <= next {
                return Err(Errno::IO);
            }
            next = behind;
            if extents.len() == 1 {
                question = question.saturating_mul(2);
            }
        }
        Ok(None)
    }
}

/// Where a size may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// Only larger.
    Up,
    Any,
}

#[cfg(test)]
mod tests {
    use super::Allocation;

    #[test]
    fn what_moves_bytes_is_refused() {
        assert_eq!(Allocation::from_mode(0x03), Some(Allocation::Punch));
        assert_eq!(Allocation::from_mode(0x10), Some(Allocation::ZeroAndGrow));
        assert_eq!(Allocation::from_mode(0x11), Some(Allocation::ZeroWithin));
        for mode in [0x02, 0x04, 0x08, 0x20, 0x21, 0x40, 0x12, u32::MAX] {
            assert_eq!(Allocation::from_mode(mode), None, "{mode:#x}");
        }
    }
}
