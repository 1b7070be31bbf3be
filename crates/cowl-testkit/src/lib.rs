//! What tests share: the installed qemu-img as an oracle, and images of every feature to hold
//! against it.
//!
//! Development only. Helpers panic with the command that failed, because a test can do nothing
//! better.
#![forbid(unsafe_code)]

mod certificates;
mod corpus;
mod fixture;
mod oracle;
mod poke;
mod program;
mod random;
mod side_by_side;

pub use certificates::write_certificates;
pub use fixture::{Feature, Fixture, FixtureSet};
pub use oracle::{Output, Tool, is_available, run};
pub use poke::{poke, poke_u16, poke_u32, poke_u64, read_at};
pub use program::are_installed;
pub use random::Random;
pub use side_by_side::{Answers, SideBySide};
