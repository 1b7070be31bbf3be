//! A guest that knows what it may read: every sector it writes tells who wrote it.

use std::sync::Arc;

use cowl_block::{RawImage, RawOptions, ZeroRequest};
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{
    BeyondEnd, BuilderFiles, CacheLimits, CreateOptions, Image, Layer, LayerFiles, LayerOptions,
    Preallocation, create, read_header,
};
use cowl_storage::{Access, FaultStorage, MemoryStorage, Storage};
use futures_util::future::join_all;
use pollster::block_on;

use super::storage::{Lab, LabStorage};

/// A file of an experiment, which can be made to fail.
pub(crate) type Disk = FaultStorage<LabStorage>;

pub(crate) const SECTOR: u64 = 512;

/// One request; numbers are sectors.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Write(u64, u64),
    Zero(u64, u64),
    ZeroKeeping(u64, u64),
    Discard(u64, u64),
    /// From which sector, how many.
    Compressed(u64, u64),
    Flush,
    Resize(u64),
    /// All at once; they touch different sectors.
    Together(Vec<Step>),
}

/// An image to experiment with.
#[derive(Clone)]
pub(crate) struct Setup {
    pub(crate) options: CreateOptions,
    /// What lies below.
    pub(crate) base: Option<Vec<u8>>,
    pub(crate) limits: CacheLimits,
    /// Done, flushed and closed before the experiment.
    pub(crate) before: Vec<Step>,
    /// Whether an internal snapshot shares all of that.
    pub(crate) snapshot: bool,
    /// Whether the host gives discarded ranges back; else they keep their bytes.
    pub(crate) can_discard: bool,
}

impl Setup {
    pub(crate) fn new(cluster_size: u64, clusters: u64) -> Self {
        let size = ByteCount::new(cluster_size * clusters);
        Self {
            options: CreateOptions { cluster_size, ..CreateOptions::new(size) },
            base: None,
            limits: CacheLimits::STANDARD,
            before: Vec::new(),
            snapshot: false,
            can_discard: true,
        }
    }
}

/// What one sector may read as.
#[derive(Clone, Debug)]
struct Version {
    /// Length of the log when it was written, and when that was acknowledged.
    issued: usize,
    acknowledged: usize,
    value: u64,
}

/// An image with its files, and all that was ever written to it.
pub(crate) struct Guest {
    pub(crate) setup: Setup,
    pub(crate) lab: Lab,
    /// The files at the beginning.
    pub(crate) start: Vec<Vec<u8>>,
    pub(crate) files: Vec<Arc<Disk>>,
    pub(crate) image: Option<Image<Disk>>,
    sectors: Vec<Vec<Version>>,
    /// Sizes in sectors.
    sizes: Vec<Version>,
    /// When each flush was issued and when it returned.
    flushes: Vec<(usize, usize)>,
    /// What the next request writes.
    pub(crate) next_value: u64,
}

/// Opens an image made of these files.
pub(crate) async fn open<S: Storage>(
    files: &[Arc<S>],
    base: Option<S>,
    access: Access,
    limits: CacheLimits,
) -> Result<Image<S>, cowl_qcow2::Error> {
    let header = read_header(files[0].as_ref()).await?;
    let options = LayerOptions {
        access,
        cache: limits,
        beyond_end: BeyondEnd::ReadZeros,
        snapshot: None,
        offload: None,
    };
    let files = LayerFiles { image: Arc::clone(&files[0]), data: files.get(1).cloned() };
    let layer = Layer::open(files, header, options).await?;
    let base = match base {
        Some(base) => Some(RawImage::open(base, RawOptions::whole_file()).await.unwrap()),
        None => None,
    };
    Ok(Image::new(vec![layer], base))
}

/// Everything that the guest reads.
pub(crate) fn content_of<S: Storage>(image: &Image<S>) -> Vec<u8> {
    let mut bytes = vec![0xaa; image.size().as_usize()];
    block_on(image.read_into(GuestOffset::ZERO, &mut bytes)).unwrap();
    bytes
}

/// The bytes that say `value` was written to `sector`.
fn marked(sector: u64, value: u64) -> impl Iterator<Item = u8> {
    let word = if value == 0 { 0 } else { value << 32 | (sector + 1) };
    std::iter::repeat_n(word.to_be_bytes(), 64).flatten()
}

