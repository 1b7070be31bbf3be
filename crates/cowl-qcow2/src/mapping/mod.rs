//! From guest offsets to where the bytes live.

mod lookup;
mod run;

pub use run::{Run, RunKind};
