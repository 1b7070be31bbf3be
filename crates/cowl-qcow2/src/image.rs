//! An image: a layer and the chain of layers below it, as one disk.
//!
//! The chain is a list, top first, with an optional raw image at the bottom. A byte that a layer
//! does not have comes from the next one; past the end of a shorter layer, and below the last one,
//! bytes are zero.
//!
//! `Image` routes requests; it decides nothing about tables, caches or order.

use std::sync::Arc;

use cowl_block::{
    BlockDevice, BlockError, DeviceResult, Extent, ExtentKind, Growth, RawImage, ZeroRequest,
};
use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::{IoBuffer, Storage};

use crate::mapping::{Run, RunKind, Shortcuts};
use crate::{Error, ImageStats, Layer, Preallocation};

/// An open image with its backing chain.
///
/// `Send + Sync` when its storage is: any number of threads and tasks use it at once.
pub struct Image<S: Storage> {
    layers: Vec<Layer<S>>,
    base: Option<RawImage<S>>,
    shortcuts: Option<Shortcuts>,
    may_answer_now: bool,
}

/// A stretch of guest bytes and the first layer that has a say about it.
pub(crate) struct Found {
    pub(crate) depth: usize,
    pub(crate) length: ByteCount,
    /// `None`: the raw image at the bottom has it.
    pub(crate) kind: Option<RunKind>,
}

/// A way down the chain: layers above `depth` have nothing to say about so many bytes.
pub(crate) struct Descent {
    depth: usize,
    length: ByteCount,
    /// What the last of them said.
    unallocated: RunKind,
}

impl Descent {
    fn new(length: ByteCount) -> Self {
        Self { depth: 0, length, unallocated: RunKind::Unallocated { host: None } }
    }

    /// Goes past the layer that says `run`, unless that is the answer.
    fn pass(&mut self, run: Run) -> Option<Found> {
        self.length = run.length;
        match run.kind {
            RunKind::Unallocated { .. } => {
                self.unallocated = run.kind;
                self.depth += 1;
                None
            }
            kind => Some(Found { depth: self.depth, length: run.length, kind: Some(kind) }),
        }
    }
}

impl<S: Storage> Image<S> {
    /// An image of `layers`, the top one first, over `base`.
    ///
    /// Panics without layers: a raw disk alone is a [`RawImage`].
    #[must_use]
    pub fn new(layers: Vec<Layer<S>>, base: Option<RawImage<S>>) -> Self {
        assert!(!layers.is_empty());
        let shortcuts = Shortcuts::new(&layers);
        let host = layers[0].data_file().capabilities();
        let may_answer_now = host.inline || host.io_alignment == 1;
        Self { layers, base, shortcuts, may_answer_now }
    }

