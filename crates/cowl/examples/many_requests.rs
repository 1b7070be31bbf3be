//! Fills a disk with many requests in flight on one ring: `many_requests IMAGE`.

use std::path::Path;

use cowl::{Access, BlockDevice, Disk, GuestOffset, OpenOptions, Rings};
use cowl_storage::{IoBuffer, ring_runtime};
use futures_util::stream::{self, StreamExt, TryStreamExt};

const BLOCK: usize = 65_536;
const IN_FLIGHT: usize = 32;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let image = std::env::args_os().nth(1).ok_or("usage: many_requests IMAGE")?;
    let options = OpenOptions { access: Access::ReadWrite, ..OpenOptions::local() };
    ring_runtime()?.block_on(async {
        let disk = Disk::open_with(&Rings, Path::new(&image), &options).await?;
        let size = BlockDevice::size(&disk).get();
        let writes = (0..size / BLOCK as u64).map(|block| {
            let disk = &disk;
            async move {
                let buffer = IoBuffer::from_slice(&block.to_le_bytes().repeat(BLOCK / 8));
                BlockDevice::write(disk, GuestOffset::new(block * BLOCK as u64), buffer).await.0
            }
        });
        stream::iter(writes)
            .buffer_unordered(IN_FLIGHT)
            .try_for_each(|()| async { Ok(()) })
            .await?;
        BlockDevice::flush(&disk).await?;
        disk.shut().await?;
        Ok(())
    })
}
