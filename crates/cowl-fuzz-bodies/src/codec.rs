//! Decoders: what decodes must encode, and decode again to the same value.

use cowl_format::{
    BitmapDirectory, BitmapTableEntry, ByteCount, CompressedDescriptor, Corruption, Geometry,
    GuestOffset, Header, HeaderField, HostCluster, HostOffset, L1Entry, L2Entry, RefcountBlock,
    RefcountBlockIndex, RefcountTableEntry, SnapshotTable, SubclusterBitmap, UncheckedHeader,
    Version,
};

/// Decodes `data` as cluster 0.
pub fn header(data: &[u8]) {
    let Ok(fields) = UncheckedHeader::decode(data) else { return };
    let header = match fields.validate(data) {
        Ok(header) => header,
        Err(corruption) => {
            assert!(!corruption.to_string().is_empty());
            assert_ne!(corruption.errno(), 0);
            if let Corruption::HeaderTruncated { needed } = corruption {
                assert!(data.len() < needed.as_usize());
                assert!(needed.as_usize() <= 2 << 20);
            }
            return;
        }
    };
    drop(header.check_overlap());
    for field in [
        HeaderField::Size,
        HeaderField::L1Table,
        HeaderField::RefcountTable,
        HeaderField::Snapshots,
    ] {
        let (at, bytes) = header.encode_field(field);
        let at = ByteCount::new(at.get()).as_usize();
        assert_eq!(&data[at..at + bytes.len()], &bytes[..], "{field:?}");
    }
    // A header that leaves no room for a newer field of ours does not fit again.
    let Some(bytes) = header.encode() else { return };
    let again = Header::decode(&padded(&bytes, header.geometry)).expect("encoded by us");
    assert_eq!(again, without_broken_parts(header));
}

fn padded(bytes: &[u8], geometry: Geometry) -> Vec<u8> {
    let mut cluster = bytes.to_vec();
    cluster.resize(geometry.cluster_len(), 0);
    cluster
}

/// What is broken is not written back.
fn without_broken_parts(mut header: Header) -> Header {
    header.bitmaps = header.bitmaps.filter(Result::is_ok);
    header
}

/// The first bytes choose a geometry and a structure, the rest is that structure.
pub fn tables(data: &[u8]) {
    let Some((&[bits, order, kind, count], rest)) = data.split_first_chunk::<4>() else { return };
    let extended = bits & 0x80 != 0;
    let geometry = Geometry::new(u32::from(bits & 0x1f), u32::from(order), extended);
    let Ok(geometry) = geometry else { return };
    match kind % 6 {
        0 => words(rest).for_each(|word| l1_entry(word, geometry)),
        1 => l2_entries(rest, geometry, kind),
        2 => refcounts(rest, geometry),
        3 => snapshots(rest, u32::from(count), geometry),
        4 => bitmaps(rest, u32::from(count), geometry),
        _ => words(rest).for_each(|word| small_entries(word, geometry)),
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|word| u64::from_be_bytes(word.try_into().expect("8 bytes")))
}

fn l1_entry(word: u64, geometry: Geometry) {
    let entry = L1Entry::from_raw(word);
    if let Ok(Some(table)) = entry.table(geometry) {
        let again = L1Entry::new(table, entry.is_copied(), geometry);
        assert_eq!(again.table(geometry), Ok(Some(table)));
        assert_eq!(entry.has_reserved_bits(), again.raw() != word);
    }
}

fn l2_entries(bytes: &[u8], geometry: Geometry, kind: u8) {
    let version = if kind & 0x40 == 0 { Version::V3 } else { Version::V2 };
    let has_data_file = kind & 0x80 != 0;
    let mut words = words(bytes);
    let mut guest = GuestOffset::ZERO;
    while let (Some(raw), bitmap) =
        (words.next(), if geometry.has_extended_l2() { words.next().unwrap_or(0) } else { 0 })
    {
        let entry = L2Entry { raw, bitmap };
        l2_entry(entry, guest, geometry, version, has_data_file);
        guest = guest + ByteCount::new(geometry.cluster_size());
    }
}

