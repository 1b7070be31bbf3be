//! The raw format: the file is the disk.

use cowl_block::{BlockError, RawImage, RawOptions};
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::Preallocation;
use cowl_storage::Access;

use crate::stamp::{self, Texture};
use crate::subject::{HostTraits, Made, MetadataReport, Subject, Traits};
use crate::{Random, SimFile, SimStorage, SimWorld};

/// A raw image on a host drawn from a seed.
#[derive(Clone, Debug)]
pub struct RawSubject {
    host: HostTraits,
    size: u64,
}

impl RawSubject {
    /// The one for a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::of(seed, "raw");
        let host = HostTraits::draw(&mut random);
        let size = (1 + random.below(64)) * 4096;
        Self { host, size }
    }
}

impl Subject for RawSubject {
    type Device = RawImage<SimStorage>;

    fn traits(&self) -> Traits {
        Traits {
            alignment: 1,
            cluster: 4096,
            discard_unit: 1,
            compresses: false,
            resizes: true,
            size_is_file_length: true,
        }
    }

    fn host(&self) -> HostTraits {
        self.host
    }

    fn make(&self) -> Result<Made, String> {
        let size = usize::try_from(self.size).expect("small");
        let mut bytes = vec![0; size];
        stamp::fill(0, Texture::Plain, 0, &mut bytes[..size / 2]);
        let file = SimFile { name: "disk.raw".to_owned(), bytes, read_only: false };
        let content = file.bytes.clone();
        Ok(Made { files: vec![file], content, snapshots: Vec::new() })
    }

    async fn open(&self, world: &SimWorld, _: Access) -> Result<Self::Device, BlockError> {
        RawImage::open(world.storage(0), RawOptions::whole_file()).await
    }

    async fn close(&self, device: Self::Device) -> Result<(), BlockError> {
        cowl_block::BlockDevice::flush(&device).await
    }

    async fn write_compressed(
        &self,
        _: &Self::Device,
        _: GuestOffset,
        _: &[u8],
    ) -> Result<(), BlockError> {
        Err(BlockError::Unsupported { what: "compression" })
    }

    async fn resize(
        &self,
        device: &Self::Device,
        size: ByteCount,
        _: Preallocation,
    ) -> Result<(), BlockError> {
        device.resize(size).await
    }

    async fn check(&self, _: &SimWorld) -> Option<Result<MetadataReport, BlockError>> {
        None
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
        None
    }

    fn leaks_max(&self, _: &Self::Device) -> u64 {
        0
    }
}
