//! The real engine: qcow2 images of every shape.

use std::sync::Arc;

use cowl_block::{BlockError, RawImage, RawOptions};
use cowl_format::{
    AutoclearFeatures, ByteCount, GuestOffset, Header, IncompatibleFeatures, Version,
};
use cowl_qcow2::{
    BeyondEnd, Builder, BuilderFiles, CreateOptions, FindingKind, Image, Layer, LayerFiles,
    LayerOptions, Preallocation, check, read_bitmaps, read_header,
};
use cowl_storage::{Access, IoBuffer, Purpose};

use crate::executor::run_calm;
use crate::geometry::{BACKING_NAME, Backing, DATA_NAME, DataFile, IMAGE_NAME, Shape};
use crate::guest::read_all;
use crate::stamp::{self, Texture};
use crate::subject::{HostTraits, Made, MetadataReport, Subject, Traits};
use crate::subjects::{bitmap_fixture, snapshot_fixture};
use crate::{
    Extent, Random, Scenario, SimFile, SimOffload, SimStorage, SimWorld, Workload, WorldOptions,
};

/// A qcow2 image on a host, both drawn from a seed.
#[derive(Clone, Debug)]
pub struct Qcow2Subject {
    shape: Shape,
    host: HostTraits,
    seed: u64,
    scenario: Option<Scenario>,
    /// An image that somebody brought along, instead of one that is made.
    given: Option<Vec<u8>>,
}

/// The snapshot's ID.
const SNAPSHOT: &str = "1";

impl Qcow2Subject {
    /// The one for a seed.
    #[must_use]
    pub fn draw(seed: u64, extent: Extent) -> Self {
        let mut random = Random::of(seed, "qcow2");
        let mut shape = Shape::draw(&mut random, extent);
        // Drawn apart, so that what older seeds draw stays the same.
        shape.has_bitmap = shape.version == Version::V3 && Random::of(seed, "bitmap").chance(12);
        Self { shape, host: HostTraits::draw(&mut random), seed, scenario: None, given: None }
    }

    /// The one of a history written by hand, on a host drawn from a seed.
    #[must_use]
    pub fn of(scenario: Scenario, seed: u64) -> Self {
        let host = HostTraits::draw(&mut Random::of(seed, "qcow2"));
        Self { shape: scenario.shape(), host, seed, scenario: Some(scenario), given: None }
    }

    /// The image in `bytes`, without a backing file and a data file, on a host drawn from a seed.
    pub(crate) fn given(bytes: Vec<u8>, seed: u64) -> Result<Self, BlockError> {
        let file = SimFile { name: IMAGE_NAME.to_owned(), bytes: bytes.clone(), read_only: false };
        let world = SimWorld::new(WorldOptions::calm(), vec![file]);
        let header = run_calm(async { read_header(&world.storage(0)).await });
        let header = header.expect("a calm world answers at once")?;
        let shape = Shape {
            version: header.version,
            cluster_bits: header.geometry.cluster_bits(),
            size: header.size.get(),
            tiny_caches: false,
            ..Shape::plain()
        };
        let host = HostTraits::draw(&mut Random::of(seed, "given"));
        Ok(Self { shape, host, seed, scenario: None, given: Some(bytes) })
    }

    /// What the disk is like.
    #[must_use]
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    fn options(&self, world: &SimWorld, access: Access) -> LayerOptions {
        LayerOptions {
            access,
            cache: self.shape.cache_limits(),
            beyond_end: BeyondEnd::ReadZeros,
            snapshot: None,
            offload: Some(Arc::new(SimOffload::new(world))),
        }
    }

    fn data_index(&self) -> Option<usize> {
        (self.shape.data_file != DataFile::Internal).then_some(1)
    }

    /// Opens the image; the snapshot instead of the disk where `snapshot` names it.
    async fn open_at(
        &self,
        world: &SimWorld,
        access: Access,
        snapshot: Option<String>,
    ) -> Result<Image<SimStorage>, BlockError> {
        let image = Arc::new(world.storage(0));
        let header = read_header(image.as_ref()).await?;
        let data = self.data_index().map(|index| Arc::new(world.storage(index)));
        let options = LayerOptions { snapshot, ..self.options(world, access) };
        let top = Layer::open(LayerFiles { image, data }, header, options).await?;
        let backing = 1 + self.data_index().map_or(0, |_| 1);
        let mut layers = vec![top];
        let mut base = None;
        match self.shape.backing {
            Backing::None => {}
            Backing::Raw(_) => {
                let purpose = Purpose::BackingData;
                let options = RawOptions { purpose, ..RawOptions::whole_file() };
                base = Some(RawImage::open(world.storage(backing), options).await?);
            }
            Backing::Qcow2(_) => {
                let image = Arc::new(world.storage(backing));
                let header = read_header(image.as_ref()).await?;
                let files = LayerFiles { image, data: None };
                let options = self.options(world, Access::ReadOnly);
                layers.push(Layer::open(files, header, options).await?);
            }
        }
        Ok(Image::new(layers, base))
    }

