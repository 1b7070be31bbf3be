//! Tables that lie: L1, L2, refcounts, snapshots, compressed clusters.

use std::sync::Arc;

use cowl_block::ExtentKind;
use cowl_format::{ByteCount, Corruption, GuestOffset, HostCluster};
use cowl_fuzz_bodies::{Budget, BudgetStorage};
use cowl_qcow2::{
    BeyondEnd, CheckReport, Error, Inline, Layer, LayerFiles, LayerOptions, read_header,
    read_snapshots,
};
use pollster::block_on;

use crate::image::{
    byte_at, check, edited, file, header, open, open_as, pointer, put, refused, seed, word,
};
use crate::sys::peak_of;

/// Where the tables of the seeds with 512-byte clusters are.
const L1: usize = 0x600;
const REFCOUNT_TABLE: usize = 0x200;

fn l2(bytes: &[u8]) -> usize {
    pointer(bytes, L1)
}

fn with_l2_entry(name: &str, l1: usize, index: usize, entry: u64) -> Vec<u8> {
    let mut bytes = seed(name);
    let at = pointer(&bytes, l1) + index * 8;
    put(&mut bytes, at, &entry.to_be_bytes());
    bytes
}

#[test]
fn an_unaligned_l2_table_is_an_io_error_for_its_part_of_the_disk_only() {
    // 16 KiB clusters: an entry can be unaligned without a reserved bit.
    let image = edited("subclusters", &[(0xc000, &0x8000_0000_0001_0200_u64.to_be_bytes())]);
    let image = open(&image).unwrap();
    let error = byte_at(&image, 0).unwrap_err();
    assert_eq!(error.errno(), 5);
    refused!(byte_at(&image, 0), Corruption::L2TableUnaligned { offset: 0x10200 });

    let image = edited("v3", &[(L1, &0x8000_0000_0000_0200_u64.to_be_bytes())]);
    let image = open(&image).unwrap();
    refused!(byte_at(&image, 0), Corruption::PointsIntoMetadata { .. });
    assert_eq!(byte_at(&image, 33_000).unwrap(), 0x22);
}

#[test]
fn an_l2_table_inside_other_metadata_is_refused_when_it_is_loaded() {
    for target in [L1 as u64, REFCOUNT_TABLE as u64] {
        let image = edited("v3", &[(L1, &target.to_be_bytes())]);
        refused!(byte_at(&open(&image).unwrap(), 0), Corruption::PointsIntoMetadata { .. });
        assert!(0 < check(&image).corruptions);
    }
    // Offset 0 is no table at all.
    let image = open(&edited("v3", &[(L1, &(1_u64 << 63).to_be_bytes())])).unwrap();
    assert_eq!(byte_at(&image, 0).unwrap(), 0);
}

#[test]
fn an_unaligned_data_cluster_is_an_io_error_for_that_cluster_only() {
    let mut bytes = seed("zlib");
    let at = pointer(&bytes, 0x3000) + 2 * 8;
    let entry = word(&bytes, at) + 0x200;
    put(&mut bytes, at, &entry.to_be_bytes());
    let image = open(&bytes).unwrap();
    let error = byte_at(&image, 8192).unwrap_err();
    assert_eq!(error.errno(), 5);
    refused!(byte_at(&image, 8192), Corruption::DataUnaligned { .. });
    assert_eq!(byte_at(&image, 0).unwrap(), 0x41);
    assert!(0 < check(&bytes).corruptions);
}

#[test]
fn an_unaligned_refcount_block_is_an_error_for_its_refcounts_only() {
    let mut bytes = seed("zlib");
    put(&mut bytes, 0x1000, &0x2200_u64.to_be_bytes());
    let image = open(&bytes).unwrap();
    let refcount = block_on(image.layers()[0].refcount(HostCluster::new(1)));
    refused!(refcount, Corruption::RefcountBlockUnaligned { .. });
    assert_eq!(byte_at(&image, 0).unwrap(), 0x41);
    let report = check(&bytes);
    assert!(0 < report.corruptions && 0 < report.check_errors);
}

