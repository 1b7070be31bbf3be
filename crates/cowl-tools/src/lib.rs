//! What the cowl commands do, as functions that return data and never print.
//!
//! One verb is one file or folder. Reports are plain values whose serde form is the JSON that
//! scripts know from qemu-img; the fields stand in the order in which qemu-img prints them, so that
//! the text is the same too.
#![forbid(unsafe_code)]

mod bench;
mod check;
mod compare;
mod convert;
mod create;
mod dd;
mod inspect;
mod map;
mod measure;
mod tour;

mod block_status;
mod host;
mod info;
mod luks;
mod progress;
mod zero;

pub use bench::{
    BENCH_THREADS_MAX, BenchDriver, BenchError, BenchFlush, BenchOptions, BenchOrder, BenchReport,
    BenchTarget, BenchWork, Latency,
};
pub use block_status::{BlockStatus, BlockStatuses, disk_size};
pub use check::CheckSummary;
pub use compare::{CompareError, Comparison, Strictness, compare};
pub use convert::{
    ConvertError, ConvertOptions, ConvertReport, ExistingTarget, Salvaged, TargetImage,
    ZeroDetection, convert,
};
pub use cowl_qcow2::Preallocation;
pub use create::{NewImage, create};
pub use dd::{CountFrom, DdBlocks, DdRange, DdTarget, dd};
pub use host::{Disk, HostFile, HostFiles, open_disk};
pub use info::{
    BitmapInfo, ChildInfo, EncryptInfo, FormatSpecific, ImageInfo, KeySlotInfo, LuksInfo, NodeInfo,
    Qcow2Info, SnapshotInfo,
};
pub use inspect::{InfoError, InfoOptions, info, info_chain};
pub use map::{MapEntry, map};
pub use measure::{
    BitmapShape, MeasureError, MeasureReport, MeasureSource, MeasureTarget, Qcow2Target,
    TargetError, measure, measure_image,
};
pub use progress::{Progress, Unwatched};
pub use tour::{PowerCuts, StoredFile, Tour, TourError, TourStep};
pub use zero::is_zero;
