//! The lookup: one guest offset of one layer to the run it starts.
//!
//!   guest offset -> L1 entry -> L2 table -> slice -> entry -> run
//!
//! The L1 table is in memory whole. When the slice is in memory too the answer needs no await, no
//! lock and no allocation; otherwise the slice is loaded first. A run ends at the end of its slice
//! at the latest: whoever wants more asks again.
//!
//! The steps of a lookup in memory are inlined by force, here and where a read uses them: what they
//! return has room for every error, and moving that about took a sixth of a read's instructions.

use cowl_format::{ByteCount, GuestOffset, HostCluster, HostOffset, L1Entry, L2Entry};
use cowl_storage::Storage;

use crate::cache::L2Table;
use crate::mapping::{Run, RunKind};
use crate::open::BeyondEnd;
use crate::{Error, Layer};

/// What the L1 table says about an offset.
enum Top {
    /// No L2 table: unallocated for this many bytes.
    Unallocated(ByteCount),
    /// The L2 table in this cluster.
    Table { cluster: HostCluster, is_copied: bool },
}

fn unallocated(length: ByteCount) -> Run {
    Run { length, kind: RunKind::Unallocated { host: None }, is_sole_owner: false }
}

impl<S: Storage> Layer<S> {
    /// The run at `guest`, at most `length_max` bytes. `guest` lies within the layer.
    pub(crate) async fn lookup(
        &self,
        guest: GuestOffset,
        length_max: ByteCount,
    ) -> Result<Run, Error> {
        match self.lookup_now(guest, length_max)? {
            Some(run) => Ok(run),
            None => self.lookup_loading(guest, length_max).await,
        }
    }

    /// As [`lookup`](Self::lookup), `None` where a slice would have to be loaded.
    #[inline(always)]
    pub(crate) fn lookup_now(
        &self,
        guest: GuestOffset,
        length_max: ByteCount,
    ) -> Result<Option<Run>, Error> {
        let (cluster, is_copied) = match self.top(guest, length_max)? {
            Top::Unallocated(length) => return Ok(Some(unallocated(length))),
            Top::Table { cluster, is_copied } => (cluster, is_copied),
        };
        let index = self.geometry().l2_index(guest);
        let metadata = self.metadata();
        let Some(first) = metadata.l2_peek(cluster, index, |slice| slice.entry(index.get())) else {
            return Ok(None);
        };
        let first = first.expect("the slice holds the entry for the offset");
        let mut run = self.run_of(first, is_copied, guest)?;
        if length_max <= run.length {
            run.length = length_max;
            return Ok(Some(run));
        }
        self.lookup_clusters_now(guest, length_max, cluster, is_copied)
    }

    /// The same for a run of several clusters, whose L2 table is in `cluster`.
    fn lookup_clusters_now(
        &self,
        guest: GuestOffset,
        length_max: ByteCount,
        cluster: HostCluster,
        is_copied: bool,
    ) -> Result<Option<Run>, Error> {
        let hit = self.metadata().l2_peek(cluster, self.geometry().l2_index(guest), |slice| {
            self.run_in_slice(guest, length_max, is_copied, |index| slice.entry(index))
        });
        hit.transpose()
    }

    async fn lookup_loading(
        &self,
        guest: GuestOffset,
        length_max: ByteCount,
    ) -> Result<Run, Error> {
        let (cluster, is_copied) = match self.top(guest, length_max)? {
            Top::Unallocated(length) => return Ok(unallocated(length)),
            Top::Table { cluster, is_copied } => (cluster, is_copied),
        };
        let index = self.geometry().l2_index(guest);
        let table: std::sync::Arc<L2Table> = self.metadata().l2_load(cluster, index).await?;
        let slice = table.slice(index).expect("just loaded, and tables lose no slice");
        self.run_in_slice(guest, length_max, is_copied, |index| slice.entry(index))
    }

