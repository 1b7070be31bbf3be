//! What the cowl commands do, as functions that return data and never print.
//!
//! One verb is one file. Reports are plain values whose serde form is the JSON that scripts know from
//! qemu-img; the fields stand in the order in which qemu-img prints them, so that the text is the same too.
#![forbid(unsafe_code)]

mod check;
mod compare;
mod info;
mod map;
mod measure;
mod progress;

pub use check::CheckReport;
pub use compare::{CompareReport, SizeMismatch};
pub use info::{
    BitmapInfo, ChildInfo, EncryptInfo, FormatSpecific, ImageInfo, KeySlotInfo, LuksInfo, NodeInfo,
    Qcow2Info, SnapshotInfo,
};
pub use map::MapEntry;
pub use measure::{
    BitmapShape, MeasureReport, MeasureSource, MeasureTarget, Preallocation, Qcow2Target,
    TargetError, measure,
};
pub use progress::{Progress, Unwatched};
