//! From located bytes to the guest's buffer, and back.

mod claims;
mod compress;
mod compressed;
mod decompress;
mod discard;
mod epochs;
mod fill;
mod read;
mod spares;
mod write;
mod zero;
mod zstd_frame;

pub(crate) use claims::Claims;
pub use compress::Compressor;
pub(crate) use compress::Compressors;
pub(crate) use decompress::{Decoded, Decompressor};
pub(crate) use epochs::{Epochs, Pin};
pub use read::HostPlace;
pub(crate) use spares::{ClusterSpares, Spares};
pub(crate) use write::Pressure;
pub(crate) use zero::Clear;
