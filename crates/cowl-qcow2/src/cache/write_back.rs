//! Writes copies of tables to the file: sorted, neighbours in one write, all at once.

use cowl_format::{ByteCount, HostOffset};
use cowl_storage::{IoBuffer, Purpose, Storage};
use futures_util::future::join_all;

use crate::Error;
use crate::cache::dirty::Taken;

/// Bytes of one write of merged neighbours.
const MERGED_MAX: usize = 1 << 20;

/// Writes that belong to one stage.
#[derive(Default)]
pub(crate) struct Batch {
    pieces: Vec<(HostOffset, Purpose, Vec<u8>)>,
}

impl Batch {
    pub(crate) fn add(&mut self, at: HostOffset, purpose: Purpose, bytes: Vec<u8>) {
        self.pieces.push((at, purpose, bytes));
    }

    /// Writes all of it, and waits for every write whatever the others say. Returns how many writes
    /// and bytes that took.
    pub(crate) async fn write<S: Storage>(mut self, file: &S) -> Result<(u64, u64), Error> {
        self.pieces.sort_by_key(|(at, _, _)| *at);
        let mut merged: Vec<(HostOffset, Purpose, Vec<u8>)> = Vec::new();
        for (at, purpose, bytes) in self.pieces {
            match merged.last_mut() {
                Some((start, same, last))
                    if *same == purpose
                        && *start + ByteCount::from_usize(last.len()) == at
                        && last.len() + bytes.len() <= MERGED_MAX =>
                {
                    last.extend(bytes);
                }
                _ => merged.push((at, purpose, bytes)),
            }
        }
        let count = merged.len() as u64;
        let total = merged.iter().map(|(_, _, bytes)| bytes.len() as u64).sum();
        let writes = merged.into_iter().map(async |(at, purpose, bytes)| {
            if let Some(result) = file.try_write(at, &bytes, purpose) {
                return result;
            }
            file.write(at, IoBuffer::from_slice(&bytes), purpose).await.0
        });
        for result in join_all(writes).await {
            result?;
        }
        Ok((count, total))
    }
}

/// Refcount blocks, and tables that nothing names yet.
pub(crate) fn tables(taken: &Taken<'_>, batch: &mut Batch) {
    for table in &taken.tables {
        batch.add(table.table.host(), Purpose::L2Table, table.bytes.to_vec());
    }
    for block in &taken.blocks {
        batch.add(block.block.host(), Purpose::RefcountBlock, block.copy.bytes.to_vec());
    }
}

/// Slices of tables that are in use.
pub(crate) fn slices(taken: &Taken<'_>, batch: &mut Batch) {
    for slice in &taken.slices {
        let bytes = slice.copy.bytes.clone();
        let skip = ByteCount::from_usize(slice.number * bytes.len());
        batch.add(slice.table.host() + skip, Purpose::L2Table, bytes);
    }
}

/// Writes the first of both.
pub(crate) async fn write_tables<S: Storage>(file: &S, taken: &Taken<'_>) -> Result<(), Error> {
    let mut batch = Batch::default();
    tables(taken, &mut batch);
    batch.write(file).await.map(drop)
}

/// Writes the second of both.
pub(crate) async fn write_slices<S: Storage>(file: &S, taken: &Taken<'_>) -> Result<(), Error> {
    let mut batch = Batch::default();
    slices(taken, &mut batch);
    batch.write(file).await.map(drop)
}
