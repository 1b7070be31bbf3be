//! Images for models: made once, and opened over a stage for each round.

use std::sync::Arc;

use cowl_block::{RawImage, RawOptions};
use cowl_format::{ByteCount, GuestOffset};
use cowl_storage::{Access, MemoryStorage, Storage};
use shuttle::future::block_on;

use crate::interleavings::once;
use crate::interleavings::stage::Stage;
use crate::{
    BeyondEnd, BuilderFiles, CacheLimits, CreateOptions, Image, Layer, LayerFiles, LayerOptions,
    Preallocation, check, create, read_header,
};

pub(crate) const CLUSTER: u64 = 1024;

/// The whole disk: two L2 tables.
pub(crate) const SIZE: u64 = 192 * CLUSTER;

/// Hardly any room: tables leave the cache all the time.
const LIMITS: CacheLimits = CacheLimits { l2_bytes: 1024, refcount_bytes: 1024, decoded_bytes: 0 };

/// A file with an image whose first clusters hold one byte each: the first 0x10, the next 0x11.
pub(crate) fn image_of(clusters: u64) -> MemoryStorage {
    let file = Arc::new(MemoryStorage::new());
    let files = BuilderFiles { image: Arc::clone(&file), data: None };
    let options =
        CreateOptions { cluster_size: CLUSTER, ..CreateOptions::new(ByteCount::new(SIZE)) };
    pollster::block_on(create(files, &options, Preallocation::Off)).unwrap();
    let filled = Arc::clone(&file);
    once(move || {
        let image = open(&filled, Access::ReadWrite);
        for (cluster, value) in (0..clusters).zip(0x10..) {
            block_on(image.write_from(at(cluster), &[value; 1024])).unwrap();
        }
        block_on(image.close()).unwrap();
    });
    file.snapshot()
}

/// Where a guest cluster starts.
pub(crate) fn at(cluster: u64) -> GuestOffset {
    GuestOffset::new(cluster * CLUSTER)
}

/// The layer of an image.
fn layer<S: Storage>(file: &Arc<S>, access: Access) -> Layer<S> {
    let header = block_on(read_header(file.as_ref())).unwrap();
    let options = LayerOptions {
        access,
        cache: LIMITS,
        beyond_end: BeyondEnd::ReadZeros,
        snapshot: None,
        offload: None,
    };
    let files = LayerFiles { image: Arc::clone(file), data: None };
    block_on(Layer::open(files, header, options)).unwrap()
}

pub(crate) fn open<S: Storage>(file: &Arc<S>, access: Access) -> Image<S> {
    Image::new(vec![layer(file, access)], None)
}

/// The same over a raw file of one byte throughout.
pub(crate) fn open_over(file: &Arc<Stage>, base: u8) -> Image<Stage> {
    let base = Stage::new(MemoryStorage::from_vec(vec![base; SIZE as usize]));
    let base = block_on(RawImage::open(base, RawOptions::whole_file())).unwrap();
    Image::new(vec![layer(file, Access::ReadWrite)], Some(base))
}

/// What a cluster reads as, where all of its bytes are the same.
pub(crate) fn value_of<S: Storage>(image: &Image<S>, cluster: u64) -> u8 {
    let mut bytes = [0; CLUSTER as usize];
    block_on(image.read_into(at(cluster), &mut bytes)).unwrap();
    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "cluster {cluster} is a mixture");
    bytes[0]
}

/// The metadata is right, and this many clusters leak at most.
pub(crate) fn assert_sound(file: &MemoryStorage, leaks_max: u64) {
    let header = block_on(read_header(file)).unwrap();
    let report = block_on(check(file, &header, None, &())).unwrap();
    assert_eq!((report.corruptions, report.check_errors), (0, 0), "{:?}", report.findings);
    assert!(report.leaks <= leaks_max, "{} leaks", report.leaks);
}
