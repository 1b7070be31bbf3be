//! Headers and header extensions that lie.

use cowl_format::{ByteCount, Corruption, Table};
use cowl_qcow2::{Error, Layer, LayerFiles, LayerOptions, read_bitmaps};
use pollster::block_on;

use crate::image::{
    byte_at, check, corruption, edited, file, header, open, put, refused, seed, word,
};
use crate::sys::peak_of;

const CLUSTER_BITS: usize = 20;
const L1_ENTRIES: usize = 36;
const L1_OFFSET: usize = 40;
const REFCOUNT_TABLE: usize = 48;
const REFCOUNT_CLUSTERS: usize = 56;
const SNAPSHOTS: usize = 60;
const SNAPSHOT_TABLE: usize = 64;
const INCOMPATIBLE: usize = 72;
const HEADER_LENGTH: usize = 100;

/// An extension record.
fn record(kind: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let mut bytes = [kind.to_be_bytes(), length.to_be_bytes()].concat();
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// The seed `v3` with other extensions and nothing behind them.
fn with_extensions(records: &[Vec<u8>]) -> Vec<u8> {
    let mut area = records.concat();
    area.extend([0; 8]);
    assert!(area.len() <= 400, "cluster 0 has 512 bytes");
    edited("v3", &[(112, &[0; 400]), (112, &area)])
}

#[test]
fn a_wrong_magic_version_or_cluster_size_is_refused() {
    refused!(open(&edited("v3", &[(0, b"QFI")])[1..]), Corruption::NotQcow2);
    refused!(open(b""), Corruption::NotQcow2);
    for version in [0, 1, 4, 0xff] {
        let image = edited("v3", &[(7, &[version])]);
        refused!(open(&image), Corruption::UnsupportedVersion { .. });
    }
    for bits in [0, 8, 22, 63, 64, 255] {
        let image = edited("v3", &[(CLUSTER_BITS + 3, &[bits])]);
        refused!(open(&image), Corruption::ClusterBits { .. });
    }
}

#[test]
fn a_header_length_that_is_short_long_or_odd_is_refused() {
    let open_with = |length: u32| open(&edited("v3", &[(HEADER_LENGTH, &length.to_be_bytes())]));
    for length in [0, 72, 103] {
        refused!(open_with(length), Corruption::HeaderTooShort { .. });
    }
    for length in [513, 520, u32::MAX] {
        refused!(open_with(length), Corruption::HeaderTooLong { .. });
    }
    refused!(open_with(105), Corruption::HeaderLengthUnaligned { length: 105 });
}

#[test]
fn unknown_incompatible_bits_are_refused_by_their_names_made_fit_to_print() {
    let mut names = Vec::new();
    for (bit, name) in [(5_u8, &b"shiny\x1b[2J"[..]), (64, b"no such bit"), (7, b"")] {
        let mut line = vec![0, bit];
        line.extend(name);
        line.resize(48, 0);
        names.extend(line);
    }
    let mut image = with_extensions(&[record(0x6803_f857, &names)]);
    put(&mut image, INCOMPATIBLE, &(1_u64 << 5 | 1 << 7).to_be_bytes());
    match corruption(open(&image)) {
        Corruption::UnknownIncompatible { names } => {
            assert!(names.contains("shiny") && names.contains("80"), "{names:?}");
            assert!(!names.contains('\x1b'), "{names:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_compression_type_that_contradicts_its_bit_is_refused() {
    let zstd_without_bit = edited("v3", &[(104, &[1])]);
    refused!(open(&zstd_without_bit), Corruption::CompressionTypeBit { .. });
    let bit_without_zstd = edited("v3", &[(INCOMPATIBLE + 7, &[8])]);
    refused!(open(&bit_without_zstd), Corruption::CompressionTypeBit { .. });
    refused!(open(&edited("v3", &[(104, &[2])])), Corruption::CompressionType { .. });
}

#[test]
fn a_backing_name_lies_in_cluster_0_behind_the_header_and_is_text() {
    let named = |offset: u64, length: u32, name: &[u8]| {
        let mut image = edited("v3", &[(112, &[0; 400])]);
        put(&mut image, 8, &offset.to_be_bytes());
        put(&mut image, 16, &length.to_be_bytes());
        if offset < 400 {
            put(&mut image, usize::try_from(offset).unwrap(), name);
        }
        header(&image)
    };
    assert_eq!(named(200, 4, b"base").unwrap().backing.unwrap().name, b"base");
    for offset in [513, 1 << 40, u64::MAX, 8, 103] {
        refused!(named(offset, 4, b""), Corruption::BackingOffset { .. });
    }
    for length in [1024, 400, u32::MAX] {
        refused!(named(200, length, b""), Corruption::BackingNameLength { .. });
    }
    for name in [b"ba\0e", b"ba\ne", b"b\x1bse", b"bas\x7f"] {
        refused!(named(200, 4, name), Corruption::BackingName { .. });
    }
}

#[test]
fn an_extension_ends_before_the_backing_name_and_before_the_end_of_cluster_0() {
    let mut image = with_extensions(&[record(7, &[1; 100])]);
    put(&mut image, 8, &150_u64.to_be_bytes());
    put(&mut image, 16, &4_u32.to_be_bytes());
    refused!(header(&image), Corruption::ExtensionTooLarge { .. });
    for length in [393_u32, 1 << 20, u32::MAX] {
        let mut image = with_extensions(&[record(7, &[1; 100])]);
        put(&mut image, 116, &length.to_be_bytes());
        refused!(header(&image), Corruption::ExtensionTooLarge { .. });
    }
}

#[test]
fn extensions_appear_once_and_their_names_are_text() {
    let raw = record(0xe279_2aca, b"raw");
    refused!(header(&with_extensions(&[raw.clone(), raw])), Corruption::ExtensionDuplicate { .. });
    for name in [&b"r\0w"[..], b"r\nw"] {
        let image = with_extensions(&[record(0xe279_2aca, name)]);
        refused!(header(&image), Corruption::ExtensionText { .. });
        let image = with_extensions(&[record(0x4441_5441, name)]);
        refused!(header(&image), Corruption::ExtensionText { .. });
    }
    let image = with_extensions(&[record(0xe279_2aca, b"a name of sixteen")]);
    refused!(header(&image), Corruption::BackingFormatLength { .. });
    // Longer than a path can be; only large clusters have room for it.
    let mut image = seed("subclusters");
    put(&mut image, 112, &record(0x4441_5441, &[b'a'; 4097]));
    put(&mut image, 112 + 8 + 4104, &[0; 8]);
    refused!(header(&image), Corruption::DataFileNameLength { .. });
}

#[test]
fn many_extensions_are_refused_before_they_cost_anything() {
    let mut image = seed("subclusters");
    let records = record(7, b"").repeat(1500);
    put(&mut image, 112, &records);
    refused!(header(&image), Corruption::ExtensionCount);
}

#[test]
fn a_crypto_extension_of_another_length_is_refused_and_a_bitmaps_extension_ignored() {
    let image = with_extensions(&[record(0x0537_be77, &[0; 15])]);
    refused!(header(&image), Corruption::ExtensionLength { .. });
    for payload in [&[0; 23][..], &[0; 24], &[0xff; 24]] {
        let image = with_extensions(&[record(0x2385_2875, payload)]);
        assert!(header(&image).unwrap().bitmaps.unwrap().is_err());
        assert_eq!(byte_at(&open(&image).unwrap(), 0).unwrap(), 0x21);
    }
}

#[test]
fn a_refcount_table_that_cannot_be_one_is_refused() {
    let clusters = |count: u32| edited("v3", &[(REFCOUNT_CLUSTERS, &count.to_be_bytes())]);
    refused!(header(&clusters(16_385)), Corruption::TableTooLarge { table: Table::Refcount, .. });
    refused!(header(&clusters(u32::MAX)), Corruption::TableTooLarge { .. });
    refused!(open(&clusters(0)), Corruption::NoRefcountTable);
    for offset in [0x201_u64, 1 << 63, u64::MAX - 511] {
        let image = edited("v3", &[(REFCOUNT_TABLE, &offset.to_be_bytes())]);
        refused!(header(&image), Corruption::TableOffset { table: Table::Refcount, .. });
    }
}

#[test]
fn tables_over_each_other_or_over_the_header_are_refused() {
    for (field, offset) in
        [(REFCOUNT_TABLE, 0_u64), (L1_OFFSET, 0), (L1_OFFSET, 0x200), (REFCOUNT_TABLE, 0x600)]
    {
        let image = edited("v3", &[(field, &offset.to_be_bytes())]);
        refused!(open(&image), Corruption::TableOverlap { .. });
        // A checker has to be able to say so.
        assert!(!check(&image).is_clean());
    }
    for offset in [0_u64, 0x400, 0xc00] {
        let image = edited("snapshots", &[(SNAPSHOT_TABLE, &offset.to_be_bytes())]);
        refused!(open(&image), Corruption::TableOverlap { table: Table::Snapshot, .. });
    }
}

#[test]
fn an_l1_table_that_cannot_be_one_is_refused() {
    let entries = |count: u32| edited("v3", &[(L1_ENTRIES, &count.to_be_bytes())]);
    let too_large = (32 << 20) / 8 + 1;
    refused!(header(&entries(too_large)), Corruption::TableTooLarge { .. });
    refused!(header(&entries(u32::MAX)), Corruption::TableTooLarge { .. });
    refused!(header(&entries(1)), Corruption::L1TooSmall { .. });
    let image = edited("v3", &[(L1_OFFSET, &0x601_u64.to_be_bytes())]);
    refused!(header(&image), Corruption::TableOffset { table: Table::ActiveL1, .. });
    let huge = edited("v3", &[(24, &u64::MAX.to_be_bytes())]);
    refused!(header(&huge), Corruption::ImageTooBig { .. });
}

#[test]
fn an_l1_table_far_larger_than_the_file_costs_what_the_file_holds() {
    let mut image = seed("v3");
    put(&mut image, L1_ENTRIES, &(4_u32 << 20).to_be_bytes());
    // Behind everything else, so that it overlaps nothing that is named.
    put(&mut image, L1_OFFSET, &0x1c00_u64.to_be_bytes());
    let peak = peak_of(|| {
        let image = open(&image).unwrap();
        assert_eq!(image.layers()[0].stats().l1_bytes, 0);
        assert_eq!(byte_at(&image, 0).unwrap(), 0);
    });
    assert!(peak < 256 << 10, "{peak}");
}

#[test]
fn more_snapshots_than_the_limit_are_refused() {
    let image = edited("snapshots", &[(SNAPSHOTS, &65_537_u32.to_be_bytes())]);
    refused!(header(&image), Corruption::SnapshotCount { .. });
}

#[test]
fn encryption_and_its_extension_go_together() {
    refused!(header(&edited("luks", &[(35, &[0])])), Corruption::CryptoHeaderUnexpected);
    refused!(header(&edited("v3", &[(35, &[2])])), Corruption::CryptoHeaderMissing);
    refused!(header(&edited("v3", &[(35, &[3])])), Corruption::CryptMethod { method: 3 });
}

/// Where the luks seed's pointer is: behind the record's own header.
fn crypto_pointer(image: &[u8]) -> usize {
    let mark = 0x0537_be77_u32.to_be_bytes();
    image.windows(4).position(|window| window == mark).unwrap() + 8
}

#[test]
fn a_luks_header_is_aligned_and_a_check_finds_one_outside_the_file_or_over_a_table() {
    let at = crypto_pointer(&seed("luks"));
    for offset in [0x4001_u64, 0x4200] {
        let image = edited("luks", &[(at, &offset.to_be_bytes())]);
        refused!(header(&image), Corruption::CryptoHeaderOffset { .. });
    }
    for offset in [0_u64, u64::MAX - 4095] {
        let image = edited("luks", &[(at, &offset.to_be_bytes())]);
        refused!(header(&image), Corruption::CryptoHeaderRange { .. });
    }
    // The seed is cut off behind the tables: its header lies outside already.
    assert!(0 < check(&seed("luks")).corruptions);
    let over_l1 = edited("luks", &[(at, &0x3000_u64.to_be_bytes()), (at + 8, &[0; 6])]);
    assert!(0 < check(&over_l1).corruptions);
}

#[test]
fn encrypted_images_are_never_read_as_plain_ones() {
    assert!(matches!(open(&seed("luks")), Err(Error::Encrypted { .. })));
    assert!(matches!(open(&edited("v3", &[(35, &[1])])), Err(Error::Encrypted { .. })));
}

#[test]
fn a_dirty_or_corrupt_image_reads_and_checks_as_it_is() {
    for bit in [1, 2] {
        let image = edited("v3", &[(INCOMPATIBLE + 7, &[bit])]);
        assert_eq!(byte_at(&open(&image).unwrap(), 0).unwrap(), 0x21);
        assert!(check(&image).is_clean());
    }
}

#[test]
fn an_external_data_file_that_nobody_gave_is_an_error() {
    let bytes = seed("data-file");
    let options = LayerOptions {
        access: cowl_storage::Access::ReadOnly,
        cache: cowl_qcow2::CacheLimits::STANDARD,
        beyond_end: cowl_qcow2::BeyondEnd::ReadZeros,
        snapshot: None,
        offload: None,
    };
    let files = LayerFiles { image: file(&bytes), data: None };
    let layer = block_on(Layer::open(files, header(&bytes).unwrap(), options));
    assert!(matches!(layer, Err(Error::DataFileNeeded { .. })));
}

/// The bitmaps seed's extension payload, and its directory.
fn bitmap_places() -> (usize, usize) {
    let bytes = seed("bitmaps");
    let mark = 0x2385_2875_u32.to_be_bytes();
    let payload = bytes.windows(4).position(|window| window == mark).unwrap() + 8;
    (payload, ByteCount::new(word(&bytes, payload + 16)).as_usize())
}

#[test]
fn broken_bitmaps_are_reported_and_the_disk_reads_all_the_same() {
    let (extension, directory) = bitmap_places();
    let zero_name = (directory + 18, &[0, 0][..]);
    let edits: [(usize, &[u8]); 13] = [
        (extension + 3, &[3]),                         // one bitmap more than there are
        (extension + 7, &[1]),                         // reserved
        (extension, &[0xff; 4]),                       // too many
        (extension + 8, &(1_u64 << 40).to_be_bytes()), // directory too large
        (extension + 8, &(60_u64 << 20).to_be_bytes()), // directory past the end of the file
        (extension + 16, &0x1001_u64.to_be_bytes()),   // directory unaligned
        (directory + 20, &u32::MAX.to_be_bytes()),     // extra data that overflows a length
        (directory + 12, &[0x80, 0, 0, 0]),            // unknown flag
        (directory + 8, &u32::MAX.to_be_bytes()),      // table too large
        (directory + 17, &[32]),                       // granularity
        (directory, &1_u64.to_be_bytes()),             // table unaligned
        (directory + 16, &[2]),                        // type
        zero_name,
    ];
    for edit in edits {
        let image = edited("bitmaps", &[edit]);
        let header = header(&image).unwrap();
        let peak = peak_of(|| {
            assert!(block_on(read_bitmaps(&*file(&image), &header)).is_err(), "{edit:?}");
        });
        assert!(peak < 1 << 20, "{edit:?} took {peak} bytes");
        assert_eq!(byte_at(&open(&image).unwrap(), 4096).unwrap(), 0x71, "{edit:?}");
        assert!(0 < check(&image).corruptions, "{edit:?}");
    }
}

#[test]
fn two_bitmaps_of_one_name_are_refused() {
    let (_, directory) = bitmap_places();
    // Both names have three letters: "one" and "two", 32 bytes apart.
    let image = edited("bitmaps", &[(directory + 32 + 24, b"one")]);
    let header = header(&image).unwrap();
    let bitmaps = block_on(read_bitmaps(&*file(&image), &header));
    refused!(bitmaps, Corruption::BitmapDirectory { bitmap: 1, .. });
}
