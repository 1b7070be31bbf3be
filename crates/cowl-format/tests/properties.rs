//! What holds for any value: encoding and decoding are inverse, and decoding any bytes ends.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use cowl_format::{
    AutoclearFeatures, BackingReference, BitmapDirectory, BitmapDirectoryEntry, BitmapFlags,
    ByteCount, CompatibleFeatures, CompressedDescriptor, CompressionType, CryptMethod, Extension,
    ExtensionKind, FeatureNameTable, Geometry, GuestOffset, Header, HostOffset,
    IncompatibleFeatures, L1Entry, L2Entry, RefcountBlock, RefcountBlockIndex, Snapshot,
    SnapshotTable, SubclusterBitmap, Version,
};
use proptest::collection::vec;
use proptest::prelude::*;

fn geometry() -> impl Strategy<Value = Geometry> {
    let numbers = (9_u32..=21, 0_u32..=6, any::<bool>());
    numbers.prop_map(|(bits, order, extended)| {
        Geometry::new(bits, order, extended && 14 <= bits).unwrap()
    })
}

fn name(length_max: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(0x20_u8..0x7f, 1..=length_max)
}

prop_compose! {
    fn header()(
        geometry in geometry(),
        size in 0_u64..1 << 36,
        tables in (1_u64..1000, 1_u64..1000),
        bits in any::<(u64, u64, bool)>(),
        backing in proptest::option::of(name(60)),
        format in proptest::option::of(name(15)),
        unknown in vec((1_u32..1000, vec(any::<u8>(), 0..40)), 0..3),
        tail in (0_usize..3).prop_map(|words| vec![0x5a; words * 8]),
    ) -> Header {
        let size = size.min(geometry.size_max());
        let (compatible, autoclear, zstd) = bits;
        let bit = |set, bit| if set { bit } else { IncompatibleFeatures::NONE };
        let kind = ExtensionKind::Unknown;
        let record = |(number, payload)| Extension { kind: kind(number), payload };
        Header {
            version: Version::V3,
            geometry,
            size: ByteCount::new(size),
            crypt_method: CryptMethod::None,
            l1_entries: u32::try_from(geometry.l1_entries_for(size)).unwrap(),
            l1_offset: HostOffset::new(tables.0 << geometry.cluster_bits()),
            refcount_table_offset: HostOffset::new(tables.1 << geometry.cluster_bits()),
            refcount_table_clusters: 1,
            snapshot_count: 0,
            snapshot_offset: HostOffset::ZERO,
            incompatible: bit(geometry.has_extended_l2(), IncompatibleFeatures::EXTENDED_L2)
                .union(bit(zstd, IncompatibleFeatures::COMPRESSION_TYPE)),
            compatible: CompatibleFeatures::from_bits(compatible),
            autoclear: AutoclearFeatures::from_bits(autoclear),
            compression_type: if zstd { CompressionType::Zstd } else { CompressionType::Zlib },
            unknown_fields: tail,
            backing: backing.map(|name| BackingReference { name }),
            backing_format: format,
            data_file_name: None,
            crypto_header: None,
            feature_names: (4096 < geometry.cluster_size()).then(FeatureNameTable::standard),
            bitmaps: None,
            unknown_extensions: unknown.into_iter().map(record).collect(),
        }
    }
}

