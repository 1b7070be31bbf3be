//! Host clusters that persistent bitmaps use: the directory, the tables, and the stored bits.

use cowl_format::{AutoclearFeatures, BitmapTableEntry, ByteCount};
use cowl_storage::{IoBuffer, Purpose, Storage};

use crate::Error;
use crate::check::Check;
use crate::check::report::Findings;
use crate::open::read_bitmaps;

/// Table entries read at a time: bounds the memory for a table of up to 1 GiB.
const ENTRIES_AT_ONCE: u64 = 1 << 16;

pub(crate) async fn count<S: Storage>(
    check: &Check<'_, S>,
    findings: &mut Findings,
) -> Result<(), Error> {
    let header = check.header;
    // Without the bit the extension is stale: its clusters belong to nobody.
    if !header.autoclear.contains(AutoclearFeatures::BITMAPS) {
        return Ok(());
    }
    if let Some(Ok(extension)) = &header.bitmaps {
        let at = extension.directory_offset.get();
        check.references.add(at, extension.directory_size.get(), 1, findings);
    }
    let directory = match read_bitmaps(check.file, header).await {
        Ok(directory) => directory,
        Err(Error::Corrupt { corruption, .. }) => {
            findings.corruption(1, || format!("ERROR: {corruption}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    for bitmap in &directory.entries {
        let at = bitmap.table_offset;
        let bytes = u64::from(bitmap.table_entries) * 8;
        if !check.may_read(at.get(), bytes, findings) {
            continue;
        }
        check.references.add(at.get(), bytes, 1, findings);
        let mut done = 0;
        // The part of a table past the end of the file reads as zeros, which own nothing.
        while done < bytes && at.get() + done < check.file_length {
            let length = (bytes - done).min(ENTRIES_AT_ONCE * 8);
            let buffer = IoBuffer::zeroed(ByteCount::new(length).as_usize());
            let (result, buffer) =
                check.file.read(at + ByteCount::new(done), buffer, Purpose::Bitmap).await;
            result?;
            buffer.chunks_exact(8).for_each(|word| count_entry(check, word, findings));
            done += length;
        }
    }
    Ok(())
}

fn count_entry<S: Storage>(check: &Check<'_, S>, word: &[u8], findings: &mut Findings) {
    let raw = u64::from_be_bytes(word.try_into().expect("8 bytes"));
    match BitmapTableEntry::decode(raw, check.geometry()) {
        Ok(BitmapTableEntry::Stored(host)) => {
            check.references.add(host.get(), check.geometry().cluster_size(), 1, findings);
        }
        Ok(BitmapTableEntry::AllZeros | BitmapTableEntry::AllOnes) => {}
        Err(corruption) => findings.corruption(1, || format!("ERROR: {corruption}")),
    }
}
