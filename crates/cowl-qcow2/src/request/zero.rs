//! Writing zeros: by the zero flag where a whole cluster or subcluster is meant, by data elsewhere.
//!
//! A part of a cluster whose rest reads as zeros anyway makes the whole cluster zero. Version 2 has
//! no zero flag: whole clusters become unallocated where nothing lies below, and data is written
//! else. What reads as zeros already is left alone. A raw data file gets the zeros itself.

use cowl_block::ZeroRequest;
use cowl_format::{
    ByteCount, ClusterMapping, GuestCluster, GuestOffset, HostOffset, L2Entry, SubclusterBitmap,
    SubclusterState, Version,
};
use cowl_storage::{Purpose, Storage, ZeroMode};

use crate::flush::{After, Edge};
use crate::mapping::{Change, RunKind};
use crate::request::Claims;
use crate::{Error, Image, Layer};

/// Zeros written at once where the format has no way to say zero.
const DATA_MAX: u64 = 1 << 20;

/// What becomes of clusters that lose their content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clear {
    /// They read as zeros.
    Zero(ZeroRequest),
    /// They read as zeros if the format can say so.
    Discard,
    /// They are as if never written: what lies below shows.
    Forget,
}

impl<S: Storage> Image<S> {
    /// Makes a range read as zeros: any offset and length within the disk. Durability and dropping
    /// as in [`Self::write_from`].
    pub async fn zero(
        &self,
        at: GuestOffset,
        length: ByteCount,
        how: ZeroRequest,
    ) -> Result<(), Error> {
        self.check_range(at, length)?;
        self.top().before_change().await?;
        self.top().make_room().await?;
        let _pin = self.pin_range(at, length)?;
        self.zero_unchecked(at, at + length, how).await
    }

    /// Zeros `start..end`, which may lie behind the end of the disk.
    pub(crate) async fn zero_unchecked(
        &self,
        start: GuestOffset,
        end: GuestOffset,
        how: ZeroRequest,
    ) -> Result<(), Error> {
        if self.top().header().version == Version::V2 {
            return self.zero_without_flag(start, end, how).await;
        }
        if self.top().header().has_raw_data_file() {
            return self.zero_raw(start, end, how).await;
        }
        let unit = self.top().geometry().subcluster_size();
        let aligned_start = GuestOffset::new(start.get().next_multiple_of(unit));
        let aligned_end = GuestOffset::new(end.get() / unit * unit);
        if aligned_end < aligned_start {
            return self.zero_part(start, end, how).await;
        }
        if start < aligned_start {
            self.zero_part(start, aligned_start, how).await?;
        }
        if aligned_start < aligned_end {
            self.clear(aligned_start, aligned_end, Clear::Zero(how)).await?;
        }
        if aligned_end < end {
            self.zero_part(aligned_end, end, how).await?;
        }
        Ok(())
    }

    /// Zeros a range of a raw data file. The entries stay as they are: nothing lies below, so what
    /// they map reads as zeros then, and the image and its raw file never disagree, whatever other
    /// requests do meanwhile or have left behind when they were dropped.
    pub(super) async fn zero_raw(
        &self,
        start: GuestOffset,
        end: GuestOffset,
        how: ZeroRequest,
    ) -> Result<(), Error> {
        let top = self.top();
        let Some((at, length)) = top.part_of_data_file(start, end).await? else { return Ok(()) };
        let mode = match how {
            ZeroRequest::KeepAllocated => ZeroMode::KeepAllocated,
            ZeroRequest::MayUnmap => ZeroMode::MayUnmap,
        };
        let zero = top.data_file().zero(at, length, mode, Purpose::GuestData);
        top.writer()?.change(zero).await?;
        top.metadata().barriers().touch();
        Ok(())
    }

    /// Zeros a part of one cluster or subcluster.
    async fn zero_part(
        &self,
        start: GuestOffset,
        end: GuestOffset,
        how: ZeroRequest,
    ) -> Result<(), Error> {
        let geometry = self.top().geometry();
        let unit = geometry.subcluster_size();
        let unit_start = GuestOffset::new(start.get() / unit * unit);
        let unit_end = unit_start + ByteCount::new(unit);
        let size = GuestOffset::new(self.size().get()).max(end);
        let claim = self.top().writer()?.claims.claim(geometry.guest_cluster(start), 1).await;
        if self.reads_zero(start, end.since(start)).await? {
            return Ok(());
        }
        let rest_end = unit_end.min(size);
        let rest_is_zero = self.reads_zero(unit_start, start.since(unit_start)).await?
            && self.reads_zero(end, rest_end.since(end)).await?;
        if rest_is_zero && self.clear_claimed(unit_start, unit_end, Clear::Zero(how)).await? {
            return Ok(());
        }
        drop(claim);
        self.write_zeros(start, end).await
    }

