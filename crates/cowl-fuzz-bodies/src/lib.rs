//! What the fuzz targets do with their input, as functions, so that plain tests replay the corpus.
//!
//! | body        | input                           | must hold                          |
//! |-------------|---------------------------------|------------------------------------|
//! | `header`    | cluster 0                       | what decodes encodes, and back     |
//! | `tables`    | a geometry, then a table        | the same, for all other structures |
//! | `open_read` | a file                          | reads, extents and chains agree    |
//! | `check`     | a file                          | any order of work, the same report |
//! | `mutate`    | a seed, edits of its structures | all of the above                   |
//! | `operations`| a shape, then operations        | the image is what a model says     |
//! | `rewrite`   | a seed, edits, then operations  | the same, if the image was sound   |
//! | `nbd`       | what an NBD client sends        | however it is cut, one answer      |
//! | `zstd`      | a length, a reach, a frame      | a start of what the library reads  |
//!
//! Nothing may panic, and nothing may ask the storage for more than its [`Budget`]: that is how a
//! hang shows before it is one.
#![forbid(unsafe_code)]

mod budget;
mod codec;
mod image;
mod mutate;
mod nbd;
mod operate;
mod seeds;
mod zstd_frame;

pub use budget::{Budget, BudgetStorage};
pub use codec::{header, tables};
pub use image::{check, open_read};
pub use mutate::mutate;
pub use nbd::nbd;
pub use operate::{operations, rewrite};
pub use seeds::{SEEDS, Seed};
pub use zstd_frame::zstd;

/// A body: takes any bytes, panics when something that must hold does not.
pub type Body = fn(&[u8]);

/// Every body with the name of its target and of its folder in the corpus.
pub const BODIES: [(&str, Body); 9] = [
    ("header", header),
    ("tables", tables),
    ("open_read", open_read),
    ("check", check),
    ("mutate", mutate),
    ("operations", operations),
    ("rewrite", rewrite),
    ("nbd", nbd),
    ("zstd", zstd),
];
