//! Images made to do harm: an error or data comes back, in bounded time and memory, never a panic.
//!
//! `header` and `tables` go through the ways an image can lie, one claim each; `sweep` cuts and
//! flips small images everywhere. Rows about files that an image names are in the tests of `cowl`.
//!
//! Time is bounded by what the engine may read ([`cowl_fuzz_bodies::Budget`]), memory by a counting
//! allocator. zlib and zstd contexts of the C libraries are not counted: they have a fixed size.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod header;
mod image;
mod sweep;
mod sys;
mod tables;
