//! What reaches the file, in which order, and when it is durable.

mod barriers;
mod commit;
mod latch;
mod order;

pub(crate) use barriers::{After, Barriers};
pub(crate) use commit::Commits;
pub(crate) use latch::Latch;
#[cfg(feature = "canary")]
pub use order::ignore_edge;
pub use order::{Edge, ORDER, Rule};
