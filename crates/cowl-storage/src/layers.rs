//! Storage over storage: each adds one thing and passes the rest through.

mod fault;
mod read_only;
mod trace;

use cowl_format::ByteCount;

use crate::IoBuffer;

pub use fault::{FaultEffect, FaultRule, FaultStorage};
pub use read_only::ReadOnlyStorage;
pub use trace::{Trace, TraceRecord, TraceStorage};

fn total_length(buffers: &[IoBuffer]) -> ByteCount {
    ByteCount::from_usize(buffers.iter().map(|buffer| buffer.len()).sum())
}