#[test]
fn a_cluster_past_the_end_of_the_file_reads_zeros_or_is_refused_and_is_counted() {
    for host in [0x10_0000_u64, 1 << 55] {
        let bytes = with_l2_entry("v3", L1, 0, 1 << 63 | host);
        assert_eq!(byte_at(&open(&bytes).unwrap(), 0).unwrap(), 0);
        let strict = open_as(&bytes, BeyondEnd::Refuse, None).unwrap();
        refused!(byte_at(&strict, 0), Corruption::PastEndOfFile { .. });
        assert!(0 < check(&bytes).corruptions);
    }
}

#[test]
fn a_last_cluster_cut_short_is_readable_from_everywhere_or_from_nowhere() {
    let mut bytes = seed("v3");
    // The seed's file ends with a data cluster.
    bytes.truncate(bytes.len() - 100);
    let strict = open_as(&bytes, BeyondEnd::Refuse, None).unwrap();
    for at in (0..strict.size().get()).step_by(100) {
        byte_at(&strict, at).unwrap();
    }
}

#[test]
fn bits_above_the_host_offset_are_not_part_of_it() {
    let bytes = seed("v3");
    let entry = word(&bytes, l2(&bytes));
    let bytes = with_l2_entry("v3", L1, 0, entry | 0x3f << 56);
    assert_eq!(byte_at(&open(&bytes).unwrap(), 0).unwrap(), 0x21);
    assert!(0 < check(&bytes).corruptions);
}

#[test]
fn one_l2_table_named_by_every_l1_entry_is_checked_once() {
    let mut bytes = seed("v3");
    let entry = word(&bytes, L1);
    let l1 = bytes.len();
    let entries = 50_000_u32;
    put(&mut bytes, 36, &entries.to_be_bytes());
    put(&mut bytes, 40, &(l1 as u64).to_be_bytes());
    for index in 0..entries as usize {
        put(&mut bytes, l1 + index * 8, &entry.to_be_bytes());
    }
    // The L1 table itself and a few small tables: not 50 000 of them.
    let budget = Budget { reads: 200, bytes: bytes.len() as u64 + (64 << 10) };
    let file = BudgetStorage::new(&bytes, budget);
    let header = block_on(read_header(&file)).unwrap();
    let report = block_on(cowl_qcow2::check(&file, &header, None, &())).unwrap();
    assert!(0 < report.corruptions);
}

#[test]
fn a_petabyte_of_one_empty_table_takes_many_short_answers_instead_of_a_long_one() {
    let cluster = 0x1_0000_usize;
    let entries = (32 << 20) / 8_usize;
    let size = (entries as u64) << (13 + 16);
    let l2 = cluster * 2;
    let l1 = cluster * 3;
    let mut bytes = seed("v3")[..104].to_vec();
    put(&mut bytes, 20, &16_u32.to_be_bytes());
    put(&mut bytes, 24, &size.to_be_bytes());
    put(&mut bytes, 36, &u32::try_from(entries).unwrap().to_be_bytes());
    put(&mut bytes, 40, &(l1 as u64).to_be_bytes());
    put(&mut bytes, 48, &(cluster as u64).to_be_bytes());
    put(&mut bytes, 100, &104_u32.to_be_bytes());
    let entry = (1_u64 << 63 | l2 as u64).to_be_bytes();
    put(&mut bytes, l1, &entry.repeat(entries));
    let budget = Budget { reads: 1 << 20, bytes: 1 << 30 };
    let image = Arc::new(BudgetStorage::new(&bytes, budget));
    let header = block_on(read_header(&*image)).unwrap();
    let options = LayerOptions {
        access: cowl_storage::Access::ReadOnly,
        cache: cowl_qcow2::CacheLimits::STANDARD,
        beyond_end: BeyondEnd::Refuse,
        snapshot: None,
        offload: Some(Arc::new(Inline)),
    };
    let layer = block_on(Layer::open(LayerFiles { image, data: None }, header, options)).unwrap();
    let image = cowl_qcow2::Image::new(vec![layer], None);
    let extents = block_on(image.extents(GuestOffset::ZERO, image.size())).unwrap();
    let told: u64 = extents.iter().map(|extent| extent.length.get()).sum();
    assert!(0 < told && told < size, "{told} of {size}");
    assert!(matches!(extents[0].kind, ExtentKind::Unallocated { .. }));
}

