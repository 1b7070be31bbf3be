//! Puts a persistent bitmap that records writes into an image, by hand: cowl cannot make one yet.
//!
//! The bitmap says that nothing was written since. It is true, and stays so in every state in which
//! the bitmap is trusted: the first write marks it as in use.

use crate::subjects::fixture::Fixture;
use cowl_format::{
    AutoclearFeatures, BitmapDirectory, BitmapDirectoryEntry, BitmapFlags, BitmapTableEntry,
    BitmapsExtension, ByteCount, HostOffset,
};

/// Bytes that one bit stands for, as a binary logarithm: what QEMU takes by default.
const GRANULARITY_BITS: u8 = 16;

/// Adds the bitmap; an image whose header has no room for its extension stays as it is, which is
/// `false`.
pub(super) fn add(bytes: &mut Vec<u8>) -> Result<bool, String> {
    let mut fixture = Fixture::open(bytes)?;
    let geometry = fixture.geometry;
    let bits = fixture.header.size.get().div_ceil(1 << GRANULARITY_BITS);
    let clusters = bits.div_ceil(8).div_ceil(geometry.cluster_size()).max(1);
    let entry = BitmapDirectoryEntry {
        table_offset: HostOffset::ZERO,
        table_entries: u32::try_from(clusters).expect("simulated disks are small"),
        flags: BitmapFlags::AUTO,
        granularity_bits: GRANULARITY_BITS,
        name: b"nightly".to_vec(),
    };
    // Measured before anything is added: a header that has no room leaves the image alone.
    let mut directory = BitmapDirectory { entries: vec![entry] };
    let directory_size = ByteCount::from_usize(directory.encode().len());
    let anywhere = HostOffset::new(geometry.cluster_size());
    let extension = BitmapsExtension { count: 1, directory_size, directory_offset: anywhere };
    fixture.header.bitmaps = Some(Ok(extension));
    if fixture.header.encode().is_none() {
        return Ok(false);
    }
    let table = BitmapTableEntry::AllZeros.encode().to_be_bytes();
    let table = table.repeat(ByteCount::new(clusters).as_usize());
    directory.entries[0].table_offset = fixture.append(&table)?;
    let directory_offset = fixture.append(&directory.encode())?;
    fixture.header.bitmaps = Some(Ok(BitmapsExtension { directory_offset, ..extension }));
    fixture.header.autoclear = fixture.header.autoclear.union(AutoclearFeatures::BITMAPS);
    let header = fixture.header.encode().expect("it fitted above");
    fixture.write(0, &header);
    Ok(true)
}