    /// The backing file and what it reads as, as long as it is.
    fn make_backing(&self) -> Result<Option<(SimFile, Vec<u8>)>, String> {
        let mut random = Random::of(self.seed, "backing");
        let size = match self.shape.backing {
            Backing::None => return Ok(None),
            Backing::Raw(size) | Backing::Qcow2(size) => size,
        };
        let content = content(size, 60, self.shape.cluster(), &mut random);
        let mut file =
            SimFile { name: BACKING_NAME.to_owned(), bytes: content.clone(), read_only: true };
        if matches!(self.shape.backing, Backing::Qcow2(_)) {
            let options =
                CreateOptions { cluster_size: 4096, ..CreateOptions::new(ByteCount::new(size)) };
            let files = build(&options, Preallocation::Off, &content)?;
            file.bytes.clone_from(&files[0].bytes);
        }
        Ok(Some((file, content)))
    }
}

/// Stamps in some clusters, zeros in the others.
fn content(size: u64, percent: u64, cluster: u64, random: &mut Random) -> Vec<u8> {
    let mut bytes = vec![0; ByteCount::new(size).as_usize()];
    let chunks = bytes.chunks_mut(ByteCount::new(cluster).as_usize());
    for (at, chunk) in (0..).step_by(ByteCount::new(cluster).as_usize()).zip(chunks) {
        if random.chance(percent) {
            stamp::fill(0, Texture::Plain, at, chunk);
        }
    }
    bytes
}

/// Makes an image whose clusters are stored unless they are zero.
fn build(
    options: &CreateOptions,
    preallocation: Preallocation,
    content: &[u8],
) -> Result<Vec<SimFile>, String> {
    let empty = |name: &str| SimFile { name: name.to_owned(), bytes: Vec::new(), read_only: false };
    let mut files = vec![empty(IMAGE_NAME)];
    if options.data_file.is_some() {
        files.push(empty(DATA_NAME));
    }
    let world = SimWorld::new(WorldOptions::calm(), files);
    let data = options.data_file.is_some().then(|| Arc::new(world.storage(1)));
    let files = BuilderFiles { image: Arc::new(world.storage(0)), data };
    let cluster = ByteCount::new(options.cluster_size).as_usize();
    let built = run_calm(async {
        if let Some(data) = &files.data {
            let length = ByteCount::new(options.rounded_size());
            cowl_storage::Storage::set_len(data.as_ref(), length, Purpose::FileLength).await?;
        }
        let builder = Builder::new(files, options)?;
        builder.preallocate(preallocation).await?;
        for (at, bytes) in (0..).step_by(cluster).zip(content.chunks(cluster)) {
            if bytes.iter().any(|byte| *byte != 0) {
                builder.write(GuestOffset::new(at), IoBuffer::from_slice(bytes)).await?;
            }
        }
        builder.finish(true).await
    });
    let built = built.ok_or("stuck while building the image")?;
    built.map_err(|error: cowl_qcow2::CreateError| error.to_string())?;
    Ok(world.files())
}

impl Subject for Qcow2Subject {
    type Device = Image<SimStorage>;

    fn traits(&self) -> Traits {
        let cluster = self.shape.cluster();
        Traits {
            alignment: 1,
            cluster,
            discard_unit: cluster,
            compresses: self.shape.data_file == DataFile::Internal,
            // Version 2 does not say how large the disk of a snapshot is.
            // Nor is a disk with a bitmap resized yet.
            resizes: !self.shape.has_snapshot && !self.shape.has_bitmap,
            size_is_file_length: false,
        }
    }

    fn host(&self) -> HostTraits {
        self.host
    }

    fn make(&self) -> Result<Made, String> {
        if let Some(bytes) = &self.given {
            let (name, bytes) = (IMAGE_NAME.to_owned(), bytes.clone());
            let files = vec![SimFile { name, bytes, read_only: false }];
            let content = self.read_new(&files)?;
            return Ok(Made { files, content, snapshots: Vec::new() });
        }
        let mut random = Random::of(self.seed, "content");
        let shape = &self.shape;
        let own = content(shape.size, shape.filled_percent, shape.cluster(), &mut random);
        let preallocation = match (shape.data_file, shape.preallocation) {
            (DataFile::Raw, Preallocation::Off) => Preallocation::Metadata,
            (_, other) => other,
        };
        let mut files = build(&shape.create_options(), preallocation, &own)?;
        if let Some((file, _)) = self.make_backing()? {
            files.push(file);
        }
        if shape.has_snapshot {
            snapshot_fixture::add(&mut files[0].bytes, SNAPSHOT)?;
        }
        if shape.has_bitmap {
            bitmap_fixture::add(&mut files[0].bytes)?;
        }
        let read = self.read_new(&files)?;
        let snapshots = if shape.has_snapshot { vec![read.clone()] } else { Vec::new() };
        self.compare_made(&own, &read)?;
        Ok(Made { files, content: read, snapshots })
    }