    async fn zero_without_flag(
        &self,
        start: GuestOffset,
        end: GuestOffset,
        how: ZeroRequest,
    ) -> Result<(), Error> {
        let cluster = self.top().geometry().cluster_size();
        let from = GuestOffset::new(start.get().next_multiple_of(cluster));
        let to = GuestOffset::new(end.get() / cluster * cluster);
        if how == ZeroRequest::MayUnmap && !self.has_below() && from < to {
            self.write_zeros(start, from).await?;
            self.clear(from, to, Clear::Forget).await?;
            return self.write_zeros(to, end).await;
        }
        self.write_zeros(start, end).await
    }

    /// Writes zeros as data wherever something else is read.
    async fn write_zeros(&self, start: GuestOffset, end: GuestOffset) -> Result<(), Error> {
        let zeros = vec![0; ByteCount::new(DATA_MAX.min(end.since(start).get())).as_usize()];
        let mut next = start;
        while next < end {
            let found = self.find(next, end.since(next)).await?;
            let length = found.length.min(ByteCount::new(DATA_MAX));
            let is_zero =
                matches!(found.kind, Some(RunKind::Zero { .. } | RunKind::Unallocated { .. }));
            if !is_zero {
                self.write_unchecked(next, &zeros[..length.as_usize()]).await?;
            }
            next = next + if is_zero { found.length } else { length };
        }
        Ok(())
    }

    /// Whether anything lies below the top layer.
    pub(crate) fn has_below(&self) -> bool {
        1 < self.layers().len() || self.base().is_some()
    }

    /// Clears `start..end`, whole subclusters, or whole clusters unless zeros are meant.
    pub(crate) async fn clear(
        &self,
        start: GuestOffset,
        end: GuestOffset,
        clear: Clear,
    ) -> Result<(), Error> {
        let top = self.top();
        let geometry = top.geometry();
        let unit = match clear {
            Clear::Zero(_) => geometry.subcluster_size(),
            Clear::Discard | Clear::Forget => geometry.cluster_size(),
        };
        let mut next = start;
        while next < end {
            let clear_to = self.clear_up_to(next, end, clear).await?;
            // What lies below may end within a unit of this layer, which is cleared whole.
            let skipped = match clear_to < end {
                true => GuestOffset::new(clear_to.get() / unit * unit),
                false => end,
            };
            if next < skipped {
                next = skipped;
                continue;
            }
            let first = geometry.guest_cluster(next);
            let left = geometry.clusters_for(end.since(geometry.guest_cluster_start(first)).get());
            let count = left.min(Claims::AT_ONCE_MAX);
            let claimed_end = GuestOffset::new((first.get() + count) * geometry.cluster_size());
            let claim = top.writer()?.claims.claim(first, count).await;
            let part_end = end.min(claimed_end);
            if !self.clear_claimed(next, part_end, clear).await? {
                drop(claim);
                self.write_zeros(next, part_end).await?;
            }
            next = part_end;
            top.make_room().await?;
        }
        Ok(())
    }

    /// Where the first byte is that has something to clear.
    async fn clear_up_to(
        &self,
        start: GuestOffset,
        end: GuestOffset,
        clear: Clear,
    ) -> Result<GuestOffset, Error> {
        let mut next = start;
        while next < end {
            match self.clear_already(next, end, clear).await? {
                ByteCount::ZERO => break,
                length => next = next + length,
            }
        }
        Ok(next)
    }

    /// How many bytes from `at` on have nothing to clear.
    async fn clear_already(
        &self,
        at: GuestOffset,
        end: GuestOffset,
        clear: Clear,
    ) -> Result<ByteCount, Error> {
        if clear == Clear::Forget {
            let run = self.top().lookup(at, end.since(at)).await?;
            let is_done = run.kind == RunKind::Unallocated { host: None };
            return Ok(if is_done { run.length } else { ByteCount::ZERO });
        }
        let found = self.find(at, end.since(at)).await?;
        let keeps_space = clear == Clear::Zero(ZeroRequest::KeepAllocated);
        let is_done = match found.kind {
            Some(RunKind::Zero { host } | RunKind::Unallocated { host }) => {
                keeps_space || 0 < found.depth || host.is_none()
            }
            _ => false,
        };
        Ok(if is_done { found.length } else { ByteCount::ZERO })
    }

