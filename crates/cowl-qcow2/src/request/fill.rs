//! What is written around the guest's bytes when they get a new place: the rest of their clusters,
//! or subclusters, as it reads now.
//!
//!   start      from    at             bytes end   to         end
//!   |..........|#######|guest's bytes|############|...........|
//!
//! Dots need not be written: they read as zeros, and so does the new place. What does is put
//! together in one buffer with the guest's bytes, so that it takes one write.

use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::{IoBuffer, Storage};

use crate::mapping::{Run, RunKind};
use crate::{Error, Image};

/// Most bytes of the guest that are read with what lies around them, only to be replaced: one read
/// of more costs less than two.
const READ_OVER_MAX: usize = 16 << 10;

/// What is written around the guest's bytes, to fill clusters or subclusters.
pub(super) struct Fill {
    /// Everything from here to `end` is valid in the new place afterwards.
    pub(super) start: GuestOffset,
    pub(super) end: GuestOffset,
    /// The guest's bytes with those around them, and where they start; `None` when there is nothing
    /// to be written but the guest's bytes.
    pub(super) whole: Option<(GuestOffset, IoBuffer)>,
    /// Whether all of it, the guest's bytes included, read as zeros before.
    pub(super) was_zero: bool,
}

impl<S: Storage> Image<S> {
    /// What has to be written around `bytes` at `at`, which lie in `run`.
    pub(super) async fn fill_around(
        &self,
        at: GuestOffset,
        bytes: &[u8],
        run: &Run,
        is_zeroed: bool,
    ) -> Result<Fill, Error> {
        let geometry = self.top().geometry();
        let unit = if self.top().copies_whole_clusters(run) {
            geometry.cluster_size()
        } else {
            geometry.subcluster_size()
        };
        let bytes_end = at + ByteCount::from_usize(bytes.len());
        let start = GuestOffset::new(at.get() / unit * unit);
        let end = GuestOffset::new(bytes_end.get().next_multiple_of(unit));
        // All of it, in the common case: one look is enough then.
        let was_zero = self.reads_zero(start, self.kept(start, end)).await?;
        let is_head_zero = was_zero || self.reads_zero(start, self.kept(start, at)).await?;
        let is_tail_zero =
            was_zero || self.reads_zero(bytes_end, self.kept(bytes_end, end)).await?;
        let from = if is_head_zero && is_zeroed { at } else { start };
        let to = if is_tail_zero && is_zeroed { bytes_end } else { end };
        if (from, to) == (at, bytes_end) {
            return Ok(Fill { start, end, whole: None, was_zero });
        }
        let mut buffer = self.take_buffer(to.since(from).as_usize())?;
        let middle = at.since(from).as_usize();
        let behind = middle + bytes.len();
        let reads_over = !is_head_zero && !is_tail_zero && bytes.len() <= READ_OVER_MAX;
        // What cannot be read may be just what the guest replaces.
        if !reads_over || self.read_kept(from, &mut buffer).await.is_err() {
            self.fill_part(from, &mut buffer[..middle], is_head_zero).await?;
            self.fill_part(bytes_end, &mut buffer[behind..], is_tail_zero).await?;
        }
        buffer[middle..behind].copy_from_slice(bytes);
        Ok(Fill { start, end, whole: Some((from, buffer)), was_zero })
    }

    /// A buffer with any content. Most are as long as a cluster, and used again.
    fn take_buffer(&self, length: usize) -> Result<IoBuffer, Error> {
        let is_cluster = length == self.top().geometry().cluster_len();
        let spare = match is_cluster {
            true => self.top().writer()?.fills.take(),
            false => None,
        };
        Ok(spare.unwrap_or_else(|| IoBuffer::zeroed(length)))
    }

    /// Keeps a buffer of [`Self::take_buffer`] for the next one.
    pub(super) fn give_back(&self, buffer: IoBuffer) -> Result<(), Error> {
        if buffer.len() == self.top().geometry().cluster_len() {
            self.top().writer()?.fills.give_back(buffer);
        }
        Ok(())
    }

    /// How much of a range is there to be kept: behind the end of the disk there is nothing.
    fn kept(&self, start: GuestOffset, end: GuestOffset) -> ByteCount {
        ByteCount::new(end.get().min(self.size().get()).saturating_sub(start.get()))
    }

    async fn fill_part(
        &self,
        at: GuestOffset,
        part: &mut [u8],
        is_zero: bool,
    ) -> Result<(), Error> {
        if is_zero {
            part.fill(0);
            return Ok(());
        }
        self.read_kept(at, part).await
    }

    /// Reads a part that may go on behind the end of the disk.
    async fn read_kept(&self, at: GuestOffset, part: &mut [u8]) -> Result<(), Error> {
        let kept = self.kept(at, at + ByteCount::from_usize(part.len())).as_usize();
        let (kept, behind) = part.split_at_mut(kept);
        behind.fill(0);
        self.read_unchecked(at, kept).await
    }

    /// Whether a range reads as zeros, as far as the mappings tell.
    pub(super) async fn reads_zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
    ) -> Result<bool, Error> {
        let end = at + length;
        let mut next = at;
        while next < end {
            let found = self.find_bytes(next, end.since(next)).await?;
            match found.kind {
                Some(RunKind::Zero { .. } | RunKind::Unallocated { .. }) => {}
                _ => return Ok(false),
            }
            next = next + found.length;
        }
        Ok(true)
    }
}