#[test]
fn contradicting_subclusters_are_refused_for_that_cluster_only() {
    let mut bytes = seed("subclusters");
    let bitmap = pointer(&bytes, 0xc000) + 8;
    let old = word(&bytes, bitmap);
    put(&mut bytes, bitmap, &(old | old << 32).to_be_bytes());
    let image = open(&bytes).unwrap();
    refused!(byte_at(&image, 600), Corruption::SubclusterBitmap { .. });
    assert_eq!(byte_at(&image, 16_384).unwrap(), 0x32);
    assert!(0 < check(&bytes).corruptions);
    // Data without a host cluster to hold it.
    let table = pointer(&bytes, 0xc000);
    put(&mut bytes, table, &[0; 8]);
    put(&mut bytes, bitmap, &1_u64.to_be_bytes());
    refused!(byte_at(&open(&bytes).unwrap(), 0), Corruption::SubclusterBitmap { .. });
    assert!(0 < check(&bytes).corruptions);
}

#[test]
fn a_zero_flag_in_version_2_is_refused() {
    let bytes = with_l2_entry("v2", L1, 1, 1);
    refused!(byte_at(&open(&bytes).unwrap(), 512), Corruption::ZeroFlagInVersion2 { .. });
}

/// The zlib seed with its first compressed entry changed.
fn with_compressed_entry(change: impl Fn(u64) -> u64) -> Vec<u8> {
    let bytes = seed("zlib");
    let entry = word(&bytes, pointer(&bytes, 0x3000));
    assert!(entry >> 62 == 1);
    with_l2_entry("zlib", 0x3000, 0, change(entry))
}

#[test]
fn a_compressed_cluster_marked_copied_reads_and_is_counted() {
    // QEMU reads it too: the flag lies about the refcount, not about the bytes.
    let bytes = with_compressed_entry(|entry| entry | 1 << 63);
    assert_eq!(byte_at(&open(&bytes).unwrap(), 0).unwrap(), 0x41);
    assert!(0 < check(&bytes).corruptions);
}

#[test]
fn a_compressed_cluster_past_the_end_of_the_file_is_an_error() {
    for host in [0x100_0000_u64, (1 << 56) - 4096] {
        let bytes = with_compressed_entry(|entry| entry >> 58 << 58 | host);
        refused!(byte_at(&open(&bytes).unwrap(), 0), Corruption::Inflate { .. });
        let strict = open_as(&bytes, BeyondEnd::Refuse, None).unwrap();
        refused!(byte_at(&strict, 0), Corruption::PastEndOfFile { .. });
        assert!(0 < check(&bytes).corruptions);
    }
}

#[test]
fn a_compressed_offset_of_more_than_56_bits_is_refused() {
    // 4 KiB clusters have 58 bits of offset.
    let bytes = with_compressed_entry(|entry| entry | 1 << 57);
    refused!(byte_at(&open(&bytes).unwrap(), 0), Corruption::CompressedOffset { .. });
    assert!(0 < check(&bytes).corruptions);
}

#[test]
fn a_compressed_stream_of_noise_is_an_error_for_that_cluster_only() {
    for name in ["zlib", "zstd"] {
        let bytes = seed(name);
        let entry = word(&bytes, pointer(&bytes, 0x3000));
        let host = ByteCount::new(entry & ((1 << 58) - 1)).as_usize();
        for noise in [[0xff; 16], [0; 16], [0x55; 16]] {
            let image = edited(name, &[(host, &noise)]);
            let image = open(&image).unwrap();
            refused!(byte_at(&image, 0), Corruption::Inflate { .. });
            assert_eq!(byte_at(&image, 8192).unwrap(), 0x43);
        }
    }
}

#[test]
fn a_compressed_cluster_takes_two_clusters_of_input_and_one_of_output_at_most() {
    // Every bit of the length set: the most that the entry can claim.
    let bytes = with_compressed_entry(|entry| entry | 0xf << 58);
    let image = open(&bytes).unwrap();
    let peak = peak_of(|| assert_eq!(byte_at(&image, 0).unwrap(), 0x41));
    // Input, output, one L2 slice, the inflater, and room for the page alignment of each buffer.
    assert!(peak < 8 * 4096 + (48 << 10), "{peak}");
}