fn l2_entry(
    entry: L2Entry,
    guest: GuestOffset,
    geometry: Geometry,
    version: Version,
    has_data_file: bool,
) {
    use cowl_format::ClusterMapping as Mapping;
    let decode = |entry: L2Entry| entry.decode(guest, geometry, version, has_data_file);
    let mapping = match decode(entry) {
        Ok(mapping) => mapping,
        Err(corruption) => {
            assert!(!corruption.to_string().is_empty());
            return;
        }
    };
    let again = match mapping {
        Mapping::Unallocated | Mapping::Zero { host: None } => return,
        // A data file's host 0 is data only with the copied flag, which `data` is told to set.
        Mapping::Data { host } => L2Entry::data(host, true, geometry),
        Mapping::Zero { host } => L2Entry::zero(host, geometry),
        Mapping::Compressed(descriptor) => {
            assert!(descriptor.length_max().get() <= 2 * geometry.cluster_size());
            L2Entry::compressed(descriptor, geometry)
        }
        Mapping::Subclusters { host: Some(host), bitmap } => {
            L2Entry::subclusters(host, bitmap, geometry)
        }
        Mapping::Subclusters { host: None, bitmap } => return subcluster_runs(bitmap),
    };
    assert_eq!(decode(again), Ok(mapping));
}

fn subcluster_runs(bitmap: SubclusterBitmap) {
    let mut index = 0;
    while index < 32 {
        let run = bitmap.run(index);
        assert!(0 < run && run <= 32 - index);
        index += run;
    }
}

fn refcounts(bytes: &[u8], geometry: Geometry) {
    let length = bytes.len().min(geometry.cluster_len());
    let block = RefcountBlock::new(&bytes[..length], geometry);
    let mut copy = RefcountBlock::new(vec![0; length], geometry);
    let entries = u32::try_from(block.entries()).expect("at most a cluster of bits");
    for index in (0..entries).map(RefcountBlockIndex::new) {
        assert!(block.get(index) <= geometry.refcount_max());
        copy.set(index, block.get(index));
    }
    let whole = (u64::from(entries) << geometry.refcount_order()) >> 3;
    let whole = ByteCount::new(whole).as_usize();
    assert_eq!(&copy.into_bytes()[..whole], &bytes[..whole]);
}

fn snapshots(bytes: &[u8], count: u32, geometry: Geometry) {
    match SnapshotTable::decode(bytes, count, false) {
        Err(Corruption::HeaderTruncated { needed }) => assert!(bytes.len() < needed.as_usize()),
        Err(_) => return,
        Ok(_) => {}
    }
    let Ok(table) = SnapshotTable::decode(bytes, count, true) else { return };
    for (index, snapshot) in (0..).zip(&table.snapshots) {
        drop(snapshot.l1_table(index, geometry));
        assert!(table.find(&snapshot.id).is_some());
    }
    let again = table.encode();
    let decoded = SnapshotTable::decode(&again, count, true).expect("encoded by us");
    assert_eq!(decoded.snapshots, table.snapshots);
    assert_eq!(decoded.length.as_usize(), again.len());
}

fn bitmaps(bytes: &[u8], count: u32, geometry: Geometry) {
    let Ok(directory) = BitmapDirectory::decode(bytes, count, geometry) else { return };
    let again = directory.encode();
    assert_eq!(again.len(), bytes.len());
    assert_eq!(BitmapDirectory::decode(&again, count, geometry), Ok(directory));
}

fn small_entries(word: u64, geometry: Geometry) {
    let entry = RefcountTableEntry::from_raw(word);
    if let Ok(Some(block)) = entry.block(geometry) {
        let again = RefcountTableEntry::new(block, geometry);
        assert_eq!(entry.has_reserved_bits(), again.raw() != word);
    }
    if let Ok(entry) = BitmapTableEntry::decode(word, geometry) {
        assert_eq!(entry.encode(), word);
    }
    if let Ok(descriptor) = CompressedDescriptor::decode(word, geometry) {
        assert_eq!(descriptor.encode(geometry), word & ((1 << 62) - 1));
        let (first, last) = descriptor.host_clusters(geometry);
        assert!(first <= last && last.get() - first.get() <= 3);
    }
    let cluster = HostCluster::new(word >> 8);
    if let Some(index) = geometry.refcount_table_index(cluster) {
        let start = geometry.refcount_block_start(index).get();
        assert_eq!(start + u64::from(geometry.refcount_block_index(cluster).get()), cluster.get());
    }
    assert_eq!(geometry.host_cluster(HostOffset::new(word)).get(), word >> geometry.cluster_bits());
}
