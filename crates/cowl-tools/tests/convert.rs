//! Copies of every kind, held against the bytes that went in.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a test fails by panic")]

use std::fs;
use std::path::{Path, PathBuf};

use cowl::{BlockDevice, ByteCount, Caching, OpenOptions};
use cowl_qcow2::{CreateOptions, Preallocation};
use cowl_storage::Durability;
use cowl_tools::Disk;
use cowl_tools::{
    ConvertError, ConvertOptions, ExistingTarget, NewImage, TargetImage, Unwatched, ZeroDetection,
    convert, create,
};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// Bytes with runs of zeros, of noise and of patterns.
fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let run = 512 * (1 + (state >> 40) as usize % 300);
        match state >> 61 {
            0..=2 => bytes.resize(bytes.len() + run, 0),
            3..=4 => bytes.resize(bytes.len() + run, 7),
            _ => bytes.extend((0..run).map(|i| (state >> (i % 57)) as u8 ^ (i * 31) as u8)),
        }
    }
    bytes.truncate(length);
    bytes
}

fn qcow2(create: CreateOptions) -> TargetImage {
    TargetImage::Qcow2 { create: Box::new(create), preallocation: Preallocation::Off }
}

const RAW: TargetImage = TargetImage::Raw { preallocation: Preallocation::Off };

fn options(target: TargetImage) -> ConvertOptions {
    ConvertOptions {
        target,
        existing: ExistingTarget::Replace,
        compress: false,
        only_top_layer: false,
        zeros: ZeroDetection::Runs(ByteCount::new(4096)),
        threads: 3,
        rate_max: None,
        salvage: false,
        copy_range: false,
        caching: Caching::PageCache,
        durability: Durability::Unsafe,
        verify: true,
        digest: true,
    }
}

fn open(path: &Path) -> Disk {
    cowl_tools::open_disk(path, &OpenOptions::local()).unwrap()
}