#[test]
fn compressed_clusters_beside_an_external_data_file_are_refused() {
    let mut bytes = seed("data-file");
    let at = pointer(&bytes, 0xc00);
    put(&mut bytes, at, &(1_u64 << 62 | 0x1400).to_be_bytes());
    let image = open(&bytes).unwrap();
    refused!(byte_at(&image, 0), Corruption::CompressedWithDataFile { .. });
    assert_eq!(byte_at(&image, 1024).unwrap(), 0x5a);
    assert!(0 < check(&bytes).corruptions);
}

#[test]
fn a_data_file_cluster_at_another_place_is_refused() {
    let mut bytes = seed("data-file");
    let at = pointer(&bytes, 0xc00);
    put(&mut bytes, at, &(1_u64 << 63 | 0x400).to_be_bytes());
    refused!(byte_at(&open(&bytes).unwrap(), 0), Corruption::DataFileOffset { .. });
}

#[test]
fn refcounts_that_overflow_are_counted_and_never_wrap() {
    // One-bit refcounts: every second reference is one too many.
    let mut bytes = seed("narrow-refcounts");
    let table = l2(&bytes);
    let entry = word(&bytes, table);
    for index in 0..32 {
        put(&mut bytes, table + index * 8, &entry.to_be_bytes());
    }
    assert!(31 <= check(&bytes).corruptions);
    // 64-bit refcounts as large as they get.
    let mut bytes = seed("wide-refcounts");
    let block = pointer(&bytes, REFCOUNT_TABLE);
    put(&mut bytes, block, &[0xff; 512]);
    let report = check(&bytes);
    assert!(0 < report.leaks);
    let image = open(&bytes).unwrap();
    let refcount = block_on(image.layers()[0].refcount(HostCluster::new(0))).unwrap();
    assert_eq!(refcount, u64::MAX);
}

#[test]
fn one_block_of_large_refcounts_named_many_times_is_kept_once() {
    // A sparse file would do; in memory a few megabytes have to.
    let mut bytes = seed("wide-refcounts");
    let block = word(&bytes, REFCOUNT_TABLE);
    let table = 0x2000;
    let clusters = 60_u32;
    put(&mut bytes, 48, &(table as u64).to_be_bytes());
    put(&mut bytes, 56, &clusters.to_be_bytes());
    put(&mut bytes, table, &block.to_be_bytes().repeat(clusters as usize * 64));
    let at = ByteCount::new(block).as_usize();
    put(&mut bytes, at, &[0xff; 512]);
    bytes.resize(4 << 20, 0);
    let report = check(&bytes);
    let host_clusters = bytes.len() as u64 / 512;
    let table_bytes = u64::from(clusters) * 512;
    // The block, and the part of it that counts the last cluster.
    let blocks = 512 + 8;
    assert!(report.memory_bytes <= 2 * (host_clusters + 1) + table_bytes + blocks);
}

/// The snapshots seed: table at 0x3c00, first record's L1 offset and size first.
const SNAPSHOTS: usize = 0x3c00;

