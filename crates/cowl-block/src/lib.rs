//! Guest side of cowl: what an image looks like to whoever uses it.
//!
//! [`BlockDevice`] is spoken by every server and tool; the qcow2 engine and the raw format
//! implement it.
#![forbid(unsafe_code)]

mod device;
mod dirty_bitmap;
mod error;
mod extent;
mod raw;

pub use device::{BlockDevice, DeviceResult, Growth, ZeroRequest};
pub use dirty_bitmap::{BitmapChunk, DirtyBitmap, DirtyRun};
pub use error::BlockError;
pub use extent::{Extent, ExtentKind};
pub use raw::{RawImage, RawOptions};
