//! A new image without data: empty, or with its space allocated in advance.

use cowl_format::{ByteCount, Header, HostOffset};
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
    options.check()?;
    let size = options.rounded_size();
    let preallocation = match preallocation {
        // A raw data file is a raw image only when every cluster is mapped to it.
        Preallocation::Off if options.data_file_raw => Preallocation::Metadata,
        other => other,
    };
    if preallocation != Preallocation::Off && options.backing.is_some() && !options.extended_l2 {
        return Err(CreateError::BackingWithPreallocation);
    }
    let data = files.data.clone();
    let builder = Builder::new(files, options)?;
    if let Some(data) = &data {
        data.set_len(ByteCount::new(size), Purpose::FileLength).await?;
    }
    builder.preallocate(preallocation).await?;
    builder.finish(true).await
}

/// Gives a reserved range the space that `preallocation` asks for.
pub(super) async fn allocate<S: Storage>(
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
