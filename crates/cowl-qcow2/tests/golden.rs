//! Images that QEMU 10.0.2 made, kept as they were: their headers encode to the same bytes, their
//! content reads as QEMU read it, and their metadata is clean.
//!
//! The digests are FNV-1a of what `qemu-img convert -O raw` gave.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::sync::Arc;

use cowl_format::{ByteCount, GuestOffset, Header};
use cowl_qcow2::{
    BeyondEnd, CacheLimits, Image, Layer, LayerFiles, LayerOptions, check, read_bitmaps,
    read_header, read_snapshots,
};
use cowl_storage::MemoryStorage;
use pollster::block_on;

fn file(name: &str) -> Arc<MemoryStorage> {
    let path = format!("{}/tests/golden/{name}.img", env!("CARGO_MANIFEST_DIR"));
    Arc::new(MemoryStorage::from_vec(std::fs::read(path).unwrap()))
}

fn header(file: &MemoryStorage) -> Header {
    block_on(read_header(file)).unwrap()
}

fn content(name: &str, snapshot: Option<&str>) -> Vec<u8> {
    let image = file(name);
    let header = header(&image);
    let options = LayerOptions {
        access: cowl_storage::Access::ReadOnly,
        cache: CacheLimits::STANDARD,
        beyond_end: BeyondEnd::ReadZeros,
        snapshot: snapshot.map(str::to_owned),
        offload: None,
    };
    let files = LayerFiles { image, data: None };
    let layer = block_on(Layer::open(files, header, options)).unwrap();
    let image = Image::new(vec![layer], None);
    let mut bytes = vec![0xaa; image.size().as_usize()];
    block_on(image.read_into(GuestOffset::ZERO, &mut bytes)).unwrap();
    // Odd pieces give the same bytes as the whole.
    let mut at = 0;
    for step in (1..).map(|step| step * 37 % 5000 + 1) {
        let length = step.min(bytes.len() - at);
        if length == 0 {
            break;
        }
        let mut piece = vec![0x55; length];
        let guest = GuestOffset::ZERO + ByteCount::from_usize(at);
        block_on(image.read_into(guest, &mut piece)).unwrap();
        assert!(piece == bytes[at..at + length], "{name} at {at}");
        at += length;
    }
    bytes
}

fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

const IMAGES: &[(&str, u64)] = &[
    ("v3", 0x39c7_6520_fdc3_93a1),
    ("v2", 0x5878_2e9b_14a5_49a1),
    ("wide", 0xb430_4121_a8d3_6325),
    ("narrow", 0xb430_4121_a8d3_6325),
    ("subclusters", 0x3eb0_194c_02b8_6315),
    ("zlib", 0x61e1_8657_508f_1fb5),
    ("zstd", 0x61e1_8657_508f_1fb5),
    ("snapshots", 0x7bdc_b022_c085_2c19),
    ("bitmaps", 0xfa06_c74f_a998_6325),
];

#[test]
fn content_reads_as_qemu_reads_it() {
    for (name, expected) in IMAGES {
        assert_eq!(digest(&content(name, None)), *expected, "{name}");
    }
}

#[test]
fn headers_encode_to_the_bytes_they_came_from() {
    let names = IMAGES.iter().map(|(name, _)| *name).chain(["overlay"]);
    for name in names {
        let image = file(name);
        let encoded = header(&image).encode().unwrap();
        let stored = image.to_vec();
        assert!(encoded == stored[..encoded.len()], "{name}");
    }
}

#[test]
fn metadata_is_clean() {
    for (name, _) in IMAGES {
        let image = file(name);
        let header = header(&image);
        let report = block_on(check(image.as_ref(), &header, None, &())).unwrap();
        assert!(report.is_clean(), "{name}: {report:?}");
        assert!(report.findings.is_empty());
    }
}

#[test]
fn snapshots_are_found_by_id_and_by_name_and_show_their_own_disk() {
    let image = file("snapshots");
    let table = block_on(read_snapshots(image.as_ref(), &header(&image))).unwrap();
    assert_eq!(table.snapshots.len(), 2);
    let start = usize::try_from(header(&image).snapshot_offset.get()).unwrap();
    let encoded = table.encode();
    assert!(encoded == image.to_vec()[start..start + encoded.len()]);
    assert_eq!(digest(&content("snapshots", Some("1"))), 0x0aa2_e43c_3d7a_7325);
    assert_eq!(digest(&content("snapshots", Some("first"))), 0x0aa2_e43c_3d7a_7325);
    assert_eq!(digest(&content("snapshots", Some("second one"))), 0xa5f2_5998_ba18_2b25);
}

#[test]
fn bitmap_directories_encode_to_the_bytes_they_came_from() {
    let image = file("bitmaps");
    let header = header(&image);
    let directory = block_on(read_bitmaps(image.as_ref(), &header)).unwrap();
    let names: Vec<_> = directory.entries.iter().map(|entry| &entry.name[..]).collect();
    assert_eq!(names, [&b"b0"[..], b"nightly"]);
    let extension = header.bitmaps.unwrap().unwrap();
    let start = usize::try_from(extension.directory_offset.get()).unwrap();
    let encoded = directory.encode();
    assert_eq!(encoded.len(), extension.directory_size.as_usize());
    assert!(encoded == image.to_vec()[start..start + encoded.len()]);
}

#[test]
fn the_overlay_names_its_backing_file_and_format() {
    let header = header(&file("overlay"));
    assert_eq!(header.backing.unwrap().name, b"base.raw");
    assert_eq!(header.backing_format.unwrap(), b"raw");
}
