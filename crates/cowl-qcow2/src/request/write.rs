//! Writing: in place where the guest's bytes have a host cluster of their own, and into new
//! clusters elsewhere.
//!
//!   request -> runs -> in place: one I/O, no metadata
//!                   -> else: claim the guest clusters, look again, take host clusters, write data
//!                      and fill in one I/O, link
//!
//! A write returns once its bytes are written and its mapping is in memory; a flush makes both
//! durable. An error before the link leaves the old mapping as it was and gives the clusters back.

use cowl_format::{
    ByteCount, Corruption, GuestCluster, GuestOffset, HostOffset, L2Entry, SubclusterBitmap,
    SubclusterState,
};
use cowl_storage::{IoBuffer, Purpose, Storage};
use futures_util::future::join_all;

use crate::allocator::{ClusterUse, Granted};
use crate::flush::{After, Edge};
use crate::mapping::{Change, Run, RunKind};
use crate::request::Claims;
use crate::request::fill::Fill;
use crate::{Error, Image, Layer};

/// A part of a request.
struct Job<'a> {
    at: GuestOffset,
    bytes: &'a [u8],
    /// Where the bytes go, if they have a place.
    host: Option<HostOffset>,
}

/// Where new bytes go.
struct Place<'a, S: Storage> {
    /// Host offset of the first cluster's start.
    host: HostOffset,
    /// The clusters read as zeros, durably so after this; `None` when they may hold anything.
    zeroed: Option<After>,
    /// What the entries wait for on account of the clusters.
    after: After,
    /// Clusters that nothing points to yet; `None` when the entry had them before.
    granted: Option<Granted<'a, S>>,
}

impl<S: Storage> Image<S> {
    /// Writes `bytes` at guest offset `at`: any offset and length within the disk.
    ///
    /// Not durable before a [`flush`](Self::flush). After an error the range has the old bytes, the
    /// new ones, or some of each. Dropping the future does not cancel what the host is doing
    /// already: the range then has the old bytes, the new ones, or some of each, and nothing else
    /// is touched.
    pub async fn write_from(&self, at: GuestOffset, bytes: &[u8]) -> Result<(), Error> {
        let length = ByteCount::from_usize(bytes.len());
        self.check_range(at, length)?;
        self.top().before_change().await?;
        self.top().make_room().await?;
        if bytes.is_empty() {
            return Ok(());
        }
        let _pin = self.pin_range(at, length)?;
        self.write_unchecked(at, bytes).await
    }

    /// As [`Self::write_from`], from memory that the request owns: without copying when the bytes
    /// have one place in the host file already.
    pub async fn write(&self, at: GuestOffset, buffer: IoBuffer) -> (Result<(), Error>, IoBuffer) {
        let place = match self.place_of_whole(at, buffer.len()).await {
            Ok(place) => place,
            Err(error) => return (Err(error), buffer),
        };
        let Some((_pin, host)) = place else {
            let result = self.write_from(at, &buffer).await;
            return (result, buffer);
        };
        let top = self.top();
        let written = match top.writer() {
            Ok(writer) => {
                writer.change(top.data_file().write(host, buffer, Purpose::GuestData)).await
            }
            Err(error) => return (Err(error), buffer),
        };
        top.metadata().barriers().touch();
        (written.0.map_err(Error::from), written.1)
    }

    /// Where a request goes that can be written in place by one I/O.
    async fn place_of_whole(
        &self,
        at: GuestOffset,
        length: usize,
    ) -> Result<Option<(crate::request::Pin<'_>, HostOffset)>, Error> {
        let length = ByteCount::from_usize(length);
        self.check_range(at, length)?;
        let top = self.top();
        top.before_change().await?;
        if length == ByteCount::ZERO {
            return Ok(None);
        }
        let pin = self.pin_range(at, length)?;
        let run = top.lookup(at, length).await?;
        let Some(host) = top.in_place(&run).filter(|_| run.length == length) else {
            return Ok(None);
        };
        top.refuse_metadata(host, length).await?;
        Ok(Some((pin, host)))
    }