#[test]
fn a_broken_snapshot_table_leaves_the_disk_readable_and_is_counted() {
    let edits: [(usize, &[u8]); 4] = [
        (SNAPSHOTS + 36, &1025_u32.to_be_bytes()), // extra data over the limit
        (SNAPSHOTS + 36, &u32::MAX.to_be_bytes()),
        (SNAPSHOTS + 12, &[0xff; 4]), // ID and name past the end of the file
        (60, &60_000_u32.to_be_bytes()), // more records than the file holds
    ];
    for edit in edits {
        let bytes = edited("snapshots", &[edit]);
        let header = header(&bytes).unwrap();
        assert!(block_on(read_snapshots(&*file(&bytes), &header)).is_err(), "{edit:?}");
        // An overlap with the L1 table, which the larger count makes, is refused of course.
        match open(&bytes) {
            Ok(image) => assert_eq!(byte_at(&image, 0).unwrap(), 0x64),
            Err(Error::Corrupt { corruption: Corruption::TableOverlap { .. }, .. }) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(0 < check(&bytes).corruptions, "{edit:?}");
    }
}

#[test]
fn a_snapshot_with_an_impossible_l1_table_is_refused_only_when_it_is_used() {
    let edits: [(usize, &[u8]); 3] = [
        (SNAPSHOTS, &0x401_u64.to_be_bytes()),
        (SNAPSHOTS, &(u64::MAX - 1023).to_be_bytes()),
        (SNAPSHOTS + 8, &u32::MAX.to_be_bytes()),
    ];
    for edit in edits {
        let bytes = edited("snapshots", &[edit]);
        assert_eq!(byte_at(&open(&bytes).unwrap(), 0).unwrap(), 0x64);
        let second = open_as(&bytes, BeyondEnd::ReadZeros, Some("second")).unwrap();
        assert_eq!(byte_at(&second, 2048).unwrap(), 0x62);
        let first = open_as(&bytes, BeyondEnd::ReadZeros, Some("first"));
        refused!(first, Corruption::SnapshotL1 { snapshot: 0, .. });
        assert!(0 < check(&bytes).corruptions);
    }
    let too_small = edited("snapshots", &[(SNAPSHOTS + 8, &[0; 4])]);
    let first = open_as(&too_small, BeyondEnd::ReadZeros, Some("first"));
    refused!(first, Corruption::L1TooSmall { .. });
}

#[test]
fn snapshots_that_all_name_one_large_table_cost_a_few_times_the_file() {
    // 3000 snapshots of a megabyte of L1 table: three gigabytes if each is read.
    let mut bytes = seed("snapshots");
    let l1 = 0x10_0000_usize;
    let record = |number: u32| {
        let mut record = vec![0; 64];
        put(&mut record, 0, &(l1 as u64).to_be_bytes());
        put(&mut record, 8, &(131_072_u32).to_be_bytes());
        put(&mut record, 36, &16_u32.to_be_bytes());
        record[12..14].copy_from_slice(&8_u16.to_be_bytes());
        put(&mut record, 56, format!("{number:08}").as_bytes());
        record
    };
    let table: Vec<u8> = (0..3000).flat_map(record).collect();
    put(&mut bytes, 60, &3000_u32.to_be_bytes());
    put(&mut bytes, 64, &0x8000_u64.to_be_bytes());
    put(&mut bytes, 0x8000, &table);
    bytes.resize(l1 * 2, 0);
    let report = check(&bytes);
    assert!(0 < report.check_errors, "{report:?}");
}

#[test]
fn l2_tables_at_every_sector_of_each_other_cost_a_few_times_the_file() {
    let mut bytes = seed("subclusters");
    let tables = 4000_u32;
    let l1 = 0x2_0000_usize;
    put(&mut bytes, 36, &tables.to_be_bytes());
    put(&mut bytes, 40, &(l1 as u64).to_be_bytes());
    for index in 0..tables as usize {
        let table = 0x1_0000 + index as u64 * 512;
        put(&mut bytes, l1 + index * 8, &table.to_be_bytes());
    }
    bytes.resize(0x1_0000 + 4000 * 512, 0);
    let report = check(&bytes);
    assert!(0 < report.check_errors);
}

#[test]
fn findings_without_end_are_counted_all_and_listed_up_to_a_limit() {
    // An L1 table of half a million entries with reserved bits.
    let mut bytes = seed("v3");
    let l1 = 0x2000;
    let entries = 200_000_u32;
    put(&mut bytes, 36, &entries.to_be_bytes());
    put(&mut bytes, 40, &(l1 as u64).to_be_bytes());
    put(&mut bytes, l1, &1_u64.to_be_bytes().repeat(entries as usize));
    let mut report = None;
    let peak = peak_of(|| report = Some(check(&bytes)));
    let report = report.unwrap();
    assert!(u64::from(entries) <= report.corruptions);
    assert_eq!(report.findings.len(), CheckReport::FINDINGS_MAX);
    assert!(peak < 64 << 20, "{peak}");
}