fn bytes_of(path: &Path) -> Vec<u8> {
    let disk = open(path);
    let mut bytes = vec![0; disk.size().as_usize()];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn assert_clean(path: &Path) {
    let report = cowl::check(path, None, cowl::Sharing::NoWriters, None, &()).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

#[test]
fn content_survives_every_kind_of_image() {
    let folder = Folder::new();
    let bytes = content(3_000_320);
    fs::write(folder.path("in.raw"), &bytes).unwrap();
    for (cluster_size, refcount_bits) in
        [(512, 64), (512, 16), (4096, 1), (65_536, 64), (2 << 20, 8)]
    {
        for compress in [false, true] {
            for extended_l2 in [false, 16_384 <= cluster_size] {
                let create = CreateOptions {
                    cluster_size,
                    refcount_bits,
                    extended_l2,
                    ..CreateOptions::new(ByteCount::from_usize(bytes.len()))
                };
                let options = ConvertOptions { compress, ..options(qcow2(create)) };
                let (image, back) = (folder.path("out.qcow2"), folder.path("back.raw"));
                convert(&[open(&folder.path("in.raw"))], &image, &options, &Unwatched).unwrap();
                assert_clean(&image);
                assert!(bytes_of(&image) == bytes, "{cluster_size} {compress} {extended_l2}");
                convert(&[open(&image)], &back, &self::options(RAW), &Unwatched).unwrap();
                assert!(fs::read(&back).unwrap() == bytes);
            }
        }
    }
}

#[test]
fn sources_are_joined_and_padded_to_sectors() {
    let folder = Folder::new();
    fs::write(folder.path("a"), content(70_001)).unwrap();
    fs::write(folder.path("b"), content(1_500_000)).unwrap();
    let mut expected = content(70_001);
    expected.resize(70_144, 0);
    expected.extend(content(1_500_000));
    expected.resize(expected.len().next_multiple_of(512), 0);
    let create = CreateOptions::new(ByteCount::from_usize(expected.len()));
    let sources = [open(&folder.path("a")), open(&folder.path("b"))];
    let image = folder.path("out.qcow2");
    convert(&sources, &image, &options(qcow2(create)), &Unwatched).unwrap();
    assert!(bytes_of(&image) == expected);
}

#[test]
fn a_failed_copy_leaves_the_old_target_and_nothing_else() {
    let folder = Folder::new();
    let bytes = vec![5; 1 << 20];
    fs::write(folder.path("in.raw"), &bytes).unwrap();
    let create = CreateOptions::new(ByteCount::from_usize(bytes.len()));
    let compress = ConvertOptions { compress: true, ..options(qcow2(create)) };
    let damaged = folder.path("damaged.qcow2");
    convert(&[open(&folder.path("in.raw"))], &damaged, &compress, &Unwatched).unwrap();
    // The streams lie behind the first clusters; the tables at the end stay whole.
    let mut image = fs::read(&damaged).unwrap();
    image[4 * 65_536..4 * 65_536 + 8].fill(0xff);
    fs::write(&damaged, image).unwrap();
    fs::write(folder.path("target"), "precious").unwrap();
    let result = convert(&[open(&damaged)], &folder.path("target"), &options(RAW), &Unwatched);
    assert!(matches!(result, Err(ConvertError::Read { .. })), "{result:?}");
    assert_eq!(fs::read(folder.path("target")).unwrap(), b"precious");
    assert_eq!(folder.names(), ["damaged.qcow2", "in.raw", "target"]);
}

#[test]
fn salvage_goes_on_with_zeros_and_reports_what_was_lost() {
    let folder = Folder::new();
    let bytes = vec![5; 1 << 20];
    fs::write(folder.path("in.raw"), &bytes).unwrap();
    let create = CreateOptions::new(ByteCount::from_usize(bytes.len()));
    let compress = ConvertOptions { compress: true, ..options(qcow2(create)) };
    let damaged = folder.path("damaged.qcow2");
    convert(&[open(&folder.path("in.raw"))], &damaged, &compress, &Unwatched).unwrap();
    let mut image = fs::read(&damaged).unwrap();
    image[4 * 65_536..4 * 65_536 + 8].fill(0xff);
    fs::write(&damaged, image).unwrap();
    let salvage = ConvertOptions { salvage: true, ..options(RAW) };
    let target = folder.path("target");
    let report = convert(&[open(&damaged)], &target, &salvage, &Unwatched).unwrap();
    let lost: u64 = report.salvaged.iter().map(|part| part.length).sum();
    assert_eq!(lost, 65_536, "{:?}", report.salvaged);
    let back = fs::read(&target).unwrap();
    assert_eq!(back.iter().filter(|&&byte| byte == 0).count(), 65_536);
}

#[test]
fn writing_into_an_image_keeps_its_kind_and_its_tail() {
    let folder = Folder::new();
    let (old, new) = (content(2 << 20), vec![9; 700_416]);
    fs::write(folder.path("old.raw"), &old).unwrap();
    fs::write(folder.path("new.raw"), &new).unwrap();
    let create = CreateOptions {
        cluster_size: 8192,
        refcount_bits: 8,
        ..CreateOptions::new(ByteCount::from_usize(old.len()))
    };
    let image = folder.path("image.qcow2");
    let first = options(qcow2(create));
    convert(&[open(&folder.path("old.raw"))], &image, &first, &Unwatched).unwrap();
    let into = ConvertOptions {
        existing: ExistingTarget::Overwrite,
        ..options(qcow2(CreateOptions::new(ByteCount::ZERO)))
    };
    convert(&[open(&folder.path("new.raw"))], &image, &into, &Unwatched).unwrap();
    let expected = [&new[..], &old[new.len()..]].concat();
    assert!(bytes_of(&image) == expected);
    assert_clean(&image);
    let seen = cowl::inspect(&image, None, cowl::Sharing::NoWriters).unwrap().qcow2.unwrap();
    assert_eq!(seen.header.geometry.cluster_size(), 8192);
    assert_eq!(seen.header.geometry.refcount_bits(), 8);
    let result = convert(&[open(&folder.path("old.raw"))], &image, &into, &Unwatched);
    assert!(result.is_ok());
}

#[test]
fn a_raw_target_is_overwritten_in_place_with_its_zeros() {
    let folder = Folder::new();
    let bytes = content(1 << 20);
    fs::write(folder.path("in.raw"), &bytes).unwrap();
    fs::write(folder.path("out.raw"), vec![0xee; (1 << 20) + 4096]).unwrap();
    let into = ConvertOptions { existing: ExistingTarget::Overwrite, ..options(RAW) };
    let out = folder.path("out.raw");
    convert(&[open(&folder.path("in.raw"))], &out, &into, &Unwatched).unwrap();
    let back = fs::read(&out).unwrap();
    assert!(back[..1 << 20] == bytes);
    assert!(back[1 << 20..].iter().all(|&byte| byte == 0xee));
    fs::write(folder.path("small.raw"), vec![1; 4096]).unwrap();
    let result =
        convert(&[open(&folder.path("in.raw"))], &folder.path("small.raw"), &into, &Unwatched);
    assert!(matches!(result, Err(ConvertError::TargetTooSmall { .. })));
}

#[test]
fn an_overlay_target_holds_only_what_the_source_layer_has() {
    let folder = Folder::new();
    let base = content(1 << 20);
    fs::write(folder.path("base.raw"), &base).unwrap();
    let overlay = CreateOptions {
        backing: Some(b"base.raw".to_vec()),
        backing_format: Some(b"raw".to_vec()),
        ..CreateOptions::new(ByteCount::new(1 << 20))
    };
    let image =
        NewImage::Qcow2 { options: Box::new(overlay.clone()), preallocation: Preallocation::Off };
    create(&folder.path("top.qcow2"), &image).unwrap();
    let copy = ConvertOptions { only_top_layer: true, ..options(qcow2(overlay)) };
    let target = folder.path("copy.qcow2");
    convert(&[open(&folder.path("top.qcow2"))], &target, &copy, &Unwatched).unwrap();
    assert!(bytes_of(&target) == base);
    assert!(fs::metadata(&target).unwrap().len() < 300_000);
}

#[test]
fn the_digest_is_that_of_the_guest_content() {
    let folder = Folder::new();
    fs::write(folder.path("in.raw"), b"").unwrap();
    fs::write(folder.path("zeros.raw"), vec![0; 512]).unwrap();
    let digest = |name: &str| {
        let target = folder.path("out.raw");
        let report = convert(&[open(&folder.path(name))], &target, &options(RAW), &Unwatched);
        report.unwrap().digest.unwrap()[..4].to_vec()
    };
    assert_eq!(digest("in.raw"), [0xe3, 0xb0, 0xc4, 0x42]);
    assert_eq!(digest("zeros.raw"), [0x07, 0x6a, 0x27, 0xc7]);
}

#[test]
fn a_target_may_be_larger_than_a_source_that_ends_within_a_cluster() {
    let folder = Folder::new();
    let bytes = content(100_352);
    fs::write(folder.path("in.raw"), &bytes).unwrap();
    for compress in [false, true] {
        let create = CreateOptions::new(ByteCount::new(1 << 20));
        let copy = ConvertOptions { compress, ..options(qcow2(create)) };
        let image = folder.path("out.qcow2");
        convert(&[open(&folder.path("in.raw"))], &image, &copy, &Unwatched).unwrap();
        let back = bytes_of(&image);
        assert!(back[..bytes.len()] == bytes);
        assert!(back[bytes.len()..].iter().all(|&byte| byte == 0));
        assert_clean(&image);
    }
}

#[test]
fn a_preallocated_overlay_keeps_its_zeros_and_leaks_nothing() {
    let folder = Folder::new();
    fs::write(folder.path("base.raw"), vec![3; 1 << 20]).unwrap();
    let bytes = content(1 << 20);
    fs::write(folder.path("in.raw"), &bytes).unwrap();
    let create = CreateOptions {
        extended_l2: true,
        backing: Some(b"base.raw".to_vec()),
        backing_format: Some(b"raw".to_vec()),
        ..CreateOptions::new(ByteCount::new(1 << 20))
    };
    let target =
        TargetImage::Qcow2 { create: Box::new(create), preallocation: Preallocation::Metadata };
    let image = folder.path("out.qcow2");
    convert(&[open(&folder.path("in.raw"))], &image, &options(target), &Unwatched).unwrap();
    assert!(bytes_of(&image) == bytes);
    assert_clean(&image);
}

#[test]
fn an_image_is_never_its_own_data_file() {
    let folder = Folder::new();
    fs::write(folder.path("in.raw"), content(100_000)).unwrap();
    fs::create_dir(folder.path("sub")).unwrap();
    for name in ["out", "sub/../out"] {
        let data_file = Some(folder.path(name).into_os_string().into_encoded_bytes());
        let size = ByteCount::new(100_352);
        let new = CreateOptions { data_file, ..CreateOptions::new(size) };
        let image =
            NewImage::Qcow2 { options: Box::new(new.clone()), preallocation: Preallocation::Off };
        assert!(create(&folder.path("out"), &image).is_err());
        let source = [open(&folder.path("in.raw"))];
        let result = convert(&source, &folder.path("out"), &options(qcow2(new)), &Unwatched);
        assert!(matches!(result, Err(ConvertError::Create(_))), "{result:?}");
        assert_eq!(folder.names(), ["in.raw", "sub"]);
    }
}

#[test]
fn a_failed_copy_leaves_the_old_data_file_too() {
    let folder = Folder::new();
    fs::write(folder.path("in.raw"), vec![5; 1 << 20]).unwrap();
    let new = |folder: &Folder| CreateOptions {
        data_file: Some(folder.path("data").into_os_string().into_encoded_bytes()),
        data_file_raw: true,
        ..CreateOptions::new(ByteCount::new(1 << 20))
    };
    let image = folder.path("image");
    let copy = options(qcow2(new(&folder)));
    convert(&[open(&folder.path("in.raw"))], &image, &copy, &Unwatched).unwrap();
    assert!(bytes_of(&image) == vec![5; 1 << 20]);
    assert!(fs::read(folder.path("data")).unwrap() == vec![5; 1 << 20]);
    let create = CreateOptions::new(ByteCount::new(1 << 20));
    let compress = ConvertOptions { compress: true, ..options(qcow2(create)) };
    let damaged = folder.path("damaged");
    convert(&[open(&folder.path("in.raw"))], &damaged, &compress, &Unwatched).unwrap();
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[4 * 65_536..4 * 65_536 + 8].fill(0xff);
    fs::write(&damaged, bytes).unwrap();
    assert!(convert(&[open(&damaged)], &image, &copy, &Unwatched).is_err());
    assert!(bytes_of(&image) == vec![5; 1 << 20]);
    assert_eq!(folder.names(), ["damaged", "data", "image", "in.raw"]);
}