    /// Starts a change of a range. A disk that shrinks waits for those who came before it, so what
    /// lies on the disk now stays there until the pin is dropped.
    pub(super) fn pin_range(
        &self,
        at: GuestOffset,
        length: ByteCount,
    ) -> Result<crate::request::Pin<'_>, Error> {
        let pin = self.top().writer()?.epochs.enter();
        self.check_range(at, length)?;
        Ok(pin)
    }

    /// Writes within or behind the disk; the caller holds a pin.
    pub(super) async fn write_unchecked(&self, at: GuestOffset, bytes: &[u8]) -> Result<(), Error> {
        let top = self.top();
        let run = top.lookup(at, ByteCount::from_usize(bytes.len())).await?;
        if run.length.as_usize() == bytes.len() {
            let job = Job { at, bytes, host: top.in_place(&run) };
            return self.run_job(job).await;
        }
        let mut jobs: Vec<Job<'_>> = Vec::new();
        let mut done = 0;
        while done < bytes.len() {
            let at = at + ByteCount::from_usize(done);
            let run = top.lookup(at, ByteCount::from_usize(bytes.len() - done)).await?;
            let length = run.length.as_usize();
            let host = top.in_place(&run);
            match jobs.last_mut() {
                // One claim for all that needs new clusters.
                Some(last) if last.host.is_none() && host.is_none() => {
                    let start = done - last.bytes.len();
                    last.bytes = &bytes[start..done + length];
                }
                _ => jobs.push(Job { at, bytes: &bytes[done..done + length], host }),
            }
            done += length;
        }
        // All of them end, whatever becomes of the others: an I/O under way is not dropped.
        for result in join_all(jobs.into_iter().map(|job| self.run_job(job))).await {
            result?;
        }
        Ok(())
    }

    async fn run_job(&self, job: Job<'_>) -> Result<(), Error> {
        match job.host {
            Some(host) => self.top().put(host, job.bytes).await,
            None => self.write_allocating(job.at, job.bytes).await,
        }
    }

    async fn write_allocating(&self, at: GuestOffset, bytes: &[u8]) -> Result<(), Error> {
        let top = self.top();
        let writer = top.writer()?;
        let geometry = top.geometry();
        let mut done = 0;
        while done < bytes.len() {
            let at = at + ByteCount::from_usize(done);
            let skip = geometry.offset_in_cluster(at).get();
            let rest = (bytes.len() - done) as u64;
            let count = geometry.clusters_for(skip + rest).min(Claims::AT_ONCE_MAX);
            let rest = rest.min(count * geometry.cluster_size() - skip);
            let claim = writer.claims.claim_or_wait(geometry.guest_cluster(at), count).await;
            // Somebody else may have been here meanwhile: then there is nothing left to claim for.
            let run = top.lookup(at, ByteCount::new(rest)).await?;
            let part = &bytes[done..done + run.length.as_usize()];
            done += match (top.in_place(&run), &claim) {
                (Some(host), _) => {
                    drop(claim);
                    top.put(host, part).await?;
                    part.len()
                }
                (None, Some(_)) => self.write_new(at, part, &run).await?,
                (None, None) => 0,
            };
        }
        Ok(())
    }

    /// Writes as much of `bytes` as fits into one run of new clusters; the caller has claimed them.
    pub(super) async fn write_new(
        &self,
        at: GuestOffset,
        bytes: &[u8],
        run: &Run,
    ) -> Result<usize, Error> {
        let top = self.top();
        let geometry = top.geometry();
        if top.header().has_data_file() {
            // There a cluster has but one place. What a dropped request is writing to it, the fill
            // around its bytes included, must not land on top of ours.
            top.settle().await;
        }
        let (mut place, room) = top.place_for(at, ByteCount::from_usize(bytes.len()), run).await?;
        let bytes = &bytes[..room.as_usize()];
        let mut fill = self.fill_around(at, bytes, run, place.zeroed.is_some()).await?;
        self.write_filled(&place, at, bytes, &mut fill).await?;
        let barriers = top.metadata().barriers();
        let exposes = match place.zeroed {
            Some(zeroed) if fill.was_zero => zeroed,
            _ => barriers.next(),
        };
        let after = place.after.max(Edge::DataBeforeEntry.after(exposes));
        let first = geometry.guest_cluster(at).get();
        let last = geometry.guest_cluster(GuestOffset::new(fill.end.get() - 1)).get();
        for (index, cluster) in (0..).zip((first..=last).map(GuestCluster::new)) {
            let host = place.host + ByteCount::new(index * geometry.cluster_size());
            let change = |old| {
                let entry = top.entry_for(cluster, host, old, &fill);
                Some(Change { entry, after })
            };
            top.relink(cluster, change).await?;
            if let Some(granted) = &mut place.granted {
                granted.keep_first();
            }
        }
        Ok(bytes.len())
    }

    /// Writes the guest's bytes and what fills the clusters around them, in one I/O.
    async fn write_filled(
        &self,
        place: &Place<'_, S>,
        at: GuestOffset,
        bytes: &[u8],
        fill: &mut Fill,
    ) -> Result<(), Error> {
        let top = self.top();
        let skip = |at: GuestOffset| {
            // Where the first cluster begins, and so may lie before the place of its first byte.
            let cluster = top.geometry().guest_cluster_start(top.geometry().guest_cluster(at));
            at.since(cluster)
        };
        let Some((start, buffer)) = fill.whole.take() else {
            return top.put(place.host + skip(at), bytes).await;
        };
        let buffer = top.put_owned(place.host + skip(start), buffer).await?;
        self.give_back(buffer)
    }
}

