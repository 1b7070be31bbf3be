//! How many barriers durability costs, counted where they reach the storage.

use std::sync::Arc;

use cowl_block::{BlockDevice, RawImage, RawOptions};
use cowl_format::{ByteCount, GuestOffset};
use cowl_qcow2::{
    BeyondEnd, BuilderFiles, CacheLimits, CreateOptions, Image, Layer, LayerFiles, LayerOptions,
    Preallocation, create, read_header,
};
use cowl_storage::{Access, MemoryStorage, Operation, TraceStorage};
use pollster::block_on;

type Traced = TraceStorage<MemoryStorage>;

const CLUSTER: u64 = 65_536;
const SIZE: u64 = 1 << 30;

fn open(base: Option<Vec<u8>>) -> (Arc<Traced>, Image<Traced>) {
    let file = Arc::new(TraceStorage::new(MemoryStorage::new()));
    let files = BuilderFiles { image: Arc::clone(&file), data: None };
    let options = CreateOptions::new(ByteCount::new(SIZE));
    block_on(create(files, &options, Preallocation::Off)).unwrap();
    let header = block_on(read_header(file.as_ref())).unwrap();
    let options = LayerOptions {
        access: Access::ReadWrite,
        cache: CacheLimits::STANDARD,
        beyond_end: BeyondEnd::ReadZeros,
        snapshot: None,
        offload: None,
    };
    let files = LayerFiles { image: Arc::clone(&file), data: None };
    let layer = block_on(Layer::open(files, header, options)).unwrap();
    let base = base.map(|bytes| {
        let storage = TraceStorage::new(MemoryStorage::from_vec(bytes));
        block_on(RawImage::open(storage, RawOptions::whole_file())).unwrap()
    });
    (file, Image::new(vec![layer], base))
}

/// Writes to `count` new clusters, with a flush after each. Returns barriers and reservations.
fn write_and_flush(file: &Traced, image: &Image<Traced>, first: u64, count: u64) -> (u64, u64) {
    let reservations = image.stats().reservations;
    file.trace().take();
    for index in first..first + count {
        let at = GuestOffset::new(index * CLUSTER + 4096);
        block_on(image.write_from(at, &[7; 4096])).unwrap();
        block_on(BlockDevice::flush(image)).unwrap();
    }
    let barriers =
        file.trace().records().iter().filter(|e| e.operation == Operation::Barrier).count();
    (barriers as u64, image.stats().reservations - reservations)
}

#[test]
fn an_allocating_write_with_a_flush_costs_one_barrier() {
    let (file, image) = open(None);
    write_and_flush(&file, &image, 0, 1);
    let (barriers, reservations) = write_and_flush(&file, &image, 1, 1000);
    assert!((1000..=1000 + reservations).contains(&barriers), "{barriers} {reservations}");
    assert!(reservations < 30, "{reservations}");
}

#[test]
fn over_a_backing_file_it_costs_two() {
    let (file, image) = open(Some(vec![5; 64 << 20]));
    write_and_flush(&file, &image, 0, 1);
    let (barriers, reservations) = write_and_flush(&file, &image, 1, 500);
    assert!((500..=1000 + reservations).contains(&barriers), "{barriers} {reservations}");
}

#[test]
fn writes_in_place_cost_one_and_a_flush_of_nothing_none() {
    let (file, image) = open(None);
    write_and_flush(&file, &image, 0, 50);
    assert_eq!(write_and_flush(&file, &image, 0, 50), (50, 0));
    file.trace().take();
    block_on(BlockDevice::flush(&image)).unwrap();
    assert_eq!(file.trace().records().len(), 0);
}

#[test]
fn a_flush_of_many_tables_costs_two_at_most() {
    let (file, image) = open(None);
    // An L2 table describes 512 MiB: two tables, a thousand entries.
    for index in 0..1000 {
        let at = GuestOffset::new(index * 16 * CLUSTER + 512);
        block_on(image.write_from(at, &[7; 512])).unwrap();
    }
    file.trace().take();
    block_on(BlockDevice::flush(&image)).unwrap();
    let barriers =
        file.trace().records().iter().filter(|e| e.operation == Operation::Barrier).count();
    assert!(barriers <= 2, "{barriers}");
}