    /// Clears a range in clusters that the caller has claimed. Returns whether the format can: a
    /// compressed cluster cannot be cleared in part.
    async fn clear_claimed(
        &self,
        start: GuestOffset,
        end: GuestOffset,
        clear: Clear,
    ) -> Result<bool, Error> {
        let top = self.top();
        let geometry = top.geometry();
        let size = geometry.cluster_size();
        let first = geometry.guest_cluster(start).get();
        let last = geometry.guest_cluster(GuestOffset::new(end.get() - 1)).get();
        let is_partial =
            |cluster: u64| cluster * size < start.get() || end.get() < (cluster + 1) * size;
        if geometry.has_extended_l2() {
            for cluster in [first, last].into_iter().filter(|cluster| is_partial(*cluster)) {
                if top.entry_of(GuestCluster::new(cluster)).await?.is_compressed() {
                    return Ok(false);
                }
            }
        }
        let after = top.clear_data_file(start, end, clear).await?;
        for cluster in (first..=last).map(GuestCluster::new) {
            let from = start.get().max(cluster.get() * size) % size;
            let to = end.get().min((cluster.get() + 1) * size) - cluster.get() * size;
            let mut fault = None;
            let change = |old| match top.cleared(cluster, from..to, old, clear, self.has_below()) {
                Ok(entry) => entry.filter(|new| *new != old).map(|entry| Change { entry, after }),
                Err(error) => {
                    fault = Some(error);
                    None
                }
            };
            top.relink(cluster, change).await?;
            if let Some(error) = fault {
                return Err(error);
            }
        }
        Ok(true)
    }
}

impl<S: Storage> Layer<S> {
    /// The entry for `cluster` once bytes `range` of it are cleared; `None` to leave it.
    fn cleared(
        &self,
        cluster: GuestCluster,
        range: core::ops::Range<u64>,
        old: L2Entry,
        clear: Clear,
        has_below: bool,
    ) -> Result<Option<L2Entry>, Error> {
        let header = self.header();
        let geometry = header.geometry;
        let guest = geometry.guest_cluster_start(cluster);
        let mapping = old
            .decode(guest, geometry, header.version, header.has_data_file())
            .map_err(|fault| self.corrupt(fault))?;
        let is_whole = range == (0..geometry.cluster_size());
        let host = match mapping {
            ClusterMapping::Zero { host } | ClusterMapping::Subclusters { host, .. } => host,
            ClusterMapping::Data { host } => Some(host),
            ClusterMapping::Unallocated | ClusterMapping::Compressed(_) => None,
        };
        let how = match clear {
            Clear::Forget => return Ok(Some(L2Entry::default())),
            Clear::Discard if header.version == Version::V2 => {
                // What lies below must not come back.
                return Ok((!has_below).then(L2Entry::default));
            }
            Clear::Discard => ZeroRequest::MayUnmap,
            Clear::Zero(how) => how,
        };
        if is_whole {
            let is_own = old.is_copied() && !old.is_compressed();
            let kept = host.filter(|_| how == ZeroRequest::KeepAllocated && is_own);
            return Ok(Some(L2Entry::zero(kept, geometry)));
        }
        assert!(geometry.has_extended_l2(), "only subclusters are smaller than clusters");
        let unit = geometry.subcluster_size();
        let index = |at: u64| u32::try_from(at / unit).expect("one of 32");
        let bitmap = SubclusterBitmap::decode(old.bitmap, host.is_some()).unwrap_or_default();
        let (first, count) = (index(range.start), index(range.end) - index(range.start));
        Ok(Some(old.with_bitmap(bitmap.with(first, count, SubclusterState::Zero))))
    }

    /// Gives up a range of the external data file, if there is one: guest byte n is its byte n, and
    /// nobody else's. Returns what the entries wait for.
    async fn clear_data_file(
        &self,
        start: GuestOffset,
        end: GuestOffset,
        clear: Clear,
    ) -> Result<After, Error> {
        let keeps_space = clear == Clear::Zero(ZeroRequest::KeepAllocated);
        if !self.header().has_data_file() || keeps_space {
            return Ok(After::NOTHING);
        }
        let Some((at, length)) = self.part_of_data_file(start, end).await? else {
            return Ok(After::NOTHING);
        };
        let discard = self.data_file().discard(at, length, Purpose::GuestData);
        self.writer()?.change(discard).await?;
        let barriers = self.metadata().barriers();
        barriers.touch();
        Ok(Edge::DataBeforeEntry.after(barriers.next()))
    }

    /// Where a range of the disk lies in the external data file, as far as that reaches: behind its
    /// end it has nothing but zeros.
    async fn part_of_data_file(
        &self,
        start: GuestOffset,
        end: GuestOffset,
    ) -> Result<Option<(HostOffset, ByteCount)>, Error> {
        let size = self.data_file().len().await?.get();
        let length = ByteCount::new(end.get().min(size).saturating_sub(start.get()));
        Ok((length != ByteCount::ZERO).then_some((HostOffset::new(start.get()), length)))
    }
}