    /// Size of the disk in bytes.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.layers[0].size()
    }

    /// The qcow2 layers, the top one first.
    #[must_use]
    pub fn layers(&self) -> &[Layer<S>] {
        &self.layers
    }

    /// The raw image at the bottom of the chain.
    #[must_use]
    pub fn base(&self) -> Option<&RawImage<S>> {
        self.base.as_ref()
    }

    /// Whether the storage answers at once, or goes through a cache that may have the bytes.
    pub(crate) fn may_answer_now(&self) -> bool {
        self.may_answer_now
    }

    /// The layer that is written to.
    pub(crate) fn top(&self) -> &Layer<S> {
        &self.layers[0]
    }

    /// Returns when every request acknowledged before the call is durable. Joins a flush that
    /// starts meanwhile.
    ///
    /// After an error everything that was not durable before may be so or not. When a barrier of
    /// the host failed the image takes no changes any more, and every further flush fails.
    pub async fn flush(&self) -> Result<(), Error> {
        match self.top().writer() {
            // Nothing was written.
            Err(_) => Ok(()),
            Ok(_) => self.top().commit().await,
        }
    }

    /// Whether tables in memory may be newer than those in the file.
    fn has_unwritten_tables(&self) -> bool {
        let top = self.top();
        if top.writer().is_err() {
            return false;
        }
        // What a commit under way has taken is dirty no more and not in the file yet.
        let Some(_no_commit) = top.metadata().write_back_lock().try_lock() else { return true };
        !top.metadata().dirty().is_empty() || top.l1().is_dirty()
    }

    /// What was written so far, and what that took.
    #[must_use]
    pub fn stats(&self) -> ImageStats {
        self.top().image_stats()
    }

    pub(crate) fn check_range(&self, at: GuestOffset, length: ByteCount) -> Result<(), Error> {
        let size = self.size();
        match at.get().checked_add(length.get()) {
            Some(end) if end <= size.get() => Ok(()),
            _ => Err(Error::OutOfRange { at, length, size }),
        }
    }

    /// Walks down the chain to the first layer that has a say about `at`.
    pub(crate) async fn find(
        &self,
        at: GuestOffset,
        length_max: ByteCount,
    ) -> Result<Found, Error> {
        let mut descent = match self.find_now(at, length_max)? {
            Ok(found) => return Ok(found),
            Err(descent) => descent,
        };
        while let Some((layer, length)) = self.next_below(&descent, at) {
            if let Some(found) = descent.pass(layer.lookup(at, length).await?) {
                return Ok(found);
            }
        }
        Ok(self.found_at_end(&descent, at))
    }

    /// As [`find`](Self::find), as far as tables are in memory: where one is not, the way to it.
    #[inline(always)]
    fn find_now(
        &self,
        at: GuestOffset,
        length_max: ByteCount,
    ) -> Result<Result<Found, Descent>, Error> {
        let mut descent = Descent::new(length_max);
        Ok(self.descend_now(&mut descent, at)?.ok_or(descent))
    }

    /// Goes down as long as tables are in memory; `None` where one is not.
    #[inline(always)]
    fn descend_now(&self, descent: &mut Descent, at: GuestOffset) -> Result<Option<Found>, Error> {
        while let Some((layer, length)) = self.next_below(descent, at) {
            let Some(run) = layer.lookup_now(at, length)? else { return Ok(None) };
            if let Some(found) = descent.pass(run) {
                return Ok(Some(found));
            }
        }
        Ok(Some(self.found_at_end(descent, at)))
    }

    /// As [`find`](Self::find), for those who ask what the bytes are and not what else is reserved
    /// for them.
    pub(crate) async fn find_bytes(
        &self,
        at: GuestOffset,
        length_max: ByteCount,
    ) -> Result<Found, Error> {
        match self.find_bytes_now(at, length_max)? {
            Some(found) => Ok(found),
            None => self.find(at, length_max).await,
        }
    }

    /// The same, as far as tables are in memory; `None` where one is not.
    #[inline(always)]
    pub(crate) fn find_bytes_now(
        &self,
        at: GuestOffset,
        length_max: ByteCount,
    ) -> Result<Option<Found>, Error> {
        let mut descent = Descent::new(length_max);
        let Some(shortcuts) = &self.shortcuts else { return self.descend_now(&mut descent, at) };
        let Some(granule) = shortcuts.granule(at, length_max) else {
            return self.descend_now(&mut descent, at);
        };
        let Some((top, length)) = self.next_below(&descent, at) else {
            return Ok(Some(self.found_at_end(&descent, at)));
        };
        let Some(run) = top.lookup_now(at, length)? else { return Ok(None) };
        if let Some(found) = descent.pass(run) {
            return Ok(Some(found));
        }
        let start = shortcuts.depth(granule);
        descent.depth = start;
        let found = self.descend_now(&mut descent, at)?;
        if found.is_some() && start < descent.depth {
            shortcuts.remember(granule, descent.depth);
        }
        Ok(found)
    }

    /// The layer to ask next and about how much; `None` at the end of the way.
    fn next_below(&self, descent: &Descent, at: GuestOffset) -> Option<(&Layer<S>, ByteCount)> {
        let layer = self.layers.get(descent.depth)?;
        Some((layer, inside(layer.mapped_size(), at, descent.length)?))
    }

    /// What there is where no layer has a say.
    fn found_at_end(&self, descent: &Descent, at: GuestOffset) -> Found {
        let Descent { depth, length, unallocated } = *descent;
        if depth == self.layers.len()
            && let Some(base) = &self.base
            && let Some(length) = inside(base.size(), at, length)
        {
            return Found { depth, length, kind: None };
        }
        // Nothing is stored past the end of a shorter layer: the one above it had the last say.
        Found { depth: depth.saturating_sub(1), length, kind: Some(unallocated) }
    }

    /// How `at..at + length` is stored: extents in order, without gaps, neighbours that continue
    /// each other merged. May stop early, but never before the first extent.
    pub async fn extents(&self, at: GuestOffset, length: ByteCount) -> Result<Vec<Extent>, Error> {
        self.check_range(at, length)?;
        let end = at + length;
        let mut extents: Vec<Extent> = Vec::new();
        let mut next = at;
        for _ in 0..LOOKUPS_MAX {
            if end <= next || EXTENTS_MAX <= extents.len() {
                break;
            }
            let found = self.find(next, end.since(next)).await?;
            let extent = Extent {
                start: next,
                length: found.length,
                depth: u32::try_from(found.depth).expect("the chain is short"),
                kind: ExtentKind::Compressed,
            };
            next = next + found.length;
            match found.kind {
                None => self.push_base_extents(&mut extents, extent).await?,
                Some(kind) => push(&mut extents, Extent { kind: extent_kind(kind), ..extent }),
            }
        }
        Ok(extents)
    }

    async fn push_base_extents(
        &self,
        extents: &mut Vec<Extent>,
        whole: Extent,
    ) -> Result<(), Error> {
        let base = self.base.as_ref().expect("found in the base");
        let end = whole.start + whole.length;
        let mut next = whole.start;
        while next < end {
            let failed = |error| Error::Backing(Box::new(error));
            let some = base.extents(next, end.since(next)).await.map_err(failed)?;
            for extent in some {
                next = extent.start + extent.length;
                push(extents, Extent { depth: whole.depth, ..extent });
            }
        }
        Ok(())
    }
}