    async fn open(&self, world: &SimWorld, access: Access) -> Result<Self::Device, BlockError> {
        self.open_at(world, access, None).await
    }

    async fn close(&self, device: Self::Device) -> Result<(), BlockError> {
        Ok(device.close().await?)
    }

    async fn write_compressed(
        &self,
        device: &Self::Device,
        at: GuestOffset,
        bytes: &[u8],
    ) -> Result<(), BlockError> {
        Ok(device.write_compressed(at, bytes).await?)
    }

    async fn resize(
        &self,
        device: &Self::Device,
        size: ByteCount,
        preallocation: Preallocation,
    ) -> Result<(), BlockError> {
        Ok(device.resize(size, preallocation).await?)
    }

    async fn check(&self, world: &SimWorld) -> Option<Result<MetadataReport, BlockError>> {
        Some(check_image(world).await)
    }

    async fn snapshots(&self, world: &SimWorld) -> Result<Vec<Vec<u8>>, BlockError> {
        if !self.shape.has_snapshot {
            return Ok(Vec::new());
        }
        let snapshot = Some(SNAPSHOT.to_owned());
        let device = self.open_at(world, Access::ReadOnly, snapshot).await?;
        Ok(vec![read_all(&device).await?])
    }

    async fn promises_unchanged(&self, world: &SimWorld) -> Result<bool, BlockError> {
        let file = world.storage(0);
        let header = read_header(&file).await?;
        if !self.shape.has_bitmap || !header.autoclear.contains(AutoclearFeatures::BITMAPS) {
            return Ok(false);
        }
        let directory = read_bitmaps(&file, &header).await?;
        // The one bitmap has no bit set: where it may be trusted, nothing was written.
        Ok(!directory.marks().is_empty())
    }

    fn raw_view(&self) -> Option<usize> {
        self.data_index().filter(|_| self.shape.data_file == DataFile::Raw)
    }

    fn qemu_format(&self) -> Option<&'static str> {
        Some("qcow2")
    }

    fn script(&self) -> Option<Workload> {
        self.scenario.map(|scenario| scenario.workload())
    }

    fn leaks_max(&self, device: &Self::Device) -> u64 {
        leaks_max(device)
    }
}

impl Qcow2Subject {
    /// What the guest reads of a disk that nobody has used yet.
    fn read_new(&self, files: &[SimFile]) -> Result<Vec<u8>, String> {
        let world = SimWorld::new(WorldOptions::calm(), files.to_vec());
        let read = run_calm(async {
            read_all(&self.open_at(&world, Access::ReadOnly, None).await?).await
        });
        let read = read.ok_or("stuck while reading the new image")?;
        read.map_err(|error: BlockError| format!("the new image: {error}"))
    }

    /// A new disk reads as what was put in it, over what lies below.
    fn compare_made(&self, own: &[u8], read: &[u8]) -> Result<(), String> {
        let below = self.make_backing()?.map(|(_, content)| content).unwrap_or_default();
        let cluster = ByteCount::new(self.shape.cluster()).as_usize();
        for (start, found) in (0..).step_by(cluster).zip(read.chunks(cluster)) {
            let stored = &own[start..start + found.len()];
            let mut wanted = stored.to_vec();
            if stored.iter().all(|byte| *byte == 0) {
                let below = below.get(start..).unwrap_or_default();
                let length = below.len().min(wanted.len());
                wanted[..length].copy_from_slice(&below[..length]);
            }
            if wanted != found {
                return Err(format!("the new image reads wrong in the cluster at {start:#x}"));
            }
        }
        Ok(())
    }
}

/// Clusters that the engine says a crash may cost, and those of requests under way: at most about
/// as many as the disk has.
fn leaks_max(image: &Image<SimStorage>) -> u64 {
    let cluster = image.layers()[0].header().geometry.cluster_size();
    image.stats().reserved_clusters_max + image.size().get() / cluster
}

/// What the engine's own check says of the first file.
async fn check_image(world: &SimWorld) -> Result<MetadataReport, BlockError> {
    let file = world.storage(0);
    let header: Header = read_header(&file).await?;
    let report = check(&file, &header, None, &()).await?;
    let bad = |kind: FindingKind| kind != FindingKind::Leak;
    let findings = report.findings.iter();
    let mut texts: Vec<&str> =
        findings.clone().filter(|f| bad(f.kind)).map(|f| f.text.as_str()).collect();
    texts.extend(findings.filter(|f| !bad(f.kind)).map(|f| f.text.as_str()));
    texts.truncate(4);
    Ok(MetadataReport {
        corruptions: report.corruptions + report.check_errors,
        leaks: report.leaks,
        needs_repair: header.incompatible.contains(IncompatibleFeatures::DIRTY),
        text: texts.join("; "),
    })
}
