//! The mounted file, seen by the kernel, by programs and by file systems on it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on has failed, and a skip is printed"
)]

mod model;
mod odd_device;
mod program;
mod serving;

mod behaviour;
mod ending;
mod failures;
mod file_systems;
mod growing;
mod parallel;
mod random;
