//! Images in memory for the bodies, and what they hold.

use std::sync::Arc;

use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{
    BeyondEnd, BuilderFiles, CacheLimits, CreateOptions, Image, Layer, LayerFiles, LayerOptions,
    Preallocation, check, create, read_header,
};
use cowl_storage::{Access, MemoryStorage};
use pollster::block_on;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const GIB: u64 = 1 << 30;
pub(crate) const TIB: u64 = 1 << 40;

/// Bytes of a cluster of all images here.
pub(crate) const CLUSTER: u64 = 64 * KIB;

/// Bytes of a request.
pub(crate) const BLOCK: usize = 4096;

/// Where in its cluster a block lies: an overlay has something to copy before it and behind it.
pub(crate) const SKIP: u64 = 24 * KIB;

/// Entries of a slice of an L2 table: tables are cached and written by blocks of the host, 4 KiB.
pub(crate) const SLICE_CLUSTERS: u64 = 512;

pub(crate) type File = Arc<MemoryStorage>;
pub(crate) type MemoryImage = Image<MemoryStorage>;

/// A new image of `size` bytes.
pub(crate) fn new_file(size: u64) -> File {
    new_file_with(&CreateOptions::new(ByteCount::new(size)), Preallocation::Off)
}

pub(crate) fn new_file_with(options: &CreateOptions, preallocation: Preallocation) -> File {
    let file = File::default();
    let files = BuilderFiles { image: Arc::clone(&file), data: None };
    block_on(create(files, options, preallocation)).expect("memory takes every image");
    file
}

/// Options of a new overlay of `size` bytes. No file is ever looked for by that name.
pub(crate) fn overlay_options(size: u64) -> CreateOptions {
    CreateOptions {
        backing: Some(b"base.qcow2".to_vec()),
        backing_format: Some(b"qcow2".to_vec()),
        ..CreateOptions::new(ByteCount::new(size))
    }
}

/// An image as an embedder with the standard caches opens it.
pub(crate) fn open_layer(file: &File, access: Access) -> Layer<MemoryStorage> {
    let options = LayerOptions {
        access,
        cache: CacheLimits::STANDARD,
        beyond_end: BeyondEnd::ReadZeros,
        snapshot: None,
        offload: None,
    };
    let header = block_on(read_header(file.as_ref())).expect("the header is ours");
    let files = LayerFiles { image: Arc::clone(file), data: None };
    block_on(Layer::open(files, header, options)).expect("the image is ours")
}

pub(crate) fn open(file: &File, access: Access) -> MemoryImage {
    Image::new(vec![open_layer(file, access)], None)
}

/// Where the block of a cluster starts.
pub(crate) fn block_at(cluster: u64) -> GuestOffset {
    GuestOffset::new(cluster * CLUSTER + SKIP)
}

/// Makes `block` the one with this number: different from every other, and from zeros.
pub(crate) fn stamp(block: &mut [u8], number: u64) {
    block[..8].copy_from_slice(&(number + 1).to_be_bytes());
    block[BLOCK - 8..].copy_from_slice(&(number + 1).to_le_bytes());
}

pub(crate) fn new_block(number: u64) -> Vec<u8> {
    let mut block = vec![0x5a; BLOCK];
    stamp(&mut block, number);
    block
}

pub(crate) fn write_block(image: &MemoryImage, cluster: u64, number: u64) {
    block_on(image.write_from(block_at(cluster), &new_block(number))).expect("memory takes it");
}

/// Writes the numbers of `clusters` into their blocks, and closes the image.
pub(crate) fn fill_blocks(file: &File, clusters: impl Iterator<Item = u64>) {
    let image = open(file, Access::ReadWrite);
    clusters.for_each(|cluster| write_block(&image, cluster, cluster));
    block_on(image.close()).expect("memory takes it");
}

/// Panics unless a cluster holds the block with `number`, and `around` elsewhere.
pub(crate) fn check_cluster(image: &MemoryImage, cluster: u64, number: u64, around: u8) {
    let skip = usize::try_from(SKIP).expect("a part of a cluster");
    let mut expected = vec![around; usize::try_from(CLUSTER).expect("a cluster fits")];
    expected[skip..skip + BLOCK].copy_from_slice(&new_block(number));
    let mut bytes = vec![0; expected.len()];
    let at = GuestOffset::new(cluster * CLUSTER);
    block_on(image.read_into(at, &mut bytes)).expect("the cluster is ours");
    assert!(bytes == expected, "cluster {cluster} does not hold block {number}");
}

/// Panics unless a cluster holds the block with `number`.
pub(crate) fn check_block(image: &MemoryImage, cluster: u64, number: u64) {
    let mut block = vec![0; BLOCK];
    block_on(image.read_into(block_at(cluster), &mut block)).expect("the block is ours");
    assert!(block == new_block(number), "cluster {cluster} does not hold block {number}");
}

/// Panics unless the metadata in the file is sound. Clusters that an open image has reserved are
/// leaks to a check, and no fault.
pub(crate) fn check_metadata(file: &File) {
    let header = block_on(read_header(file.as_ref())).expect("the header is ours");
    let report = block_on(check(file.as_ref(), &header, None, &())).expect("memory reads it");
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{report:?}");
}

/// Slices that scattered writes go to.
pub(crate) const SLICES: u64 = 256;

/// Bytes of a disk with so many slices.
pub(crate) const fn size_of_slices(slices: u64) -> u64 {
    slices * SLICE_CLUSTERS * CLUSTER
}

/// An image of so many slices that has all of its tables: the first cluster of each slice is
/// written.
pub(crate) fn file_with_tables(slices: u64) -> File {
    let file = new_file(size_of_slices(slices));
    fill_blocks(&file, (0..slices).map(|slice| slice * SLICE_CLUSTERS));
    file
}

/// A walk that goes to another slice each time and never twice to the same cluster, nor to one
/// that [`file_with_tables`] has written.
pub(crate) fn scattered(number: u64) -> u64 {
    // Odd: every slice once in each round.
    let slice = number * 97 % SLICES;
    slice * SLICE_CLUSTERS + 1 + number / SLICES
}
