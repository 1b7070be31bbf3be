//! A new image without data: empty, or with its space allocated in advance.

use cowl_format::{ByteCount, GuestOffset, Header, HostOffset, L2Entry, SubclusterBitmap};
use cowl_storage::{Allocation, Purpose, Storage};

use crate::create::builder::{Builder, BuilderFiles};
use crate::create::options::{CreateError, CreateOptions};

/// When the space of a new image is allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preallocation {
    /// As the guest writes.
    Off,
    /// Tables now, data later.
    Metadata,
    /// All of it, without writing.
    Falloc,
    /// All of it, written with zeros.
    Full,
}

/// Makes an image without data in empty files, durably.
pub async fn create<S: Storage>(
    files: BuilderFiles<S>,
    options: &CreateOptions,
    preallocation: Preallocation,
) -> Result<Header, CreateError> {
    let geometry = options.check()?;
    let size = options.rounded_size();
    let preallocation = match preallocation {
        // A raw data file is a raw image only when every cluster is mapped to it.
        Preallocation::Off if options.data_file_raw => Preallocation::Metadata,
        other => other,
    };
    if preallocation != Preallocation::Off && options.backing.is_some() && !options.extended_l2 {
        return Err(CreateError::BackingWithPreallocation);
    }
    let clusters = match (preallocation, &options.data_file) {
        (Preallocation::Off, _) | (_, Some(_)) => 0,
        _ => geometry.clusters_for(size),
    };
    let tables_bound = match preallocation {
        Preallocation::Off => 0,
        _ => geometry.l1_entries_for(size),
    };
    let (image, data) = (std::sync::Arc::clone(&files.image), files.data.clone());
    let builder = Builder::new(files, options, clusters.max(tables_bound))?;
    if let Some(data) = &data {
        data.set_len(ByteCount::new(size), Purpose::FileLength).await?;
    }
    if preallocation != Preallocation::Off && 0 < size {
        let host = reserve_all(&builder, size, options.extended_l2);
        let file = data.as_ref().unwrap_or(&image);
        allocate(file.as_ref(), host, ByteCount::new(size), preallocation).await?;
    }
    builder.finish(true).await
}

fn reserve_all<S: Storage>(builder: &Builder<S>, size: u64, extended_l2: bool) -> HostOffset {
    let geometry = builder.geometry();
    let clusters = geometry.clusters_for(size);
    let host = builder.reserve(GuestOffset::ZERO, clusters);
    if extended_l2 {
        // The space is there, but nothing in it is data yet: a backing file still shows through.
        for index in 0..clusters {
            let offset = ByteCount::new(index * geometry.cluster_size());
            let bitmap = SubclusterBitmap::UNALLOCATED;
            let entry = L2Entry::subclusters(host + offset, bitmap, geometry);
            builder.map(GuestOffset::ZERO + offset, entry);
        }
    }
    host
}

async fn allocate<S: Storage>(
    file: &S,
    at: HostOffset,
    length: ByteCount,
    preallocation: Preallocation,
) -> Result<(), CreateError> {
    match preallocation {
        Preallocation::Off => {}
        // The file ends behind the last cluster; nothing of it is allocated.
        Preallocation::Metadata => {
            let end = ByteCount::new(at.get()) + length;
            if file.len().await? < end {
                file.set_len(end, Purpose::FileLength).await?;
            }
        }
        Preallocation::Falloc => {
            file.allocate(at, length, Allocation::Reserve, Purpose::Preallocation).await?;
        }
        Preallocation::Full => {
            file.allocate(at, length, Allocation::WriteZeros, Purpose::Preallocation).await?;
        }
    }
    Ok(())
}