impl Guest {
    pub(crate) fn new(setup: Setup) -> Self {
        let image = Arc::new(MemoryStorage::new());
        let data = setup.options.data_file.as_ref().map(|_| Arc::new(MemoryStorage::new()));
        let files = BuilderFiles { image: Arc::clone(&image), data: data.clone() };
        block_on(create(files, &setup.options, Preallocation::Off)).unwrap();
        let mut start = vec![image.to_vec()];
        start.extend(data.map(|data| data.to_vec()));
        let mut first = Self::over(setup.clone(), start);
        let sectors = first.sectors.len() as u64;
        if let Some(base) = &mut first.setup.base {
            // Each sector can be told from all others.
            base.truncate(base.len() / 512 * 512);
            for (sector, bytes) in (0..).zip(base.chunks_mut(512)) {
                bytes.iter_mut().zip(marked(sector, 1)).for_each(|(to, from)| *to = from);
                if sector < sectors {
                    first.sectors[usize::try_from(sector).unwrap()][0].value = 1;
                }
            }
        }
        first.open();
        for step in &setup.before {
            first.run(step);
        }
        first.close();
        let mut start: Vec<Vec<u8>> = first.contents().iter().map(MemoryStorage::to_vec).collect();
        if setup.snapshot {
            let scratch = super::Scratch::new();
            scratch.write("image", &start[0]);
            scratch.run("qemu-img snapshot -c one image");
            start[0] = scratch.read("image");
        }
        let mut guest = Self::over(Setup { base: first.setup.base, ..setup }, start);
        guest.next_value = first.next_value;
        guest.sectors = first.sectors.into_iter().map(|mut all| vec![all.pop().unwrap()]).collect();
        guest.sizes = vec![first.sizes.pop().unwrap()];
        for version in guest.sectors.iter_mut().chain([&mut guest.sizes]).flatten() {
            (version.issued, version.acknowledged) = (0, 0);
        }
        guest.open();
        guest
    }

    /// A guest of these files, closed, which read as zeros.
    pub(crate) fn over(setup: Setup, start: Vec<Vec<u8>>) -> Self {
        let lab = Lab::default();
        lab.set_can_discard(setup.can_discard);
        let storage = |(file, bytes): (usize, &Vec<u8>)| {
            let memory = MemoryStorage::from_vec(bytes.clone());
            Arc::new(FaultStorage::new(LabStorage::new(memory, &lab, file)))
        };
        let files = start.iter().enumerate().map(storage).collect();
        let version = |value| Version { issued: 0, acknowledged: 0, value };
        let sectors = setup.options.rounded_size() / SECTOR;
        Self {
            setup,
            lab: lab.clone(),
            start,
            files,
            image: None,
            sectors: vec![vec![version(0)]; usize::try_from(sectors).unwrap()],
            sizes: vec![version(sectors)],
            flushes: vec![(0, 0)],
            next_value: 2,
        }
    }

    pub(crate) fn open(&mut self) {
        let lab = Lab::default();
        let base = self.setup.base.clone();
        let base = base.map(|bytes| {
            FaultStorage::new(LabStorage::new(MemoryStorage::from_vec(bytes), &lab, 9))
        });
        let image = open(&self.files, base, Access::ReadWrite, self.setup.limits);
        self.image = Some(block_on(image).unwrap());
    }

    pub(crate) fn image(&self) -> &Image<Disk> {
        self.image.as_ref().unwrap()
    }

    pub(crate) fn close(&mut self) {
        let issued = self.lab.mark();
        block_on(self.image.take().unwrap().close()).unwrap();
        self.flushes.push((issued, self.lab.mark()));
    }

    /// Does one step, which has to succeed.
    pub(crate) fn run(&mut self, step: &Step) {
        self.issue(step);
        block_on(self.request(step)).unwrap();
        self.acknowledge(step);
    }

    /// Notes that a step is about to be done: from now on its result may show.
    pub(crate) fn issue(&mut self, step: &Step) {
        let issued = self.lab.mark();
        match step {
            Step::Together(steps) => steps.iter().for_each(|step| self.issue(step)),
            Step::Flush => self.flushes.push((issued, usize::MAX)),
            Step::Resize(size) => {
                let end = (*size).max(self.sectors.len() as u64);
                let version = |value| Version { issued, acknowledged: usize::MAX, value };
                let first = (*size).min(self.sizes.last().unwrap().value);
                self.sectors.resize(usize::try_from(end).unwrap(), vec![version(0)]);
                for sector in first..end {
                    self.sectors[usize::try_from(sector).unwrap()].push(version(0));
                }
                self.sizes.push(version(*size));
            }
            _ => {
                let (first, count, value) = self.effect(step);
                for sector in first..first + count {
                    let version = Version { issued, acknowledged: usize::MAX, value };
                    self.sectors[usize::try_from(sector).unwrap()].push(version);
                }
            }
        }
        if !matches!(step, Step::Together(_)) {
            self.next_value += 1;
        }
    }