/// Bytes that were unlinked and wait to become free before requests wait for it.
const UNLINKED_MAX: u64 = 512 << 20;

/// Whether a commit is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pressure {
    /// No.
    Low,
    /// Whoever commits in the background should.
    Half,
    /// Requests wait for it.
    Full,
}

impl<S: Storage> Layer<S> {
    /// Where the first byte of a run is written in place, if it is.
    pub(super) fn in_place(&self, run: &Run) -> Option<HostOffset> {
        match run.kind {
            RunKind::Data { host } if run.is_sole_owner || self.header().has_data_file() => {
                Some(host)
            }
            _ => None,
        }
    }

    /// Host space that belongs to the run although no data is there.
    fn own_space(&self, run: &Run) -> Option<HostOffset> {
        match run.kind {
            RunKind::Zero { host } | RunKind::Unallocated { host } if run.is_sole_owner => host,
            _ => None,
        }
    }

    /// Whether a partial write has to bring the rest of the cluster along: it lies in a host
    /// cluster that the new entry will not name.
    pub(super) fn copies_whole_clusters(&self, run: &Run) -> bool {
        match run.kind {
            RunKind::Data { .. } | RunKind::Compressed { .. } => true,
            RunKind::Zero { host } | RunKind::Unallocated { host } => {
                host.is_some() && self.own_space(run).is_none()
            }
        }
    }

    /// Finds or takes host clusters for up to `length` bytes at `at`, and tells how many fit.
    async fn place_for(
        &self,
        at: GuestOffset,
        length: ByteCount,
        run: &Run,
    ) -> Result<(Place<'_, S>, ByteCount), Error> {
        let geometry = self.geometry();
        let skip = geometry.offset_in_cluster(at);
        let known = if self.header().has_data_file() {
            Some(HostOffset::new(at.get() - skip.get()))
        } else {
            self.own_space(run).map(|host| HostOffset::new(host.get() - skip.get()))
        };
        if let Some(host) = known {
            let place = Place { host, zeroed: None, after: After::NOTHING, granted: None };
            return Ok((place, length));
        }
        let want = geometry.clusters_for(skip.get() + length.get());
        let granted = self.allocate(want, ClusterUse::Data).await?;
        let new = granted.run();
        let room = ByteCount::new(new.count * geometry.cluster_size() - skip.get());
        let host = geometry.host_cluster_start(new.first);
        let place = Place { host, zeroed: new.zeroed, after: new.after, granted: Some(granted) };
        Ok((place, length.min(room)))
    }

