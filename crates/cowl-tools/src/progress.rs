//! How long work reports where it stands.
//!
//! Work announces a total once it knows it and then what it has finished since the last call; both
//! may come from any thread. Percentages, steps and terminals are the caller's business.

use cowl_format::ByteCount;

/// Receives the progress of one command.
pub trait Progress: Send + Sync {
    /// The work is `total` bytes long. May be called again when the estimate changes.
    fn total(&self, total: ByteCount);

    /// `done` more bytes are finished.
    fn advance(&self, done: ByteCount);
}

/// Nobody is watching.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unwatched;

impl Progress for Unwatched {
    fn total(&self, _total: ByteCount) {}

    fn advance(&self, _done: ByteCount) {}
}