    /// Which sectors a step changes, and to what.
    fn effect(&self, step: &Step) -> (u64, u64, u64) {
        match *step {
            Step::Write(first, count) | Step::Compressed(first, count) => {
                (first, count, self.next_value)
            }
            Step::Zero(first, count) | Step::ZeroKeeping(first, count) => (first, count, 0),
            Step::Discard(first, count) => {
                let unit = self.setup.options.cluster_size / SECTOR;
                let (from, to) = (first.next_multiple_of(unit), (first + count) / unit * unit);
                (from, to.saturating_sub(from), 0)
            }
            _ => (0, 0, 0),
        }
    }

    /// Notes that a step that was issued has succeeded.
    pub(crate) fn acknowledge(&mut self, step: &Step) {
        let now = self.lab.mark();
        let open = |version: &&mut Version| version.acknowledged == usize::MAX;
        match step {
            Step::Flush => {
                self.flushes.iter_mut().filter(|flush| flush.1 == usize::MAX).for_each(|flush| {
                    flush.1 = now;
                });
            }
            _ => {
                let all = self.sectors.iter_mut().chain([&mut self.sizes]).flatten();
                all.filter(open).for_each(|version| version.acknowledged = now);
            }
        }
        // A change of size is durable when it returns.
        if let Step::Resize(_) = step {
            self.flushes.push((now, now));
        }
    }

    /// Notes that a step that was issued has failed, or was dropped: its result may show, or not.
    pub(crate) fn give_up(&mut self) {
        self.flushes.retain(|flush| flush.1 != usize::MAX);
        let all = self.sectors.iter_mut().chain([&mut self.sizes]).flatten();
        let open = all.filter(|version| version.acknowledged == usize::MAX);
        open.for_each(|version| version.acknowledged = usize::MAX - 1);
    }

    /// The files as they are now.
    pub(crate) fn contents(&self) -> Vec<MemoryStorage> {
        self.files.iter().map(|file| file.inner().content()).collect()
    }

    /// The request behind a step that was just issued.
    pub(crate) async fn request(&self, step: &Step) -> Result<(), cowl_qcow2::Error> {
        let mut value = self.next_value;
        if let Step::Together(steps) = step {
            value -= steps.len() as u64;
            let all = (value..).zip(steps).map(|(value, step)| self.request_one(step, value));
            return join_all(all).await.into_iter().collect();
        }
        self.request_one(step, value - 1).await
    }

    pub(crate) async fn request_one(
        &self,
        step: &Step,
        value: u64,
    ) -> Result<(), cowl_qcow2::Error> {
        request_of(self.image(), step, value).await
    }

    /// Compares what is read with what may be read once the log has `cut` events.
    pub(crate) fn judge(&self, cut: usize, bytes: &[u8], what: &dyn Fn() -> String) {
        let flushed = self.flushes.iter().filter(|(_, returned)| *returned <= cut);
        let flushed = flushed.map(|(issued, _)| *issued).max().unwrap();
        let allowed = |versions: &[Version]| -> Vec<u64> {
            let last = versions.iter().rposition(|version| version.acknowledged <= flushed);
            let later = versions[last.map_or(0, |last| last)..].iter();
            later.filter(|version| version.issued <= cut).map(|version| version.value).collect()
        };
        let size = bytes.len() as u64 / SECTOR;
        let sizes = allowed(&self.sizes);
        assert!(sizes.contains(&size), "{}: size {size}, not one of {sizes:?}", what());
        for (sector, (read, versions)) in (0..).zip(bytes.chunks(512).zip(&self.sectors)) {
            let values = allowed(versions);
            let is_one = values.iter().any(|value| read.iter().copied().eq(marked(sector, *value)));
            assert!(
                is_one,
                "{}: sector {sector} begins {:02x?}, not with one of {values:x?} ({versions:?})",
                what(),
                &read[..8]
            );
        }
    }
}

/// The request of one step, which writes `value`.
pub(crate) async fn request_of(
    image: &Image<Disk>,
    step: &Step,
    value: u64,
) -> Result<(), cowl_qcow2::Error> {
    let at = |sector: u64| GuestOffset::new(sector * SECTOR);
    let count = |sectors: u64| ByteCount::new(sectors * SECTOR);
    let bytes = |first: u64, count: u64| -> Vec<u8> {
        (first..first + count).flat_map(|sector| marked(sector, value)).collect()
    };
    match *step {
        Step::Write(first, n) => image.write_from(at(first), &bytes(first, n)).await,
        Step::Zero(first, n) => image.zero(at(first), count(n), ZeroRequest::MayUnmap).await,
        Step::ZeroKeeping(first, n) => {
            image.zero(at(first), count(n), ZeroRequest::KeepAllocated).await
        }
        Step::Discard(first, n) => image.discard(at(first), count(n)).await,
        Step::Compressed(first, n) => image.write_compressed(at(first), &bytes(first, n)).await,
        Step::Flush => image.flush().await,
        Step::Resize(size) => image.resize(count(size), Preallocation::Off).await,
        Step::Together(_) => unreachable!("steps of steps"),
    }
}