/// Extents of one answer: bounds its memory; the caller asks again from where it ends.
const EXTENTS_MAX: usize = 16_384;

/// Lookups for one answer: a slice of a table at most each. A disk of petabytes whose every table
/// is the same one would otherwise keep a single call busy for hours.
const LOOKUPS_MAX: usize = 65_536;

/// As much of `at..at + length` as lies below `size`; `None` when nothing does.
fn inside(size: ByteCount, at: GuestOffset, length: ByteCount) -> Option<ByteCount> {
    let rest = size.get().checked_sub(at.get()).filter(|rest| *rest != 0)?;
    Some(length.min(ByteCount::new(rest)))
}

fn extent_kind(kind: RunKind) -> ExtentKind {
    match kind {
        RunKind::Unallocated { host } => ExtentKind::Unallocated { host },
        RunKind::Zero { host } => ExtentKind::Zero { host },
        RunKind::Data { host } => ExtentKind::Data { host: Some(host), hole: false },
        RunKind::Compressed { .. } => ExtentKind::Compressed,
    }
}

fn push(extents: &mut Vec<Extent>, next: Extent) {
    match extents.last_mut() {
        Some(last) if last.is_continued_by(&next) => last.length = last.length + next.length,
        _ => extents.push(next),
    }
}

impl<S: Storage> BlockDevice for Image<S> {
    fn size(&self) -> ByteCount {
        Image::size(self)
    }

    fn request_alignment(&self) -> ByteCount {
        let host = |layer: &Layer<S>| layer.data_file().capabilities().io_alignment;
        let most = self.layers.iter().map(host).max().unwrap_or(1);
        ByteCount::new(u64::from(most))
    }

    fn is_read_only(&self) -> bool {
        self.top().writer().is_err()
    }

    async fn read(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        let (result, buffer) = Image::read(self, at, buffer).await;
        (result.map_err(BlockError::from), buffer)
    }

    async fn write(&self, at: GuestOffset, buffer: IoBuffer) -> DeviceResult {
        let (result, buffer) = Image::write(self, at, buffer).await;
        (result.map_err(BlockError::from), buffer)
    }

    async fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> Result<(), BlockError> {
        Image::zero(self, at, length, how).await.map_err(BlockError::from)
    }

    async fn discard(&self, at: GuestOffset, length: ByteCount) -> Result<(), BlockError> {
        Image::discard(self, at, length).await.map_err(BlockError::from)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        Image::flush(self).await.map_err(BlockError::from)
    }

    async fn persist(&self) -> Result<(), BlockError> {
        match self.has_unwritten_tables() {
            true => Image::flush(self).await.map_err(BlockError::from),
            false => Ok(()),
        }
    }

    async fn extents(&self, at: GuestOffset, length: ByteCount) -> Result<Vec<Extent>, BlockError> {
        Image::extents(self, at, length).await.map_err(BlockError::from)
    }

    async fn resize(&self, size: ByteCount, growth: Growth) -> Result<(), BlockError> {
        let preallocation = match growth {
            Growth::Sparse => Preallocation::Off,
            Growth::Allocated => Preallocation::Falloc,
        };
        Ok(Image::resize(self, size, preallocation).await?)
    }

    /// Of the image itself: its backing files are shared with others.
    async fn allocated(&self) -> Result<ByteCount, BlockError> {
        let image = self.top().file();
        let data = self.top().data_file();
        let mut bytes = image.allocated().await?;
        if !Arc::ptr_eq(image, data) {
            bytes = bytes + data.allocated().await?;
        }
        Ok(bytes)
    }
}
