//! From guest offsets to where the bytes live.

mod l1_table;
mod link;
mod lookup;
mod run;
mod shortcuts;

pub(crate) use l1_table::{L1Sector, L1Table};
pub(crate) use link::Change;
pub use run::{Run, RunKind};
pub(crate) use shortcuts::Shortcuts;