    /// The entry for `cluster` once `fill` is written to `host`.
    fn entry_for(
        &self,
        cluster: GuestCluster,
        host: HostOffset,
        old: L2Entry,
        fill: &Fill,
    ) -> L2Entry {
        let geometry = self.geometry();
        let start = geometry.guest_cluster_start(cluster).get();
        let end = start + geometry.cluster_size();
        let (from, to) = (fill.start.get().max(start), fill.end.get().min(end));
        if !geometry.has_extended_l2() || (from, to) == (start, end) {
            return L2Entry::data(host, true, geometry);
        }
        let unit = geometry.subcluster_size();
        let index = |at: u64| u32::try_from((at - start) / unit).expect("one of 32");
        // Whoever fills only a part of a cluster leaves the other subclusters as they were.
        let kept = SubclusterBitmap::decode(old.bitmap, true).unwrap_or_default();
        let bitmap = kept.with(index(from), index(to) - index(from), SubclusterState::Data);
        L2Entry::subclusters(host, bitmap, geometry)
    }

    /// Writes guest data to the data file.
    pub(super) async fn put(&self, at: HostOffset, bytes: &[u8]) -> Result<(), Error> {
        self.refuse_metadata(at, ByteCount::from_usize(bytes.len())).await?;
        let file = self.data_file();
        if let Some(result) = file.try_write(at, bytes, Purpose::GuestData) {
            result?;
        } else {
            let buffer = IoBuffer::from_slice(bytes);
            let write = file.write(at, buffer, Purpose::GuestData);
            self.writer()?.change(write).await.0?;
        }
        self.metadata().barriers().touch();
        Ok(())
    }

    /// As [`Self::put`], from memory that the write owns meanwhile.
    async fn put_owned(&self, at: HostOffset, buffer: IoBuffer) -> Result<IoBuffer, Error> {
        self.refuse_metadata(at, ByteCount::from_usize(buffer.len())).await?;
        let file = self.data_file();
        let buffer = match file.try_write(at, &buffer, Purpose::GuestData) {
            Some(result) => {
                result?;
                buffer
            }
            None => {
                let write = file.write(at, buffer, Purpose::GuestData);
                let (result, buffer) = self.writer()?.change(write).await;
                result?;
                buffer
            }
        };
        self.metadata().barriers().touch();
        Ok(buffer)
    }

    /// Fails for a range that holds metadata: the mapping that led there is wrong, and the image is
    /// marked as corrupt.
    pub(crate) async fn refuse_metadata(
        &self,
        at: HostOffset,
        length: ByteCount,
    ) -> Result<(), Error> {
        if self.header().has_data_file() {
            return Ok(());
        }
        let geometry = self.geometry();
        let first = geometry.host_cluster(at);
        let last = geometry.host_cluster(HostOffset::new(at.get() + length.get() - 1));
        let count = last.get() - first.get() + 1;
        match self.writer()?.roles.holds_metadata(first, count) {
            None => Ok(()),
            Some(cluster) => {
                let at = geometry.host_cluster_start(cluster);
                let what = "guest data";
                Err(self.found_corrupt(Corruption::PointsIntoMetadata { what, at }).await)
            }
        }
    }

    /// Waits for a write-back when much is waiting for it.
    pub(crate) async fn make_room(&self) -> Result<(), Error> {
        match self.pressure()? {
            Pressure::Low => {}
            Pressure::Half => {
                self.writer()?.pressed.notify(1);
            }
            Pressure::Full => self.commit().await?,
        }
        Ok(())
    }

    /// How much waits for a commit: tables to be written, and clusters that become free by it. The
    /// file grows meanwhile, whatever is discarded.
    pub(crate) fn pressure(&self) -> Result<Pressure, Error> {
        let unlinked = self.writer()?.quarantine.waiting() * self.geometry().cluster_size();
        let dirty = self.metadata().dirty().bytes();
        Ok(if self.dirty_max() < dirty || UNLINKED_MAX < unlinked {
            Pressure::Full
        } else if self.dirty_max() / 2 < dirty || UNLINKED_MAX / 2 < unlinked {
            Pressure::Half
        } else {
            Pressure::Low
        })
    }
}
