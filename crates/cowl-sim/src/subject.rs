//! What is tested: a format that stores a disk in simulated files.

use cowl_block::{BlockDevice, BlockError};
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::Preallocation;
use cowl_storage::Access;

use crate::{Random, SimFile, SimWorld, Workload};

/// What a subject can do, and needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// Requests start and end at multiples of this.
    pub alignment: u64,
    /// Bytes of a cluster.
    pub cluster: u64,
    /// Discards may zero whole units of this, and nothing else.
    pub discard_unit: u64,
    /// Whether there are compressed writes.
    pub compresses: bool,
    /// Whether the size can change.
    pub resizes: bool,
    /// Whether the disk is as long as its file, whatever a crash makes of that.
    pub size_is_file_length: bool,
}

/// A new disk.
#[derive(Clone, Debug)]
pub struct Made {
    /// Its files.
    pub files: Vec<SimFile>,
    /// What the guest reads.
    pub content: Vec<u8>,
    /// What the guest reads of each internal snapshot.
    pub snapshots: Vec<Vec<u8>>,
}

/// What a look at the metadata found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MetadataReport {
    /// Rules broken.
    pub corruptions: u64,
    /// Clusters lost.
    pub leaks: u64,
    /// The metadata says itself that it needs repair before it is trusted.
    pub needs_repair: bool,
    /// The first findings.
    pub text: String,
}

/// A format under test.
#[expect(async_fn_in_trait, reason = "everything runs on one thread")]
pub trait Subject {
    /// An open disk.
    type Device: BlockDevice + 'static;

    /// What it can do.
    fn traits(&self) -> Traits;

    /// Options of the host that this subject draws: alignment, holes, discards.
    fn host(&self) -> HostTraits;

    /// Makes a disk.
    fn make(&self) -> Result<Made, String>;

    /// Opens the disk in the files of `world`.
    async fn open(&self, world: &SimWorld, access: Access) -> Result<Self::Device, BlockError>;

    /// Closes it; all is durable after success.
    async fn close(&self, device: Self::Device) -> Result<(), BlockError>;

    /// Writes whole clusters, compressed.
    async fn write_compressed(
        &self,
        device: &Self::Device,
        at: GuestOffset,
        bytes: &[u8],
    ) -> Result<(), BlockError>;

    /// Changes the size.
    async fn resize(
        &self,
        device: &Self::Device,
        size: ByteCount,
        preallocation: Preallocation,
    ) -> Result<(), BlockError>;

    /// Judges the metadata; `None` for a format without any.
    async fn check(&self, world: &SimWorld) -> Option<Result<MetadataReport, BlockError>>;

    /// What the guest reads of each internal snapshot.
    async fn snapshots(&self, world: &SimWorld) -> Result<Vec<Vec<u8>>, BlockError>;

    /// Whether the metadata promises that no byte has changed since the disk was made.
    async fn promises_unchanged(&self, world: &SimWorld) -> Result<bool, BlockError>;

    /// The file that reads like the disk at all times, where there is one.
    fn raw_view(&self) -> Option<usize>;

    /// The format's name in QEMU, where QEMU has something to check.
    fn qemu_format(&self) -> Option<&'static str>;

    /// What is done with it, where that is not drawn.
    fn script(&self) -> Option<Workload> {
        None
    }

    /// Clusters that a crash may lose while `device` is open.
    fn leaks_max(&self, device: &Self::Device) -> u64;
}

/// What kind of file the host gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostTraits {
    /// Alignment of I/O.
    pub io_alignment: u32,
    /// Block size.
    pub block_size: u32,
    /// Whether discards zero.
    pub can_discard: bool,
    /// Whether holes are told.
    pub knows_holes: bool,
}

impl HostTraits {
    /// Draws a host.
    pub fn draw(random: &mut Random) -> Self {
        Self {
            io_alignment: random.pick(&[1, 1, 512, 4096]),
            block_size: random.pick(&[512, 4096]),
            can_discard: random.chance(70),
            knows_holes: random.chance(50),
        }
    }
}