prop_compose! {
    fn snapshot()(
        l1 in any::<(u64, u32)>(),
        id in vec(any::<u8>(), 0..20),
        name in vec(any::<u8>(), 0..300),
        date in any::<(u32, u32)>(),
        numbers in any::<(u64, u64, u64)>(),
        instruction_count in proptest::option::of(0..u64::MAX),
        unknown_extra in vec(any::<u8>(), 0..50),
    ) -> Snapshot {
        Snapshot {
            l1_offset: l1.0,
            l1_entries: l1.1,
            id,
            name,
            date_seconds: date.0,
            date_nanoseconds: date.1,
            vm_clock: numbers.0,
            vm_state_size: numbers.1,
            disk_size: Some(ByteCount::new(numbers.2)),
            instruction_count,
            unknown_extra,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn any_header_that_fits_survives(header in header()) {
        if let Some(mut bytes) = header.encode() {
            bytes.resize(header.geometry.cluster_len(), 0);
            prop_assert_eq!(Header::decode(&bytes).unwrap(), header);
        }
    }

    #[test]
    fn any_bytes_behind_the_magic_are_a_header_or_an_error(
        mut bytes in vec(any::<u8>(), 8..2000),
    ) {
        bytes[..4].copy_from_slice(b"QFI\xfb");
        bytes[4..8].copy_from_slice(&3_u32.to_be_bytes());
        drop(Header::decode(&bytes));
    }

    #[test]
    fn one_changed_byte_is_a_header_or_an_error(header in header(), at in 8_usize..600, byte: u8) {
        if let Some(mut bytes) = header.encode() {
            bytes.resize(header.geometry.cluster_len().max(1024), 0);
            bytes[at] = byte;
            drop(Header::decode(&bytes));
        }
    }

    #[test]
    fn any_table_of_snapshots_survives(snapshots in vec(snapshot(), 0..6)) {
        let mut table = SnapshotTable { snapshots, length: ByteCount::ZERO };
        let bytes = table.encode();
        table.length = ByteCount::from_usize(bytes.len());
        let count = u32::try_from(table.snapshots.len()).unwrap();
        prop_assert_eq!(SnapshotTable::decode(&bytes, count, true).unwrap(), table);
    }

    #[test]
    fn any_bytes_are_snapshots_or_an_error(
        bytes in vec(any::<u8>(), 0..3000),
        count in 0_u32..70_000,
    ) {
        drop(SnapshotTable::decode(&bytes, count, true));
    }

    #[test]
    fn any_directory_of_bitmaps_survives(
        names in proptest::collection::btree_set(name(30), 1..6),
    ) {
        let geometry = Geometry::new(16, 4, false).unwrap();
        let entry = |name: Vec<u8>| BitmapDirectoryEntry {
            table_offset: HostOffset::new(u64::try_from(name.len()).unwrap() << 16),
            table_entries: 3,
            flags: BitmapFlags::AUTO.union(BitmapFlags::IN_USE),
            granularity_bits: 9 + u8::try_from(name.len() % 20).unwrap(),
            name,
        };
        let directory = BitmapDirectory { entries: names.into_iter().map(entry).collect() };
        let count = u32::try_from(directory.entries.len()).unwrap();
        let decoded = BitmapDirectory::decode(&directory.encode(), count, geometry);
        prop_assert_eq!(decoded.unwrap(), directory);
    }

    #[test]
    fn any_bytes_are_bitmaps_or_an_error(bytes in vec(any::<u8>(), 0..500), count in 0_u32..9) {
        drop(BitmapDirectory::decode(&bytes, count, Geometry::new(9, 4, false).unwrap()));
    }

    #[test]
    fn offsets_split_and_join_for_any_geometry(geometry in geometry(), at: u64) {
        let guest = GuestOffset::new(at % geometry.size_max());
        let start = geometry.guest_cluster_start(geometry.guest_cluster(guest));
        prop_assert_eq!(start + geometry.offset_in_cluster(guest), guest);
        let l1 = geometry.l1_index(guest).unwrap();
        prop_assert_eq!(geometry.guest_offset(l1, geometry.l2_index(guest)), start);
    }

    #[test]
    fn any_entry_decodes_or_is_an_error(geometry in geometry(), raw: u64, bitmap: u64, at: u64) {
        let guest = GuestOffset::new(at % geometry.size_max());
        for version in [Version::V2, Version::V3] {
            for has_data_file in [false, true] {
                drop(L2Entry { raw, bitmap }.decode(guest, geometry, version, has_data_file));
            }
        }
        drop(L1Entry::from_raw(raw).table(geometry));
    }

    #[test]
    fn any_descriptor_that_is_in_range_survives(geometry in geometry(), raw: u64) {
        let raw = raw & ((1 << 62) - 1);
        if let Ok(descriptor) = CompressedDescriptor::decode(raw, geometry) {
            prop_assert_eq!(descriptor.encode(geometry), raw);
            prop_assert!(descriptor.length_max().get() <= 2 * geometry.cluster_size());
        }
    }

    #[test]
    fn subclusters_agree_with_their_bits(raw: u64, has_host: bool) {
        if let Some(bitmap) = SubclusterBitmap::decode(raw, has_host) {
            let mut index = 0;
            while index < 32 {
                index += bitmap.run(index);
            }
            prop_assert_eq!(index, 32);
            prop_assert_eq!(bitmap.raw(), raw);
        }
    }

    #[test]
    fn refcounts_of_any_width_are_independent(
        order in 0_u32..=6,
        values in vec((0_u32..64, any::<u64>()), 1..40),
    ) {
        let geometry = Geometry::new(9, order, false).unwrap();
        let mut block = RefcountBlock::new(vec![0; 512], geometry);
        let mut model = [0; 64];
        for (index, value) in values {
            let value = value & geometry.refcount_max();
            block.set(RefcountBlockIndex::new(index), value);
            model[index as usize] = value;
        }
        for (index, value) in (0..).zip(model) {
            prop_assert_eq!(block.get(RefcountBlockIndex::new(index)), value);
        }
    }
}
