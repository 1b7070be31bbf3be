//! An image that somebody brings along, without backing file and data file.

use std::sync::Arc;

use cowl_block::BlockError;
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{
    BeyondEnd, CacheLimits, Image, Layer, LayerFiles, LayerOptions, Preallocation, read_header,
};
use cowl_storage::Access;

use crate::executor::run_calm;
use crate::guest::read_all;
use crate::subject::{HostTraits, Made, MetadataReport, Subject, Traits};
use crate::subjects::qcow2::{check_image, leaks_max};
use crate::{Random, SimFile, SimOffload, SimStorage, SimWorld, WorldOptions};

/// The image, on a host drawn from a seed.
pub(crate) struct GivenImage {
    bytes: Vec<u8>,
    host: HostTraits,
    cluster: u64,
}

impl GivenImage {
    /// The image in `bytes`.
    pub(crate) fn new(bytes: Vec<u8>, seed: u64) -> Result<Self, BlockError> {
        let host = HostTraits::draw(&mut Random::of(seed, "given"));
        let mut image = Self { bytes, host, cluster: 0 };
        let world = SimWorld::new(WorldOptions::calm(), image.files());
        let header = run_calm(async { read_header(&world.storage(0)).await });
        let header = header.expect("a calm world answers at once")?;
        image.cluster = header.geometry.cluster_size();
        Ok(image)
    }

    fn files(&self) -> Vec<SimFile> {
        let (name, bytes) = ("image".to_owned(), self.bytes.clone());
        vec![SimFile { name, bytes, read_only: false }]
    }
}

impl Subject for GivenImage {
    type Device = Image<SimStorage>;

    fn traits(&self) -> Traits {
        Traits {
            alignment: 1,
            cluster: self.cluster,
            discard_unit: self.cluster,
            compresses: true,
            resizes: false,
            size_is_file_length: false,
        }
    }

    fn host(&self) -> HostTraits {
        self.host
    }

    fn make(&self) -> Result<Made, String> {
        let files = self.files();
        let world = SimWorld::new(WorldOptions::calm(), files.clone());
        let read = run_calm(async { read_all(&self.open(&world, Access::ReadOnly).await?).await });
        let read = read.ok_or("stuck while reading the image")?;
        let content = read.map_err(|error: BlockError| error.to_string())?;
        Ok(Made { files, content, snapshots: Vec::new() })
    }

    async fn open(&self, world: &SimWorld, access: Access) -> Result<Self::Device, BlockError> {
        let image = Arc::new(world.storage(0));
        let header = read_header(image.as_ref()).await?;
        let options = LayerOptions {
            access,
            cache: CacheLimits::STANDARD,
            beyond_end: BeyondEnd::ReadZeros,
            snapshot: None,
            offload: Some(Arc::new(SimOffload::new(world))),
        };
        let layer = Layer::open(LayerFiles { image, data: None }, header, options).await?;
        Ok(Image::new(vec![layer], None))
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

    async fn snapshots(&self, _: &SimWorld) -> Result<Vec<Vec<u8>>, BlockError> {
        Ok(Vec::new())
    }

    async fn promises_unchanged(&self, _: &SimWorld) -> Result<bool, BlockError> {
        Ok(false)
    }

    fn raw_view(&self) -> Option<usize> {
        None
    }

    fn qemu_format(&self) -> Option<&'static str> {
        Some("qcow2")
    }

    fn leaks_max(&self, device: &Self::Device) -> u64 {
        leaks_max(device)
    }
}