    #[inline(always)]
    fn top(&self, guest: GuestOffset, length_max: ByteCount) -> Result<Top, Error> {
        let geometry = self.geometry();
        let index = geometry.l1_index(guest).expect("guest lies within the layer").get() as usize;
        let table = |entry: &L1Entry| entry.table(geometry).map_err(|fault| self.corrupt(fault));
        let l1 = self.l1();
        let entry = l1.get(index);
        if let Some(host) = table(&entry)? {
            let cluster = geometry.host_cluster(host);
            return Ok(Top::Table { cluster, is_copied: entry.is_copied() });
        }
        let coverage = geometry.l2_coverage();
        let mut length = coverage - guest.get() % coverage;
        let mut next = index + 1;
        while length < length_max.get() {
            let entry = l1.get(next);
            if table(&entry)?.is_some() {
                break;
            }
            length += coverage;
            next += 1;
        }
        Ok(Top::Unallocated(length_max.min(ByteCount::new(length))))
    }

    /// The run that the entries from `guest` on make; `entry` gives `None` past the slice.
    #[inline(always)]
    fn run_in_slice(
        &self,
        guest: GuestOffset,
        length_max: ByteCount,
        is_copied: bool,
        entry: impl Fn(u32) -> Option<L2Entry>,
    ) -> Result<Run, Error> {
        let mut index = self.geometry().l2_index(guest).get();
        let first = entry(index).expect("the slice holds the entry for the offset");
        let mut run = self.run_of(first, is_copied, guest)?;
        let cluster_size = self.geometry().cluster_size();
        while run.length < length_max {
            let at = guest + run.length;
            // Only a run that reaches the end of its cluster can go on in the next entry; within
            // the cluster a further piece is of another kind.
            if !at.get().is_multiple_of(cluster_size) {
                break;
            }
            index += 1;
            let Some(next) = entry(index) else { break };
            let next = self.run_of(next, is_copied, at)?;
            if !run.is_continued_by(&next) {
                break;
            }
            run.length = run.length + next.length;
        }
        run.length = run.length.min(length_max);
        Ok(run)
    }

    #[inline(always)]
    fn run_of(&self, entry: L2Entry, is_copied: bool, guest: GuestOffset) -> Result<Run, Error> {
        let header = self.header();
        if entry.raw == 0 && entry.bitmap == 0 {
            // In every version and kind of image: nothing here. A chain has many of these.
            let geometry = &header.geometry;
            let rest = geometry.cluster_size() - geometry.offset_in_cluster(guest).get();
            return Ok(unallocated(ByteCount::new(rest)));
        }
        let mapping = entry
            .decode(guest, header.geometry, header.version, header.has_data_file())
            .map_err(|fault| self.corrupt(fault))?;
        // Whoever shares the table shares what it points to.
        let is_sole_owner = is_copied && entry.is_copied() && !entry.is_compressed();
        let run = Run::in_cluster(mapping, is_sole_owner, guest, header.geometry);
        if self.beyond_end() == BeyondEnd::Refuse {
            self.refuse_beyond_end(&run)?;
        }
        Ok(run)
    }

    fn refuse_beyond_end(&self, run: &Run) -> Result<(), Error> {
        let geometry = self.geometry();
        let host: HostOffset = match run.kind {
            // The cluster counts, not the run: the last cluster of a file may be cut short, and
            // whether it is readable must not depend on where in it a read starts.
            RunKind::Data { host } => geometry.host_cluster_start(geometry.host_cluster(host)),
            RunKind::Compressed { descriptor, .. } => descriptor.host(),
            RunKind::Unallocated { .. } | RunKind::Zero { .. } => return Ok(()),
        };
        let file = self.data_file_length();
        if host.get() < file.get() {
            return Ok(());
        }
        let what = "guest data";
        Err(self.corrupt(cowl_format::Corruption::PastEndOfFile { what, at: host, file }))
    }
}
