//! What the cowl commands do, as functions that return data and never print.
#![forbid(unsafe_code)]
mod convert;
mod create;
mod progress;
mod tour;
mod zero;
pub use convert::{
    ConvertError, ConvertOptions, ConvertReport, ExistingTarget, Salvaged, TargetImage,
    ZeroDetection, convert,
};
pub use create::{NewImage, create};
pub use progress::{Progress, Unwatched};
pub use tour::{StoredFile, Tour, TourError, TourStep};
